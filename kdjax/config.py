"""The configuration of a run: its sections, and what a config file begins with and may hold.

A config file (`configs/*.py`) starts from `default()`, sets what differs and returns it; any leaf
can be overridden on the command line as `--config.optimizer.learning_rate=0.02`. Each section is a
dataclass, and stands with its defaults in the room that uses it: `kdjax/data/options.py`,
`kdjax/models/options.py`, the files of `kdjax/training`, and here what belongs to a run as a whole.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from ml_collections import ConfigDict

from kdjax.data.options import DataOptions, ExtraSet
from kdjax.distillation import make_loss
from kdjax.distillation import term as term
from kdjax.models.options import IMAGENET_WEIGHTS, NetworkOptions, StudentOptions, TeacherOptions
from kdjax.models.registry import find as find_network
from kdjax.training import optimizer as optimizers
from kdjax.training.optimizer import OptimizerOptions
from kdjax.training.sharding import MeshOptions
from kdjax.training.step import LossOptions
from kdjax.utils import config_file, imports, schema
from kdjax.utils.errors import UserError
from kdjax.utils.imports import did_you_mean
from kdjax.utils.schema import Section, WrongValue, section_of

# A config as it is written and stored: a ConfigDict, of which type checkers know nothing, since its
# keys are set at run time (and locked by `default`). `read` makes typed sections of it.
Config = Any


@dataclasses.dataclass(frozen=True)
class CompareOptions(Section):
    """`config.compare`: what is compared, and what is tried before."""

    # By name, {term name: term(...)}; {} is the plain student.
    methods: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # By name, the name of the method that it is with something added: the table has what that adds.
    builds_on: Mapping[str, str] = dataclasses.field(default_factory=dict)
    seeds: Annotated[tuple[int, ...], schema.SEED] = (0,)
    # Trains the plain student a second time, with as many steps as take what the costliest method
    # takes (processor time on a CPU, else time): what is gained by teaching, and what by time.
    equal_time: bool = True
    teacher_steps: Annotated[int, schema.COUNT] = 1000
    teacher_learning_rate: Annotated[float, schema.POSITIVE] = 0.01
    # What is tried on the validation split first, and taken for all seeds: by the plain student,
    # where () is what config.optimizer has,
    learning_rates: Annotated[tuple[float, ...], schema.POSITIVE] = ()
    weight_decays: Annotated[tuple[float, ...], schema.NOT_NEGATIVE] = ()
    # and at its choice by every method, as factors of all of its terms' weights.
    weight_factors: Annotated[tuple[float, ...], schema.POSITIVE] = ()
    tuning_seeds: Annotated[tuple[int, ...], schema.SEED] = (1000,)  # not those that are reported

    def __post_init__(self) -> None:
        """Checks also that methods build on what may be a name."""
        super().__post_init__()
        for method, base in self.builds_on.items():
            schema.check_type(f"builds_on.{method}", base, "")


@dataclasses.dataclass(frozen=True)
class RunOptions(Section):
    """A whole config, with its sections."""

    seed: Annotated[int, schema.SEED] = 0
    steps: Annotated[int, schema.COUNT] = 1000
    log_every: Annotated[int, schema.COUNT] = 50
    eval_every: Annotated[int, schema.COUNT] = 500  # steps; also when a checkpoint is written
    # Steps; further checkpoints between evaluations, 0 for none.
    checkpoint_every: Annotated[int, schema.COUNT_OR_ZERO] = 500
    # Which weights become the exported student: the last, or the best on the validation split.
    export: Literal["last", "best"] = "last"
    data: DataOptions = dataclasses.field(default_factory=DataOptions)
    mesh: MeshOptions = dataclasses.field(default_factory=MeshOptions)
    student: StudentOptions = dataclasses.field(default_factory=StudentOptions)
    teacher: TeacherOptions = dataclasses.field(default_factory=TeacherOptions)
    terms: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # by name, term(...)
    loss: LossOptions = dataclasses.field(default_factory=LossOptions)
    optimizer: OptimizerOptions = dataclasses.field(default_factory=OptimizerOptions)
    compare: CompareOptions = dataclasses.field(default_factory=CompareOptions)

    def __post_init__(self) -> None:
        """Checks also what sections ask of each other."""
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


def default() -> Config:
    """Every key with its default. Locked: an unknown key is an error that names the nearest."""
    return ConfigDict(dataclasses.asdict(RunOptions())).lock()


def network(
    name: str | Callable[..., Any] = "",
    *,
    width: int = NetworkOptions.width,
    dtype: str = NetworkOptions.dtype,
    **options: Any,
) -> dict[str, Any]:
    """A network by name, as `config.student` and `config.teacher` hold it.

    Args:
      name: of `kdjax.models`, or "package.module:factory" of one of your own, or that itself.
      width: channels of the first stage; 64 is the published network.
      dtype: compute dtype.
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
    """A further set to train on, an entry of `config.data.mixture`.

    Args:
      name: the data set.
      data_dir: where it is prepared.
      split: which of its splits.
      weight: how many of its examples come for every `config.data.weight` of the main set.
      labelled: False to leave its labels out of account; its classes may then be others.
    """
    return {
        "name": name,
        "data_dir": data_dir,
        "split": split,
        "weight": weight,
        "labelled": labelled,
    }


