"""The config of a run: its sections, its default, and its conversion to typed options.

A config file (`configs/*.py`) starts from `default()`, changes values, and returns the config. Each
value can be overridden on the command line, as in `--config.optimizer.learning_rate=0.02`. `read`
checks a config once and converts it to `RunOptions`; everything behind it trusts these. The package
that reads a section defines it: `kdjax/data/options.py`, `kdjax/models/options.py`, the modules of
`kdjax/training`. This module defines what belongs to a run as a whole.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from ml_collections import ConfigDict

from kdjax.data.options import DataOptions, ExtraSet
from kdjax.distillation import Loss, make_loss
from kdjax.distillation import term as term
from kdjax.models.options import IMAGENET_WEIGHTS, NetworkOptions, StudentOptions, TeacherOptions
from kdjax.models.registry import find as find_network
from kdjax.training import optimizer as optimizers
from kdjax.training.label_losses import LossOptions, RareClassOptions
from kdjax.training.optimizer import OptimizerOptions
from kdjax.training.sharding import MeshOptions
from kdjax.utils import config_file, imports, schema
from kdjax.utils.errors import UserError, WrongValue
from kdjax.utils.imports import did_you_mean
from kdjax.utils.schema import Section

# A config as users write it: a ConfigDict, of which type checkers know nothing, because its keys
# are set at run time.
Config = Any


# Published fingerprints are older than these keys, which count only if they change something.
_NEWER = {
    "loss": tuple(field.name for field in dataclasses.fields(RareClassOptions)),
    "data": ("class_uniform",),
    "compare": ("changes",),
    "teacher": ("bands",),
}


@dataclasses.dataclass(frozen=True)
class CompareOptions(Section):
    """`config.compare`: the methods to compare, and the settings to try first."""

    # By name, {term name: term(...)}; {} is the plain student.
    methods: Mapping[str, Mapping[str, Loss]] = dataclasses.field(default_factory=dict)
    # By name, the method that it extends. The tables show what the extension adds.
    builds_on: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # By name, what a method changes in config.loss and config.data, as {"loss": {"dice": 1.0}}. A
    # method may have changes, terms, or both. Without both, it is the plain student.
    changes: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    seeds: Annotated[tuple[int, ...], schema.SEED] = (0,)
    # Methods whose terms read the teacher's class scores alone take them from a cache in the
    # workdir, if it fits into memory. A path in config.teacher.cache goes first.
    cache: bool = True
    # Trains plain students for as many steps as take as long as the methods (processor time on a
    # CPU, else wall time), to separate the gain of teaching from that of time.
    equal_time: bool = True
    teacher_steps: Annotated[int, schema.COUNT] = 1000
    teacher_learning_rate: Annotated[float, schema.POSITIVE] = 0.01
    # Tried on the validation split first. The plain student tries rates and decays, where () means
    # those of config.optimizer. All methods use its choice,
    learning_rates: Annotated[tuple[float, ...], schema.POSITIVE] = ()
    weight_decays: Annotated[tuple[float, ...], schema.NOT_NEGATIVE] = ()
    # and each method tries these factors of the weights of all its terms.
    weight_factors: Annotated[tuple[float, ...], schema.POSITIVE] = ()
    # Must differ from the reported seeds.
    tuning_seeds: Annotated[tuple[int, ...], schema.SEED] = (1000,)

    def __post_init__(self) -> None:
        """Also checks the type of the names in `builds_on`."""
        super().__post_init__()
        for method, base in self.builds_on.items():
            schema.check_type(f"builds_on.{method}", base, "")


@dataclasses.dataclass(frozen=True)
class RunOptions(Section):
    """A whole config, checked, with typed sections and with losses in place of their options."""

    seed: Annotated[int, schema.SEED] = 0
    steps: Annotated[int, schema.COUNT] = 1000
    log_every: Annotated[int, schema.COUNT] = 50
    eval_every: Annotated[int, schema.COUNT] = 500  # steps; each evaluation saves a checkpoint
    # Steps between further checkpoints; 0 for none.
    checkpoint_every: Annotated[int, schema.COUNT_OR_ZERO] = 500
    # Measures Boundary IoU and boundary F1 in the last evaluation.
    boundaries: bool = False
    # The weights that are exported: the last, or the best on the validation split.
    export: Literal["last", "best"] = "last"
    data: DataOptions = dataclasses.field(default_factory=DataOptions)
    mesh: MeshOptions = dataclasses.field(default_factory=MeshOptions)
    student: StudentOptions = dataclasses.field(default_factory=StudentOptions)
    teacher: TeacherOptions = dataclasses.field(default_factory=TeacherOptions)
    terms: Mapping[str, Loss] = dataclasses.field(default_factory=dict)  # by name, term(...)
    loss: LossOptions = dataclasses.field(default_factory=LossOptions)
    optimizer: OptimizerOptions = dataclasses.field(default_factory=OptimizerOptions)
    compare: CompareOptions = dataclasses.field(default_factory=CompareOptions)
    # The config as a run directory stores it, JSON. Not a key of a config.
    stored: str = dataclasses.field(default="", repr=False)

    def __post_init__(self) -> None:
        """Also checks values that depend on other sections."""
        super().__post_init__()
        if (warmup := self.optimizer.warmup_steps) > self.steps:
            raise WrongValue(
                "optimizer.warmup_steps",
                f"is {warmup}; it must be at most config.steps, {self.steps}",
            )
        if self.data.batch_size % self.optimizer.accumulate:
            raise WrongValue(
                "data.batch_size",
                f"{self.data.batch_size} cannot be cut into {self.optimizer.accumulate} equal "
                "micro-batches (config.optimizer.accumulate)",
            )

    def to_config(self) -> Config:
        """Returns the config that these options were made of."""
        return from_json(self.stored)

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with the work of a run, not with paths."""
        values = json.loads(self.stored)
        for key in ("checkpoint", "cache", "logits"):
            del values["teacher"][key]
        del values["student"]["checkpoint"]
        for side in ("student", "teacher"):
            if values[side]["backbone"] != IMAGENET_WEIGHTS:
                del values[side]["backbone"]
            # Published fingerprints are older than this key.
            if not values[side]["any_class_names"]:
                del values[side]["any_class_names"]
        without = json.loads(to_json(default()))
        if not values["boundaries"]:
            del values["boundaries"]
        for section, keys in _NEWER.items():
            for key in keys:
                if values[section][key] == without[section][key]:
                    del values[section][key]
        for data in (values["data"], *values["data"]["mixture"].values()):
            del data["data_dir"]
        del values["data"]["test_data_dir"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def default() -> Config:
    """Returns every key with its default. It is locked, so that an unknown key is an error."""
    values = dataclasses.asdict(RunOptions())
    del values["stored"]
    return ConfigDict(values).lock()


def network(
    name: str | Callable[..., Any] = "",
    *,
    width: int = NetworkOptions.width,
    dtype: str = NetworkOptions.dtype,
    **options: Any,
) -> dict[str, Any]:
    """Returns a network as `config.student` and `config.teacher` hold it.

    Args:
      name: a name of `kdjax.models`, "package.module:factory", or the factory itself.
      width: channels of the first stage; 64 is the published network.
      dtype: the dtype of the computation.
      **options: further arguments of the factory.
    """
    named = imports.name_of("network", name)
    return {"name": named, "width": width, "dtype": dtype, "options": options}


def extra_set(
    name: str,
    *,
    data_dir: str = ExtraSet.data_dir,
    split: str = ExtraSet.split,
    weight: int = ExtraSet.weight,
    labelled: bool = ExtraSet.labelled,
) -> dict[str, Any]:
    """Returns a further training set, an entry of `config.data.mixture`.

    Args:
      name: the data set.
      data_dir: the directory of prepared sets.
      split: the split of the set.
      weight: the number of its examples for every `config.data.weight` of the main set.
      labelled: False to ignore its labels. Its classes may then differ.
    """
    return {
        "name": name,
        "data_dir": data_dir,
        "split": split,
        "weight": weight,
        "labelled": labelled,
    }


def without_terms(config: Config) -> Config:
    """Removes the terms of a config, and the sets that only terms can use.

    Images without labels would take the place of others in a batch.
    """
    unread = [key for key, extra in config.data.mixture.items() if not extra.labelled]
    with config.unlocked():
        config.terms = ConfigDict()
        for key in unread:
            del config.data.mixture[key]
    return config


def read(config: Config, data: Any = None, *, tuning: bool = False) -> RunOptions:
    """Checks a config and converts it; later changes to the config have no effect.

    Args:
      config: a config from `default`, or the path of a config file with an argument after a colon,
        as `--config` takes it. `RunOptions` are returned as they are.
      data: the data set if it is an object; the options hold its name.
      tuning: True for a run that chooses settings, which reads no test split.

    Raises:
      UserError: if a value is wrong or the file cannot be read. The message names the key and what
        would be right.
    """
    if isinstance(config, RunOptions):
        return config
    if isinstance(config, str | os.PathLike):
        path = os.fspath(config)
        try:
            return read(config_file.read(path), data, tuning=tuning)
        except WrongValue as error:
            raise UserError(f"{path}: {error}") from None
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"config is of type {type(config).__name__}; it must be as kdjax.default_config() "
            "returns it, or the path of a config file"
        )
    if data is not None:
        if not isinstance(getattr(data, "name", None), str):
            raise UserError(f"data is a {type(data).__name__}; it must be a kdjax.data.Dataset")
        config = config.copy_and_resolve_references()
        config.data.name = data.name
    options = typed(config)
    for side, network in (("student", options.student), ("teacher", options.teacher)):
        # A teacher may be known by its checkpoint alone.
        if network.name or side == "student":
            find_network(
                network.name,
                num_classes=1,
                width=network.width,
                dtype=network.dtype,
                options=network.options,
                where=f"config.{side}",
            )
    _check_splits(options.data, tuning)
    _check_tried(options)
    _check_changes(config)
    return options


