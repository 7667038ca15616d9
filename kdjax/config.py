"""The configuration of a run: every key with its default, and how a command reads it.

A config file (`configs/*.py`) starts from `default()`, sets what differs and returns it; any leaf
can be overridden on the command line as `--config.optimizer.learning_rate=0.02`.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from kdjax import config_file, names, ranges
from kdjax.distillation import make_loss
from kdjax.distillation import term as term
from kdjax.errors import UserError
from kdjax.models import DTYPES
from kdjax.models.registry import find as find_network
from kdjax.names import nearest
from kdjax.ranges import Range, WrongValue
from kdjax.training import optimizer as optimizers

# What type checkers know of a config: its keys are set at run time (and locked by `default`).
Config = Any


def network(
    name: str | Callable[..., Any] = "",
    *,
    width: int = 64,
    dtype: str = "float32",
    **options: Any,
) -> dict[str, Any]:
    """A network by name, as `config.student` and `config.teacher` hold it.

    Args:
      name: of `kdjax.models`, or "package.module:factory" of one of your own, or that itself.
      width: channels of the first stage; 64 is the published network.
      dtype: compute dtype.
      **options: further arguments of the factory.
    """
    named = names.name_of("network", name)
    return {"name": named, "width": width, "dtype": dtype, "options": options}


def extra_set(
    name: str,
    *,
    data_dir: str = "data",
    split: str = "train",
    weight: int = 1,
    labelled: bool = True,
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


def default() -> Config:
    """Every key with its default. Locked: an unknown key is an error that names the nearest."""
    config: Config = ConfigDict()
    config.seed = 0
    config.steps = 1000
    config.log_every = 50
    config.eval_every = 500  # steps; also when a checkpoint is written
    config.checkpoint_every = 500  # steps; further checkpoints between evaluations, 0 for none
    config.export = "last"  # which weights become the exported student: "last" or "best" on val

    config.data = ConfigDict()
    # A prepared set, or "package.module:attribute" of a TFDS builder class, of a kdjax.data.Dataset
    # or of a function that returns one.
    config.data.name = "shapes"
    config.data.options = ConfigDict()  # further arguments of such a function
    config.data.data_dir = "data"
    config.data.train_split = "train"
    config.data.val_split = "val"
    config.data.test_split = ""  # evaluated once, at the end, where named
    config.data.test_groups = ConfigDict()  # name -> regular expression on the examples' names
    config.data.batch_size = 16  # of all devices together
    config.data.eval_batch_size = 16
    config.data.crop_size = (96, 96)
    config.data.scale_range = (0.5, 2.0)
    # Long and short side of what is scaled, as (2048, 512) in mmsegmentation's configs; () for each
    # image's own size.
    config.data.base_size = ()
    config.data.max_class_share = 0.75  # of a crop; 1.0 accepts every crop
    config.data.flip = True
    config.data.photometric = True
    config.data.cache = "auto"  # of decoded examples: "none", "host" or "device" memory
    config.data.eval_pad_to = 1  # pads whole images to a multiple of this; 1 leaves them exact
    config.data.weight = 1  # of this set in a mixture
    config.data.mixture = ConfigDict()  # label -> extra_set(...), trained on beside this set

    config.mesh = ConfigDict()  # devices along each axis; -1 for all that remain
    config.mesh.data = -1  # images of a batch
    config.mesh.fsdp = 1  # images, and weights and optimizer state with them
    config.mesh.space = 1  # rows of each image

    # One of kdjax's, or "package.module:factory"; `options` are further arguments of it.
    config.student = ConfigDict(network("pspnet_r18"))
    config.student.auxiliary = True
    config.student.batch_norm = "global"  # statistics of the whole batch, or "per_device"
    config.student.checkpoint = ""  # weights to start from, of the whole network
    config.student.backbone = ""  # or of its backbone alone, from any network that has the same

    config.teacher = ConfigDict(network())
    # A network checkpoint, the workdir of a finished run, or "package.module:attribute" of a
    # network that brings its trained weights, or of a function that returns one.
    config.teacher.checkpoint = ""
    config.teacher.view = "student"  # of a crop: what the student sees, or "clean" colours
    # A directory on disk for the teacher's scores on the whole training images, at scale 1 and in
    # their own colours. Made at first use; no step runs the teacher then. Empty: it runs.
    config.teacher.cache = ""
    # A directory of the class scores of a teacher that ran elsewhere, a .npy or .safetensors file
    # for every training image: the cache is made from these, and no teacher network is needed.
    config.teacher.logits = ""
    config.teacher.cache_classes = 0  # highest scores kept of each cell, beside one for the rest
    config.teacher.min_miou = 0.0  # refuse a teacher below this on the validation split

    config.terms = ConfigDict()  # name -> term(...)

    config.loss = ConfigDict()
    config.loss.cross_entropy = 1.0
    config.loss.auxiliary = 0.4  # weight of the auxiliary head's cross-entropy
    # The pixels over which both are averaged: "labelled", or "all", where ignored ones count as 0,
    # as mmsegmentation does.
    config.loss.mean_over = "labelled"

    config.optimizer = ConfigDict()
    # "sgd", "adamw", or "package.module:factory" of one that takes learning_rate, as "optax:lion".
    config.optimizer.name = "sgd"
    config.optimizer.options = ConfigDict()  # further arguments of it
    config.optimizer.learning_rate = 0.01
    # "poly", or "package.module:factory" of a function from step to rate, called with learning_rate
    # and steps, or what Optax calls them, as "optax:cosine_decay_schedule".
    config.optimizer.schedule = "poly"
    config.optimizer.schedule_options = ConfigDict()  # further arguments of it
    config.optimizer.min_learning_rate = 0.0  # of poly
    config.optimizer.poly_power = 0.9  # of poly
    config.optimizer.warmup_steps = 0  # linear, of every schedule
    config.optimizer.momentum = 0.9  # of sgd, and of others that have no default for it
    config.optimizer.weight_decay = 5e-4  # of optimizers that take it
    config.optimizer.decay_norm_and_bias = True  # as PyTorch's SGD does; else kernels alone
    # Regular expressions on the paths of parameters, as "student/backbone/stem/conv/kernel" or
    # "terms/cwd/adapter/0/kernel": which do not decay,
    config.optimizer.no_decay = ()
    # and (expression, multiplier) of the learning rate; 0 keeps parameters as they are.
    config.optimizer.rates = ()
    config.optimizer.head_multiplier = 1.0  # the same of heads and adapters
    config.optimizer.gradient_clip = 0.0  # global norm; 0 for none
    # Micro-batches per step. Their gradients count alike, each that of its own mean over labelled
    # pixels: where some have more ignored pixels, these count less than in one large batch.
    config.optimizer.accumulate = 1
    config.optimizer.ema_decay = 0.0  # 0 for no moving average

    config.compare = ConfigDict()
    config.compare.methods = ConfigDict()  # name -> {term name: term(...)}; {} is the plain student
    # name -> name of the method that it is with something added: the table has what that adds.
    config.compare.builds_on = ConfigDict()
    config.compare.seeds = (0,)
    # Trains the plain student a second time, with as many steps as take what the costliest method
    # takes (processor time on a CPU, else time): what is gained by teaching, and what by time.
    config.compare.equal_time = True
    config.compare.teacher_steps = 1000
    config.compare.teacher_learning_rate = 0.01
    # What is tried on the validation split first, and taken for all seeds: by the plain student,
    config.compare.learning_rates = ()  # () for that of config.optimizer
    config.compare.weight_decays = ()
    # and at its choice by every method, as factors of all of its terms' weights.
    config.compare.weight_factors = ()
    config.compare.tuning_seeds = (1000,)  # not those that are reported
    return config.lock()


def define_flag() -> flags.FlagHolder[Any]:
    """Defines `--config`, with `--config.key=value` for every leaf."""
    holder = config_flags.DEFINE_config_file(
        "config",
        None,
        "A config file, or one of kdjax's own, as quickstart.py or published.py:SET,PAIR,METHOD.",
        lock_config=True,
    )
    flags.FLAGS["config"].parser = config_file.Parser()
    return holder


def from_flag(flag: flags.FlagHolder[Any]) -> Config:
    """Returns the config that the flags ask for.

    Raises:
      UserError: when the flag is missing, or a value makes no sense; then naming the line of the
        file that sets it, if no flag does.
    """
    if flag.value is None:
        raise UserError("--config is missing, as in --config configs/quickstart.py")
    parsed: Any = flags.FLAGS["config"]
    named = parsed.config_filename.partition(":")[0]
    if (found := config_file.find(named)) != named:
        # Who meant a file of their own is not to learn it from the results.
        print(f"config: there is no {named} here, so {found}", flush=True)
    try:
        validate(flag.value)
    except WrongValue as error:
        raise config_file.located(error) from None
    return flag.value


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
    del values["student"]["checkpoint"], values["student"]["backbone"]
    for data in (values["data"], *values["data"]["mixture"].values()):
        del data["data_dir"]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def from_json(text: str) -> Config:
    """The config of a workdir; keys that the file does not hold take their defaults."""
    config = default()
    with config.unlocked():
        config.update(ConfigDict(ranges.with_tuples(json.loads(text))))
    return config


# The range of every number of a config, or of every number in a tuple.
NUMBERS: Mapping[str, Range] = MappingProxyType(
    {
        "seed": ranges.SEED,
        "steps": ranges.COUNT,
        "log_every": ranges.COUNT,
        "eval_every": ranges.COUNT,
        "checkpoint_every": ranges.COUNT_OR_ZERO,
        "data.batch_size": ranges.COUNT,
        "data.eval_batch_size": ranges.COUNT,
        "data.crop_size": ranges.COUNT,
        "data.scale_range": ranges.POSITIVE,
        "data.base_size": ranges.COUNT,
        "data.max_class_share": ranges.SHARE_ABOVE_ZERO,
        "data.eval_pad_to": ranges.COUNT,
        "data.weight": ranges.COUNT,
        "mesh.data": ranges.DEVICES,
        "mesh.fsdp": ranges.DEVICES,
        "mesh.space": ranges.DEVICES,
        "student.width": ranges.WIDTH,
        "teacher.width": ranges.WIDTH,
        "teacher.cache_classes": ranges.COUNT_OR_ZERO,
        "teacher.min_miou": ranges.SHARE,
        "loss.cross_entropy": ranges.NOT_NEGATIVE,
        "loss.auxiliary": ranges.NOT_NEGATIVE,
        "optimizer.learning_rate": ranges.POSITIVE,
        "optimizer.min_learning_rate": ranges.NOT_NEGATIVE,
        "optimizer.poly_power": ranges.NOT_NEGATIVE,
        "optimizer.warmup_steps": ranges.COUNT_OR_ZERO,
        "optimizer.momentum": ranges.SHARE_BELOW_ONE,
        "optimizer.weight_decay": ranges.NOT_NEGATIVE,
        "optimizer.gradient_clip": ranges.NOT_NEGATIVE,
        "optimizer.head_multiplier": ranges.POSITIVE,
        "optimizer.accumulate": ranges.COUNT,
        "optimizer.ema_decay": ranges.SHARE_BELOW_ONE,
        "compare.seeds": ranges.SEED,
        "compare.teacher_steps": ranges.COUNT,
        "compare.teacher_learning_rate": ranges.POSITIVE,
        "compare.learning_rates": ranges.POSITIVE,
        "compare.weight_decays": ranges.NOT_NEGATIVE,
        "compare.weight_factors": ranges.POSITIVE,
        "compare.tuning_seeds": ranges.SEED,
    }
)
# What a text of a config may be.
CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "export": ("last", "best"),
        "data.cache": ("none", "host", "device", "auto"),
        "student.batch_norm": ("global", "per_device"),
        "loss.mean_over": ("labelled", "all"),
        "student.dtype": DTYPES,
        "teacher.dtype": DTYPES,
        "teacher.view": ("student", "clean"),
    }
)
# Regular expressions on the paths of parameters, alone or each with a number.
PATTERNS = ("optimizer.no_decay", "optimizer.rates")
# Sections whose keys are names that the user gives.
NAMED = (
    "config.data.options",
    "config.data.test_groups",
    "config.data.mixture",
    "config.student.options",
    "config.teacher.options",
    "config.terms",
    "config.optimizer.options",
    "config.optimizer.schedule_options",
    "config.compare.methods",
    "config.compare.builds_on",
)


def check_seed(key: str, seed: Any) -> None:
    """Requires a seed that a run can have.

    Args:
      key: what the message calls it, as `--seeds`.
      seed: the seed.

    Raises:
      UserError: naming the key, the seed, and which there are.
    """
    ranges.check_number(key, seed, ranges.SEED)


def validate(config: Config) -> None:
    """Checks all that can be known of a config by itself.

    `kdjax.train`, `kdjax.compare` and the plans do so before anything else.

    Raises:
      UserError: naming the key, its value, and what would be right.
    """
    _check_section("config", config, default())
    for key, allowed in NUMBERS.items():
        _check_numbers(f"config.{key}", _value(config, key), allowed)
    for key, choices in CHOICES.items():
        if (value := _value(config, key)) not in choices:
            raise WrongValue(f"config.{key}", f'is "{value}"; it must be {" or ".join(choices)}')
    for side in ("student", "teacher"):
        name = _value(config, f"{side}.name")
        # A teacher may be known by its checkpoint alone.
        if name or side == "student":
            settings = {key: _value(config, f"{side}.{key}") for key in ("width", "dtype")}
            options = _value(config, f"{side}.options").to_dict()
            find_network(name, num_classes=1, options=options, where=f"config.{side}", **settings)
    _check_data(config.data)
    _check_terms("config.terms", config.terms)
    for method, terms in config.compare.methods.items():
        _check_terms(f"config.compare.methods.{method}", terms)
    for method, base in config.compare.builds_on.items():
        ranges.check_type(f"config.compare.builds_on.{method}", base, "")
    if config.student.checkpoint and config.student.backbone:
        raise WrongValue(
            "config.student.checkpoint",
            "and config.student.backbone are both set; the former brings a backbone with it, so "
            "leave one of them empty",
        )
    if config.teacher.logits:
        _check_logits(config.teacher)
    _check_optimizer(config)
    if config.optimizer.warmup_steps > config.steps:
        raise WrongValue(
            "config.optimizer.warmup_steps",
            f"is {config.optimizer.warmup_steps}; it must be at most config.steps, {config.steps}",
        )
    if config.data.batch_size % config.optimizer.accumulate:
        raise WrongValue(
            "config.data.batch_size",
            f"{config.data.batch_size} cannot be cut into {config.optimizer.accumulate} equal "
            "micro-batches (config.optimizer.accumulate)",
        )


def _check_section(where: str, section: Any, like: Config) -> None:
    """Requires the keys that `like` has, and values of their types."""
    if not isinstance(section, ConfigDict):
        raise WrongValue(
            where,
            f"is of type {type(section).__name__}; it must be as in kdjax.config.default(), with "
            f"{', '.join(like)}",
        )
    for key in like:
        if key not in section:
            raise WrongValue(f"{where}.{key}", "is missing; begin with kdjax.config.default()")
    for key, value in section.items():
        if key not in like:
            raise WrongValue(f"{where}.{key}", f"is not known: {nearest(key, like)}")
        if f"{where}.{key}" in NAMED:
            if not isinstance(value, ConfigDict):
                raise WrongValue(f"{where}.{key}", f"is {value!r}; it must be a dict by name")
        elif isinstance(like[key], ConfigDict):
            _check_section(f"{where}.{key}", value, like[key])
        else:
            ranges.check_type(f"{where}.{key}", value, like[key])


def _check_numbers(key: str, value: Any, allowed: Range) -> None:
    if not isinstance(value, tuple):
        ranges.check_number(key, value, allowed)
        return
    for number in value:
        ranges.check_number(key, number, allowed)


def _check_terms(where: str, terms: Any) -> None:
    if not isinstance(terms, ConfigDict):
        raise WrongValue(where, f"is {terms!r}; it must be a dict of terms by name")
    for name, entry in terms.items():
        make_loss(f"{where}.{name}", entry)


def _check_logits(teacher: Config) -> None:
    key = "config.teacher.logits"
    if teacher.checkpoint:
        raise WrongValue(
            key, "and config.teacher.checkpoint are both set; only one teaches, so leave one empty"
        )
    if not teacher.cache:
        raise WrongValue(
            key, "is set: name the directory that is made from these files in config.teacher.cache"
        )
    if teacher.min_miou:
        raise WrongValue(
            "config.teacher.min_miou",
            f"cannot be asked of {key}, which says nothing of the validation split; set it to 0",
        )


def _check_optimizer(config: Config) -> None:
    key = "config.optimizer.no_decay"
    for expression in config.optimizer.no_decay:
        _check_expression(key, expression)
    key = "config.optimizer.rates"
    for pair in config.optimizer.rates:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise WrongValue(key, f'holds {pair!r}; it must hold pairs, as (("/head/", 10.0),)')
        _check_expression(key, pair[0])
        ranges.check_number(key, pair[1], ranges.NOT_NEGATIVE)
    read = optimizers.check(config.optimizer)
    for tried, name in (("learning_rates", "learning_rate"), ("weight_decays", "weight_decay")):
        if config.compare[tried] and name not in read:
            raise WrongValue(
                f"config.compare.{tried}",
                f"would change nothing: config.optimizer.{name} is set by options, or is not taken "
                f"by {config.optimizer.name} with {config.optimizer.schedule}",
            )


def _check_expression(key: str, expression: Any) -> None:
    ranges.check_type(key, expression, "")
    try:
        re.compile(expression)
    except re.error as error:
        raise WrongValue(
            key, f'is "{expression}", which is no regular expression: {error}'
        ) from error


def _check_data(data: Config) -> None:
    for key in ("crop_size", "scale_range", "base_size"):
        if len(data[key]) != 2 and not (key == "base_size" and not data[key]):
            raise WrongValue(
                f"config.data.{key}", f"is {data[key]}; it must be two positive numbers"
            )
    if data.base_size and data.base_size[0] < data.base_size[1]:
        raise WrongValue("config.data.base_size", f"is {data.base_size}; the long side is first")
    low, high = data.scale_range
    if low > high:
        raise WrongValue("config.data.scale_range", f"is {low, high}; the first must not be larger")
    for name, expression in data.test_groups.items():
        key = f"config.data.test_groups.{name}"
        _check_expression(key, expression)
    for label, entry in data.mixture.items():
        key, like = f"config.data.mixture.{label}", extra_set("")
        if not isinstance(entry, ConfigDict) or set(entry) != set(like):
            held = ", ".join(entry) if isinstance(entry, ConfigDict) else repr(entry)
            raise WrongValue(
                key,
                f"holds {held or 'nothing'}; it must hold {', '.join(like)}, as "
                "kdjax.config.extra_set makes it",
            )
        _check_section(key, entry, ConfigDict(like))
        ranges.check_number(f"{key}.weight", entry.weight, ranges.COUNT)


def _value(config: Config, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config