def without_terms(config: Config) -> Config:
    """Makes a recipe that of a network that learns from labels alone.

    It gets no terms, and no images whose labels it may not read: in a batch, these would only take
    the place of others.
    """
    unread = [key for key, extra in config.data.mixture.items() if not extra.labelled]
    with config.unlocked():
        config.terms = ConfigDict()
        for key in unread:
            del config.data.mixture[key]
    return config


def checked(config: Config | str | os.PathLike[str], data: Any = None) -> Config:
    """Returns a valid copy of a config, which later changes to it leave alone.

    Args:
      config: as `default` makes it, or the path of a config file, as `--config` takes it.
      data: the data set itself, if that is given; the copy has its name.

    Raises:
      UserError: when a value makes no sense, or the file cannot be read.
    """
    path = os.fspath(config) if isinstance(config, str | os.PathLike) else None
    asked: Config = config if path is None else config_file.read(path).lock()
    try:
        validate(asked)
        # Not in `validate`: the runs of a comparison that choose settings name no test split.
        if asked.data.test_groups and not asked.data.test_split:
            raise WrongValue(
                "config.data.test_groups",
                "are parts of config.data.test_split, which is empty: name that split, or leave "
                "the groups out",
            )
    except WrongValue as error:
        if path is None:
            raise
        raise UserError(f"{config_file.place(path, error.key)}{error}") from None
    copy = asked.copy_and_resolve_references()
    if data is not None:
        if not isinstance(getattr(data, "name", None), str):
            raise UserError(f"data is a {type(data).__name__}; it must be a kdjax.data.Dataset")
        copy.data.name = data.name
    return copy


def to_json(config: Config) -> str:
    """The config as it is stored in a workdir."""
    return json.dumps(json.loads(config.to_json_best_effort()), indent=2, sort_keys=True) + "\n"


def fingerprint(config: Config) -> str:
    """Twelve hexadecimal digits that change with what is done, and not with where files lie."""
    values = json.loads(config.to_json_best_effort())
    for key in ("checkpoint", "cache", "logits"):
        del values["teacher"][key]
    del values["student"]["checkpoint"]
    for side in ("student", "teacher"):
        if values[side]["backbone"] != IMAGENET_WEIGHTS:
            del values[side]["backbone"]
        # Younger than published fingerprints, which stay as they were.
        if not values[side]["any_class_names"]:
            del values[side]["any_class_names"]
    for data in (values["data"], *values["data"]["mixture"].values()):
        del data["data_dir"]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


# Keys that earlier versions had, with the default that changes nothing.
_REMOVED = {"teacher": {"int8": False, "min_agreement": 0.98}}


def from_json(text: str) -> Config:
    """Returns the config of a workdir; keys that the file does not hold take their defaults."""
    config, values = default(), json.loads(text)
    for section, removed in _REMOVED.items():
        for key, unused in removed.items():
            if values.get(section, {}).get(key) == unused:
                del values[section][key]
    with config.unlocked():
        config.update(ConfigDict(schema.with_tuples(values)))
    return config


def read(config: Config) -> RunOptions:
    """A config as its typed sections, which later changes to it leave alone.

    Raises:
      UserError: for a value that cannot be, naming the key, and what would be right.
    """
    return RunOptions.of(config.to_dict(), "config")


def validate(config: Config) -> None:
    """Checks all that can be known of a config by itself.

    `kdjax.train`, `kdjax.compare` and the plans do so before anything else.

    Raises:
      UserError: naming the key, its value, and what would be right.
    """
    _check_keys("config", config, RunOptions)
    options = read(config)
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
    _check_terms("config.terms", options.terms, options.steps)
    data = options.data
    if data.test_split and data.test_split == data.val_split:
        raise WrongValue(
            "config.data.test_split",
            f'is "{data.test_split}", as config.data.val_split is: settings are chosen on the '
            "validation split, so name another split, or leave it empty",
        )
    for method, terms in options.compare.methods.items():
        _check_terms(f"config.compare.methods.{method}", terms, options.steps)
    taken = optimizers.check_optimizer(options.optimizer)
    for tried, name in (("learning_rates", "learning_rate"), ("weight_decays", "weight_decay")):
        if getattr(options.compare, tried) and name not in taken:
            raise WrongValue(
                f"config.compare.{tried}",
                f"would change nothing: config.optimizer.{name} is set by options, or is not taken "
                f"by {options.optimizer.name} with {options.optimizer.schedule}",
            )


def _check_keys(where: str, section: Any, kind: type[Section]) -> None:
    """Requires the keys of a section and of those in it, and no others."""
    nested = {field.name: section_of(field.type) for field in dataclasses.fields(kind)}
    known = sorted(nested)
    if not isinstance(section, ConfigDict):
        raise WrongValue(
            where,
            f"is of type {type(section).__name__}; it must be as in kdjax.config.default(), with "
            f"{', '.join(known)}",
        )
    for key in known:
        if key not in section:
            raise WrongValue(f"{where}.{key}", "is missing; begin with kdjax.config.default()")
    for key in section:
        if key not in nested:
            raise WrongValue(f"{where}.{key}", f"is not known: {did_you_mean(key, known)}")
        if inner := nested[key]:
            _check_keys(f"{where}.{key}", section[key], inner)


def _check_terms(where: str, terms: Any, steps: int) -> None:
    if not isinstance(terms, Mapping):
        raise WrongValue(where, f"is {terms!r}; it must be a dict of terms by name")
    for name, entry in terms.items():
        loss = make_loss(f"{where}.{name}", entry)
        try:
            loss.check_steps(steps)
        except ValueError as error:
            raise WrongValue(f"{where}.{name}", str(error)) from error