def typed(config: Config) -> RunOptions:
    """Converts a config and checks each value by itself, but not the names of its networks.

    Raises:
      UserError: if a key is missing or unknown, or a value is wrong.
    """
    values = config.to_dict()
    steps = values.get("steps", 0)
    if "terms" in values:
        values["terms"] = _losses("config.terms", values["terms"], steps)
    if isinstance(values.get("compare"), dict) and isinstance(
        methods := values["compare"].get("methods"), Mapping
    ):
        values["compare"]["methods"] = {
            name: _losses(f"config.compare.methods.{name}", terms, steps)
            for name, terms in methods.items()
        }
    return RunOptions.of({**values, "stored": to_json(config)}, "config")


def _losses(where: str, terms: Any, steps: int) -> Mapping[str, Loss]:
    """Makes the losses of terms, and checks that the run is long enough for them."""
    if not isinstance(terms, Mapping):
        raise WrongValue(where, f"is {terms!r}; it must be a dict of terms by name")
    losses = {name: make_loss(f"{where}.{name}", entry) for name, entry in terms.items()}
    for name, loss in losses.items():
        try:
            loss.check_steps(steps)
        except ValueError as error:
            raise WrongValue(f"{where}.{name}", str(error)) from error
    return losses


def _check_splits(data: DataOptions, tuning: bool) -> None:
    if data.test_split and data.test_split == data.val_split:
        raise WrongValue(
            "config.data.test_split",
            f'is "{data.test_split}", as config.data.val_split is: settings are chosen on the '
            "validation split, so name another split, or leave it empty",
        )
    if data.test_groups and not data.test_split and not tuning:
        raise WrongValue(
            "config.data.test_groups",
            "are parts of config.data.test_split, which is empty: name that split, or leave the "
            "groups out",
        )


