"""The configuration of a run: every key with its default, and how a command reads it.

A config file (`configs/*.py`) starts from `default()`, sets what differs and returns it; any leaf
can be overridden on the command line as `--config.optimizer.learning_rate=0.02`.
"""

import hashlib
import json
import runpy
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from kdjax.distillation import entries as term_entries
from kdjax.errors import UserError

# What type checkers know of a config: its keys are set at run time (and locked by `default`).
Config = Any


def network(name: str = "", *, width: int = 64, dtype: str = "float32") -> dict[str, Any]:
    """A network by its name in `kdjax.models`; a width of 64 is the published one."""
    return {"name": name, "width": width, "dtype": dtype}


def term(loss: str, **values: Any) -> dict[str, Any]:
    """A distillation term: the defaults of `loss`, changed by `values`.

    Args:
      loss: a name in `kdjax.distillation.catalogue.LOSSES`.
      **values: `student` and `teacher` (which output or feature of each side), `weight`,
        `schedule` ("constant", "linear" or "cosine", from `weight` to `final_weight`), `resize`
        (which side is resized to the other's size where they differ: "teacher" or "student"), and
        the options of the loss, as `temperature`.
    """
    return {**term_entries.defaults(loss), **values}


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
    config.data.name = "shapes"
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

    config.student = ConfigDict(network("pspnet_r18"))
    config.student.auxiliary = True
    config.student.batch_norm = "global"  # statistics of the whole batch, or "per_device"
    config.student.checkpoint = ""  # weights to start from, of the whole network
    config.student.backbone = ""  # or of its backbone alone, from any network that has the same

    config.teacher = ConfigDict(network())
    config.teacher.checkpoint = ""  # a network checkpoint, or the workdir of a finished run
    config.teacher.view = "student"  # of a crop: what the student sees, or "clean" colours
    # A directory on disk for the teacher's scores on the whole training images, at scale 1 and in
    # their own colours. Made at first use; no step runs the teacher then. Empty: it runs.
    config.teacher.cache = ""
    config.teacher.cache_classes = 0  # highest scores kept of each cell, beside one for the rest
    config.teacher.min_miou = 0.0  # refuse a teacher below this on the validation split

    config.terms = ConfigDict()  # name -> term(...)

    config.loss = ConfigDict()
    config.loss.cross_entropy = 1.0
    config.loss.auxiliary = 0.4  # weight of the auxiliary head's cross-entropy

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"  # or "adamw"
    config.optimizer.learning_rate = 0.01
    config.optimizer.min_learning_rate = 0.0
    config.optimizer.poly_power = 0.9
    config.optimizer.warmup_steps = 0
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    config.optimizer.decay_norm_and_bias = True  # as PyTorch's SGD does
    config.optimizer.gradient_clip = 0.0  # global norm; 0 for none
    config.optimizer.head_multiplier = 1.0  # learning rate of heads and adapters
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
    return config_flags.DEFINE_config_file(
        "config", None, "A config file, as configs/quickstart.py.", lock_config=True
    )


def from_flag(flag: flags.FlagHolder[Any]) -> Config:
    """Returns the config that the flags ask for.

    Raises:
      UserError: when the flag is missing, the file cannot be read, or a value makes no sense.
    """
    if flag.value is None:
        raise UserError("--config is missing, as in --config configs/quickstart.py")
    if not isinstance(flag.value, ConfigDict):
        path = flags.FLAGS["config"].config_filename  # type: ignore[attr-defined]
        raise UserError(_why_unreadable(path))
    validate(flag.value)
    return flag.value


def _why_unreadable(path: str) -> str:
    try:
        runpy.run_path(path)["get_config"]()
    except FileNotFoundError:
        return f"{path}: no such config file"
    except KeyError as error:
        if error.args == ("get_config",):
            return f"{path}: defines no get_config()"
        return f"{path}: {error.args[0]}"
    except Exception as error:
        return f"{path}: {type(error).__name__}: {error}"
    return f"{path}: get_config() returned no ConfigDict"


def to_json(config: Config) -> str:
    """The config as it is stored in a workdir."""
    return json.dumps(json.loads(config.to_json_best_effort()), indent=2, sort_keys=True) + "\n"


