"""Recipes for the published sets: the pairs of networks that papers compare, at their schedules.

docs/recipes.md says where each number comes from.
"""

from typing import Any, NamedTuple

from kdjax.config import Config, default, network
from kdjax.errors import UserError
from kdjax.names import SEPARATOR
from kdjax.recipes.methods import METHODS, compare_methods, teach
from kdjax.suggest import nearest

# Plain, and each of the four papers.
COMPARED = ("plain", "cwd", "nfd", "pfs", "fakd")

# Stands in place of a method where the pair's teacher is what is trained.
TEACHER = "teacher"


class Schedule(NamedTuple):
    """How convolutional students are trained on a set, by SGD with poly decay.

    Attributes:
      steps: in all.
      batch_size: of all devices together.
      crop_size: height and width, in pixels.
      learning_rate: at the start.
      min_learning_rate: at the end.
      weight_decay: of all parameters.
      train_split: what is trained on.
      base_size: long and short side of what is scaled; empty for the images' own, which on
        Cityscapes are mmsegmentation's (2048, 1024).
    """

    steps: int
    batch_size: int
    crop_size: tuple[int, int]
    learning_rate: float = 0.01
    min_learning_rate: float = 1e-4
    weight_decay: float = 5e-4
    train_split: str = "train"
    base_size: tuple[int, int] | tuple[()] = ()


SCHEDULES = {
    "cityscapes": Schedule(80_000, 8, (512, 1024)),
    "voc2012": Schedule(40_000, 16, (512, 512), train_split="train_aug", base_size=(2048, 512)),
    "ade20k": Schedule(80_000, 16, (512, 512), base_size=(2048, 512)),
    "pascal_context": Schedule(
        80_000, 16, (480, 480), learning_rate=0.004, weight_decay=1e-4, base_size=(520, 520)
    ),
    "coco_stuff": Schedule(
        80_000,
        16,
        (512, 512),
        learning_rate=0.02,
        min_learning_rate=0.0,
        weight_decay=1e-4,
        base_size=(2048, 512),
    ),
}

# SegFormer's own schedule, where it was published for a set: steps and crop.
SEGFORMER = {"cityscapes": (160_000, (1024, 1024)), "ade20k": (160_000, (512, 512))}
SEGFORMER_WARMUP = 1500


class Pair(NamedTuple):
    """A teacher and a student, and what their backbones were trained on ImageNet as."""

    teacher: str
    student: str
    teacher_backbone: str
    student_backbone: str


PAIRS = {
    "pspnet_r101_r18": Pair("pspnet_r101", "pspnet_r18", "r101", "r18"),
    "deeplabv3_r101_r18": Pair("deeplabv3_r101", "deeplabv3_r18", "r101", "r18"),
    "pspnet_r101_mbv2": Pair("pspnet_r101", "pspnet_mbv2", "r101", "mbv2"),
    "segformer_b4_b0": Pair("segformer_b4", "segformer_b0", "mit_b4", "mit_b0"),
}

# Where a method's weights were published with a set's schedule, in place of its defaults.
WEIGHTS: dict[tuple[str, str], dict[str, float]] = {
    ("cityscapes", "cwd"): {"weight": 5.0, "temperature": 1.0},
    ("ade20k", "cwd"): {"weight": 10.0, "temperature": 1.0},
}


def published(data: str, pair: str, method: str = "plain") -> Config:
    """A student on a published set, plain or taught, or its teacher.

    The teacher is `teachers/<set>_<network>` and the student's backbone `pretrained/<backbone>`,
    both written by `kdjax.convert`. A plain recipe has all of `COMPARED` for `kdjax.compare`.

    Args:
      data: one of `SCHEDULES`.
      pair: one of `PAIRS`.
      method: one of `METHODS`, or "package.module:attribute" as `teach` takes it; `TEACHER` for the
        pair's teacher, trained as its students are, where no weights of it are published.

    Raises:
      UserError: for a name that there is not, with the nearest.
    """
    for name, known, what in (
        (data, SCHEDULES, "data set"),
        (pair, PAIRS, "pair of networks"),
        (method, (*METHODS, TEACHER), "method"),
    ):
        own = what == "method" and SEPARATOR in name
        if name not in known and not own:
            raise UserError(f'no recipe for {what} "{name}": {nearest(name, known)}')
    config, networks = _schedule(data, pair), PAIRS[pair]
    if method == TEACHER:
        config.student.update(network(networks.teacher))
        config.student.backbone = f"pretrained/{networks.teacher_backbone}"
        return config
    config.teacher.update(network(networks.teacher))
    config.student.update(network(networks.student))
    config.student.backbone = f"pretrained/{networks.student_backbone}"
    checkpoint = f"teachers/{data}_{networks.teacher}"
    if method != "plain":
        teach(config, method, checkpoint)
        _weigh(config.terms, data, method)
        return config
    config.teacher.checkpoint = checkpoint
    compare_methods(config, COMPARED)
    for name in COMPARED:
        _weigh(config.compare.methods[name], data, name)
    return config


def _schedule(data: str, pair: str) -> Config:
    schedule, config = SCHEDULES[data], default()
    config.steps, config.eval_every = schedule.steps, 8000
    config.data.name = data
    config.data.train_split = schedule.train_split
    config.data.batch_size = config.data.eval_batch_size = schedule.batch_size
    config.data.crop_size = schedule.crop_size
    config.data.base_size = schedule.base_size
    config.optimizer.learning_rate = schedule.learning_rate
    config.optimizer.min_learning_rate = schedule.min_learning_rate
    config.optimizer.weight_decay = schedule.weight_decay
    if pair.startswith("segformer"):
        _as_segformer(config)
    return config


def _as_segformer(config: Config) -> None:
    """SegFormer's optimizer (Xie et al. 2021), and its schedule where it has one for the set."""
    steps, crop_size = SEGFORMER.get(config.data.name, (config.steps, config.data.crop_size))
    config.steps, config.data.crop_size = steps, crop_size
    config.student.auxiliary = False
    config.loss.auxiliary = 0.0
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate, config.optimizer.min_learning_rate = 6e-5, 0.0
    config.optimizer.poly_power = 1.0
    # The smaller of the two, as arithmetic that also follows `--config.steps` of a shorter run.
    asked = config.get_oneway_ref("steps")
    config.optimizer.warmup_steps = (asked + SEGFORMER_WARMUP - abs(asked - SEGFORMER_WARMUP)) // 2
    config.optimizer.weight_decay, config.optimizer.decay_norm_and_bias = 0.01, False
    config.optimizer.head_multiplier = 10.0


def _weigh(terms: Any, data: str, method: str) -> None:
    for entry in terms.values():
        entry.update(WEIGHTS.get((data, method), {}))