def _check_tried(options: RunOptions) -> None:
    """Checks that the optimizer takes what a comparison tries."""
    taken = optimizers.check_optimizer(options.optimizer)
    for tried, name in (("learning_rates", "learning_rate"), ("weight_decays", "weight_decay")):
        if getattr(options.compare, tried) and name not in taken:
            raise WrongValue(
                f"config.compare.{tried}",
                f"would change nothing: config.optimizer.{name} is set by options, or is not taken "
                f"by {options.optimizer.name} with {options.optimizer.schedule}",
            )


def change(config: Config, changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Sets other values in `config.loss` and `config.data`, as `config.compare.changes` has them.

    Args:
      config: the config.
      changes: the values by section and key.

    Raises:
      WrongValue: if a section, key, or type is wrong.
    """
    for section, values in changes.items():
        if section not in ("loss", "data") or not isinstance(values, Mapping):
            raise WrongValue(section, 'cannot be changed; give {"loss": {...}, "data": {...}}')
        for key, value in values.items():
            if key not in config[section]:
                raise WrongValue(
                    f"{section}.{key}", f"is not known: {did_you_mean(key, config[section])}"
                )
            try:
                config[section][key] = value
            except TypeError as error:
                raise WrongValue(f"{section}.{key}", str(error)) from error


def _check_changes(config: Config) -> None:
    """Checks what each method of a comparison changes."""
    for method, changes in config.compare.changes.items():
        where = f"config.compare.changes.{method}"
        if method not in config.compare.methods:
            known = did_you_mean(method, config.compare.methods)
            raise WrongValue(where, f"is no method of config.compare.methods: {known}")
        if not isinstance(changes, ConfigDict):
            raise WrongValue(where, f'is {changes!r}; give {{"loss": {{...}}, "data": {{...}}}}')
        changed = config.copy_and_resolve_references()
        try:
            change(changed, changes.to_dict())
            typed(changed)
        except WrongValue as error:
            key = error.key.removeprefix("config.")
            raise WrongValue(f"{where}.{key}", error.problem) from None


def to_json(config: Config) -> str:
    """Returns a config as a run directory stores it.

    Raises:
      UserError: if the config holds an object that JSON cannot hold.
    """
    try:
        return json.dumps(json.loads(config.to_json()), indent=2, sort_keys=True) + "\n"
    except TypeError as error:
        raise UserError(
            f"the config holds an object that cannot be stored ({error}); name it as "
            '"package.module:attribute"'
        ) from error


# Keys of earlier versions, with the default that changes nothing.
_REMOVED = {"teacher": {"int8": False, "min_agreement": 0.98}}


def from_json(text: str) -> Config:
    """Returns a stored config. Keys that are not in it have their defaults."""
    config, values = default(), json.loads(text)
    for section, removed in _REMOVED.items():
        for key, unused in removed.items():
            if values.get(section, {}).get(key) == unused:
                del values[section][key]
    with config.unlocked():
        config.update(ConfigDict(schema.with_tuples(values)))
    return config