def fingerprint(config: Config) -> str:
    """Twelve hexadecimal digits that change with what is done, and not with where files lie."""
    values = json.loads(config.to_json_best_effort())
    del values["teacher"]["checkpoint"], values["teacher"]["cache"]
    del values["student"]["checkpoint"], values["student"]["backbone"]
    for data in (values["data"], *values["data"]["mixture"].values()):
        del data["data_dir"]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def from_json(text: str) -> Config:
    """The config of a workdir; keys that the file does not hold take their defaults."""
    config = default()
    stored = json.loads(text)
    _tuples(stored)
    with config.unlocked():
        config.update(ConfigDict(stored))
    return config


def _tuples(tree: dict[str, Any]) -> None:
    for key, value in tree.items():
        if isinstance(value, list):
            tree[key] = tuple(value)
        elif isinstance(value, dict):
            _tuples(value)


def validate(config: Config) -> None:
    """Checks the values that no type can check.

    Raises:
      UserError: naming the key, its value, and what would be right.
    """
    positive = {
        "steps": config.steps,
        "log_every": config.log_every,
        "eval_every": config.eval_every,
        "data.batch_size": config.data.batch_size,
        "data.eval_batch_size": config.data.eval_batch_size,
        "data.eval_pad_to": config.data.eval_pad_to,
        "data.weight": config.data.weight,
        "optimizer.learning_rate": config.optimizer.learning_rate,
        "optimizer.accumulate": config.optimizer.accumulate,
    }
    for label, entry in config.data.mixture.items():
        wanted = extra_set("")
        if set(entry) != set(wanted):
            raise UserError(
                f"config.data.mixture.{label} holds {', '.join(entry) or 'nothing'}; it must hold "
                f"{', '.join(wanted)}, as kdjax.config.extra_set makes it"
            )
        positive[f"data.mixture.{label}.weight"] = entry.weight
    for key, value in positive.items():
        if value <= 0:
            raise UserError(f"config.{key} is {value}; it must be positive")
    if config.teacher.cache_classes < 0:
        raise UserError(
            f"config.teacher.cache_classes is {config.teacher.cache_classes}; it must be 0, which "
            "keeps all, or positive"
        )
    choices = {
        "export": (config.export, ("last", "best")),
        "student.batch_norm": (config.student.batch_norm, ("global", "per_device")),
        "optimizer.name": (config.optimizer.name, ("sgd", "adamw")),
        "data.cache": (config.data.cache, ("none", "host", "device", "auto")),
        "teacher.view": (config.teacher.view, ("student", "clean")),
    }
    for key, (value, allowed) in choices.items():
        if value not in allowed:
            raise UserError(f'config.{key} is "{value}"; it must be {" or ".join(allowed)}')
    for key in ("learning_rates", "weight_factors"):
        if any(value <= 0 for value in config.compare[key]):
            raise UserError(f"config.compare.{key} is {config.compare[key]}; all must be positive")
    pairs = {key: config.data[key] for key in ("crop_size", "scale_range", "base_size")}
    if not pairs["base_size"]:
        del pairs["base_size"]
    for key, value in pairs.items():
        if len(value) != 2 or min(value) <= 0:
            raise UserError(f"config.data.{key} is {value}; it must be two positive numbers")
    if config.data.base_size and config.data.base_size[0] < config.data.base_size[1]:
        raise UserError(f"config.data.base_size is {config.data.base_size}; the long side is first")
    if config.student.checkpoint and config.student.backbone:
        raise UserError(
            "config.student.checkpoint and config.student.backbone are both set; the former "
            "brings a backbone with it, so leave one of them empty"
        )
    low, high = config.data.scale_range
    if low > high:
        raise UserError(f"config.data.scale_range is {low, high}; the first must not be larger")
    if config.checkpoint_every < 0:
        raise UserError(
            f"config.checkpoint_every is {config.checkpoint_every}; it must be 0 or more"
        )
    if not 0 <= config.optimizer.ema_decay < 1:
        raise UserError(f"config.optimizer.ema_decay is {config.optimizer.ema_decay}; use 0 to 1")
    if config.data.batch_size % config.optimizer.accumulate:
        raise UserError(
            f"config.data.batch_size {config.data.batch_size} cannot be cut into "
            f"{config.optimizer.accumulate} equal micro-batches (config.optimizer.accumulate)"
        )
