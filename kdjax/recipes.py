"""Configs shared by the files in `configs/`: data sets, networks, schedules, and methods."""

import importlib
import statistics
import types
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from kdjax.config import Config, default, network, term, without_terms
from kdjax.data.interface import SegmentationSet
from kdjax.distillation.methods import LOSSES
from kdjax.models.options import IMAGENET_WEIGHTS
from kdjax.models.several import split_paths
from kdjax.utils import imports
from kdjax.utils.classes import UNLABELLED
from kdjax.utils.errors import UserError
from kdjax.utils.imports import SEPARATOR, did_you_mean
from kdjax.utils.log import RunLogger


def _tables(name: str) -> dict[str, Any]:
    """Joins the tables of one name from the modules of the built-in losses."""
    modules = dict.fromkeys(path.partition(SEPARATOR)[0] for path in LOSSES.values())
    tables = (getattr(importlib.import_module(module), name, {}) for module in modules)
    return {key: value for table in tables for key, value in table.items()}


# The terms of each method, with the weights of its paper or of its authors' code.
METHODS: dict[str, dict[str, dict[str, Any]]] = {"plain": {}, **_tables("METHODS")}
# The method that another one extends. The gain of an extension is measured against that method.
BUILDS_ON: dict[str, str] = _tables("BUILDS_ON")

# The same function resolves built-in methods and a user's.
built_in = types.SimpleNamespace(**METHODS)
_NAMES = {name: f"{__name__}{SEPARATOR}built_in.{name}" for name in METHODS}


def compare_methods(config: Config, methods: Iterable[str] = METHODS) -> Config:
    """Adds the methods to compare to a config, and returns it.

    Args:
      config: the config of the students.
      methods: names in `METHODS`, such as "plain", or "package.module:attribute" of terms by name.
        Such a method has the name of the attribute.
    """
    found = {name.replace(SEPARATOR, ".").rpartition(".")[2]: terms_of(name) for name in methods}
    with config.unlocked():
        config.compare.methods = ConfigDict(found)
        config.compare.builds_on = ConfigDict(
            {name: base for name, base in BUILDS_ON.items() if {name, base} <= found.keys()}
        )
    return config


def teach(config: Config, method: str, teacher: str) -> Config:
    """Adds a method and a teacher to the config of a plain student, and returns it.

    Args:
      config: the config.
      method: a name as in `compare_methods`.
      teacher: the network checkpoint of the teacher, or the directory of its run.
    """
    with config.unlocked():
        config.terms = ConfigDict(terms_of(method))
    config.teacher.checkpoint = teacher
    return config


def teach_without_labels(config: Config, teacher: str) -> Config:
    """Makes a teacher's class scores all that a student learns from, and returns the config.

    DIST teaches: docs/results/no_labels.md compares it with pixelwise KL. Its weight is the one
    that configs/camvid_lite.py:cached chose.

    Args:
      config: the config of a plain student.
      teacher: a path as `config.teacher.checkpoint` takes it.
    """
    # There are no labels, so no crop has too much of one class.
    config.data.max_class_share = 1.0
    config.loss.cross_entropy = config.loss.auxiliary = 0.0
    config = teach(config, "dist", teacher)
    multiply_weights(config.terms, 3.0)
    return config


def multiply_weights(terms: ConfigDict, factor: float) -> None:
    """Multiplies the weights of a method's terms. A term without a weight has 1."""
    with terms.unlocked():
        for name in terms:
            options: Any = terms[name]
            options.weight = factor * options.get("weight", 1.0)


ADAPTER_RATE = 10.0  # per rate of the backbone, because adapters begin from noise
# Losses between the features of a backbone and those of its teacher.
FEATURE_LOSSES: dict[str, dict[str, Any]] = {
    "phi_s": {"loss": "standardized_l2"},
    "nfd": {"loss": "nfd"},
    "cwd": {"loss": "cwd", "weight": 50.0},
    "l2": {"loss": "l2"},
}


def match_features(
    config: Config, method: str, teacher: str, *, pairs: Mapping[str, str]
) -> Config:
    """Adds terms on features and a teacher to a config, without cross-entropy, and returns it.

    Args:
      config: the config of a backbone without class scores.
      method: a key of `FEATURE_LOSSES`.
      teacher: a path as `config.teacher.checkpoint` takes it. Each of several teachers gets terms.
      pairs: the teacher's map for each of the student's.

    Raises:
      UserError: if the method is unknown.
    """
    if method not in FEATURE_LOSSES:
        raise UserError(f'no method "{method}": {did_you_mean(method, FEATURE_LOSSES)}')
    names = split_paths(teacher)
    terms = {}
    for name in names:
        for student_map, teacher_map in pairs.items():
            read = f"{name}/{teacher_map}" if len(names) > 1 else teacher_map
            key = "_".join([*([name] if len(names) > 1 else []), student_map])
            terms[key.replace(".", "_")] = term(
                **FEATURE_LOSSES[method],
                student=student_map,
                teacher=read,
                learning_rate=ADAPTER_RATE,
            )
    with config.unlocked():
        config.terms = ConfigDict(terms)
    config.loss.cross_entropy = config.loss.auxiliary = 0.0
    config.teacher.checkpoint = teacher
    return config


def terms_of(method: str) -> dict[str, dict[str, Any]]:
    """Returns the terms of a method, given a name as in `compare_methods`."""
    return imports.resolve("method", method, _NAMES, asked_by="the recipe")


# The weights that configs/camvid_pspnet_r18.py chose on validation, if not a method's own.
CAMVID_WEIGHTS = {
    "pixelwise_kl": {"pixelwise_kl": {"weight": 3.0}},
    "cwd": {"cwd": {"weight": 9.0}},
    "pfs": {"similarities": {"weight": 30.0}, "predictions": {"weight": 3.0}},
    "pfs_similarities": {"similarities": {"weight": 3.0}},
    "pfs_predictions": {"predictions": {"weight": 3.0}},
    "fakd_cwd": {"fakd": {"weight": 9.0}},
    "skd_pairwise": {"skd_pairwise": {"weight": 0.15}},
}


def shapes() -> Config:
    """Returns a config for generated scenes: a PSPNet-R18 of width 16 teaches one of width 8."""
    config = default()
    config.steps = 800
    config.eval_every = 200
    config.data.name = "shapes"
    config.data.test_split = "test"
    config.data.batch_size = 16
    config.data.eval_batch_size = 20
    config.data.crop_size = (64, 64)
    config.data.scale_range = (0.75, 1.5)
    config.data.photometric = False
    config.teacher.update(network("pspnet_r18", width=16))
    config.student.update(network("pspnet_r18", width=8))
    config.student.auxiliary = False
    config.optimizer.learning_rate = 0.4
    # At rates that suit the plain student, large terms diverge without clipping.
    config.optimizer.gradient_clip = 1.0
    config.compare.teacher_steps = 1200
    config.compare.teacher_learning_rate = 0.4
    # The published tables are those of a live teacher.
    config.compare.cache = False
    return config


def camvid() -> Config:
    """Returns a config for CamVid at 180 x 240: a PSPNet-R18 of width 32 teaches one of width 8.

    There is no auxiliary head, and no pretrained weights. Of the test split, only the sequence
    Seq05VD does not occur in training, so it is scored separately.
    """
    config = default()
    config.steps = 500
    config.eval_every = 400
    config.data.name = "folder"
    config.data.data_dir = "data/camvid"
    config.data.test_split = "test"
    config.data.batch_size = 8
    config.data.eval_batch_size = 16
    config.data.crop_size = (160, 208)
    config.data.photometric = False
    config.teacher.update(network("pspnet_r18", width=32))
    config.student.update(network("pspnet_r18", width=8))
    config.student.auxiliary = False
    config.loss.auxiliary = 0.0
    config.optimizer.learning_rate = 0.2
    # In the first steps, a distillation term has several times the gradient of cross-entropy.
    config.optimizer.gradient_clip = 1.0
    config.compare.seeds = (0, 1, 2)
    config.compare.teacher_steps = 1600
    config.compare.teacher_learning_rate = 0.1
    with config.unlocked():
        config.data.test_groups = ConfigDict({"unseen": "Seq05VD"})
    # The published tables are those of a live teacher.
    config.compare.cache = False
    return config


def fine_tune(config: Config, *, teacher: str, student: str) -> Config:
    """Makes both networks of a config start from ImageNet weights, and returns the config.

    The optimizer is AdamW with a warm-up. The backbones have a tenth of the heads' learning rate.

    Args:
      config: the config.
      teacher: the name of a network with weights in docs/weights.md.
      student: the name of another one.
    """
    for section, name in ((config.teacher, teacher), (config.student, student)):
        section.update(network(name))
        section.backbone = IMAGENET_WEIGHTS
    config.student.auxiliary, config.loss.auxiliary = False, 0.0
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = config.compare.teacher_learning_rate = 6e-4
    config.optimizer.head_multiplier = 10.0
    config.optimizer.warmup_steps, config.optimizer.gradient_clip = 30, 1.0
    config.optimizer.weight_decay, config.optimizer.decay_norm_and_bias = 0.01, False
    return config


def compare_camvid_methods(config: Config, names: Iterable[str]) -> Config:
    """Adds the methods to compare to a config, with their weights for CamVid, and returns it."""
    methods = compare_methods(config, names).compare.methods
    methods.update({name: CAMVID_WEIGHTS[name] for name in methods if name in CAMVID_WEIGHTS})
    return config


def teacher_of(config: Config) -> Config:
    """Turns the config of a comparison into that of its teacher, and returns it.

    The teacher is trained like the students, except for what cannot apply: a backbone from scratch
    has no statistics to freeze, and a warm-up cannot be longer than the training.
    """
    with config.unlocked():
        if config.student.batch_norm == "frozen" and not config.teacher.backbone:
            config.student.batch_norm = "global"
        for key in ("name", "width", "dtype", "options"):
            config.student[key] = config.teacher[key]
        config.student.backbone = config.teacher.backbone
        config.student.checkpoint = config.teacher.name = config.teacher.backbone = ""
        config.steps = config.compare.teacher_steps
        config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, config.steps)
        config.optimizer.learning_rate = config.compare.teacher_learning_rate
    return without_terms(config)


# The plain student, and each of the four papers.
COMPARED = ("plain", "cwd", "nfd", "pfs", "fakd")

# Takes the place of a method to train the teacher of a pair.
TEACHER = "teacher"


class Training(NamedTuple):
    """The training of convolutional networks on a data set, by SGD with poly decay.

    Attributes:
      steps: the number of steps.
      batch_size: the number of images of all devices together.
      crop_size: height and width, in pixels.
      learning_rate: the learning rate at the start.
      min_learning_rate: the learning rate at the end.
      weight_decay: the weight decay of all parameters.
      train_split: the training split.
      base_size: the long and the short side before scaling. Empty for the size of the images, which
        on Cityscapes is mmsegmentation's (2048, 1024).
    """

    steps: int
    batch_size: int
    crop_size: tuple[int, int]
    learning_rate: float = 0.01
    min_learning_rate: float = 1e-4
    weight_decay: float = 5e-4
    train_split: str = "train"
    base_size: tuple[int, int] | tuple[()] = ()


TRAININGS = {
    "cityscapes": Training(80_000, 8, (512, 1024)),
    "voc2012": Training(40_000, 16, (512, 512), train_split="train_aug", base_size=(2048, 512)),
    "ade20k": Training(80_000, 16, (512, 512), base_size=(2048, 512)),
    "pascal_context": Training(
        80_000, 16, (480, 480), learning_rate=0.004, weight_decay=1e-4, base_size=(520, 520)
    ),
    "coco_stuff": Training(
        80_000,
        16,
        (512, 512),
        learning_rate=0.02,
        min_learning_rate=0.0,
        weight_decay=1e-4,
        base_size=(2048, 512),
    ),
}

# Steps and crop of SegFormer's published trainings.
SEGFORMER = {"cityscapes": (160_000, (1024, 1024)), "ade20k": (160_000, (512, 512))}
SEGFORMER_WARMUP = 1500


# The dtype of the computation, as is usual on accelerators. Parameters, statistics, softmaxes, and
# losses stay in float32.
DTYPE = "bfloat16"


class NetworkPair(NamedTuple):
    """A teacher and a student, and the names of their ImageNet backbones."""

    teacher: str
    student: str
    teacher_backbone: str
    student_backbone: str


PAIRS = {
    "pspnet_r101_r18": NetworkPair("pspnet_r101", "pspnet_r18", "r101", "r18"),
    "deeplabv3_r101_r18": NetworkPair("deeplabv3_r101", "deeplabv3_r18", "r101", "r18"),
    "pspnet_r101_mbv2": NetworkPair("pspnet_r101", "pspnet_mbv2", "r101", "mbv2"),
    "segformer_b4_b0": NetworkPair("segformer_b4", "segformer_b0", "mit_b4", "mit_b0"),
}

# Published weights of a method for a data set, which replace its defaults.
WEIGHTS: dict[tuple[str, str], dict[str, float]] = {
    ("cityscapes", "cwd"): {"weight": 5.0, "temperature": 1.0},
    ("ade20k", "cwd"): {"weight": 10.0, "temperature": 1.0},
}


def published(data: str, pair: str, method: str = "plain") -> Config:
    """Returns the config of a student on a published data set, plain or distilled, or its teacher.

    The teacher is `teachers/<set>_<network>`, and the backbone of the student is
    `pretrained/<backbone>`. `kdjax convert` writes both. A plain config holds all of `COMPARED` for
    `kdjax.compare`.

    Args:
      data: a key of `TRAININGS`.
      pair: a key of `PAIRS`.
      method: a key of `METHODS`, "package.module:attribute" as in `compare_methods`, or `TEACHER`
        for the teacher of the pair, trained like its students, if no weights of it are published.

    Raises:
      UserError: if a name is unknown. The message names the nearest one.
    """
    for name, known, what in (
        (data, TRAININGS, "data set"),
        (pair, PAIRS, "pair of networks"),
        (method, (*METHODS, TEACHER), "method"),
    ):
        own = what == "method" and SEPARATOR in name
        if name not in known and not own:
            raise UserError(f'no recipe for {what} "{name}": {did_you_mean(name, known)}')
    config, networks = _schedule(data, pair), PAIRS[pair]
    if method == TEACHER:
        config.student.update(network(networks.teacher, dtype=DTYPE))
        config.student.backbone = f"pretrained/{networks.teacher_backbone}"
        return config
    config.teacher.update(network(networks.teacher, dtype=DTYPE))
    config.student.update(network(networks.student, dtype=DTYPE))
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
    schedule, config = TRAININGS[data], default()
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
    """Sets SegFormer's optimizer (Xie et al. 2021), and its published steps and crop, if any."""
    steps, crop_size = SEGFORMER.get(config.data.name, (config.steps, config.data.crop_size))
    config.steps, config.data.crop_size = steps, crop_size
    config.student.auxiliary = False
    config.loss.auxiliary = 0.0
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate, config.optimizer.min_learning_rate = 6e-5, 0.0
    config.optimizer.poly_power = 1.0
    # The smaller of both numbers, in arithmetic that follows `--config.steps` of a shorter run.
    asked = config.get_oneway_ref("steps")
    config.optimizer.warmup_steps = (asked + SEGFORMER_WARMUP - abs(asked - SEGFORMER_WARMUP)) // 2
    config.optimizer.weight_decay, config.optimizer.decay_norm_and_bias = 0.01, False
    config.optimizer.head_multiplier = 10.0


def _weigh(terms: Any, data: str, method: str) -> None:
    for entry in terms.values():
        entry.update(WEIGHTS.get((data, method), {}))


# Choices for a user's own images.
PHOTO_EPOCHS = 25
PHOTO_STEPS = (600, 20_000)  # with fewer steps the warm-up is too large a part of the run
_PHOTO_BATCH = 8
_LARGEST_CROP = 384
_LARGE = 1024  # if a side is longer, the log recommends to make the images smaller


def fit_to_photos(config: Config, photos: SegmentationSet, data_dir: str, log: RunLogger) -> Config:
    """Chooses batch, crop, and padding of a config from a prepared folder, and returns the config.

    Args:
      config: the config, whose `data` is replaced.
      photos: the prepared set, with the splits "train" and "val".
      data_dir: the directory of the set.
      log: gets a line for each choice.
    """
    splits = {split: len(photos.records(split)) for split in photos.splits}
    config.data.name, config.data.data_dir = "folder", data_dir
    config.data.test_split = "test" if "test" in splits else ""
    config.data.batch_size = min(_PHOTO_BATCH, splits["train"])
    sizes = photos.records("train").sizes(range(splits["train"]))
    height, width = (round(statistics.median(side)) for side in zip(*sizes, strict=True))
    classes = "no labels"
    if photos.class_names != (UNLABELLED,):
        classes = f"{len(photos.class_names)} classes"
    log.info(
        f"{splits['train']} images to train on and {splits['val']} to validate, {classes}, mostly "
        f"{width} x {height} pixels"
    )
    config.data.crop_size = tuple(
        max(32, min(side, _LARGEST_CROP) // 32 * 32) for side in (height, width)
    )
    log.info(
        "unless --config.data.crop_size overrides it, crops of {1} x {0}: the image size in whole "
        "multiples of 32, at most {2}".format(*config.data.crop_size, _LARGEST_CROP)
    )
    if max(height, width) > _LARGE:
        log.info(
            f"the images are large: if the objects are still visible at {_LARGE} pixels, make the "
            "images smaller (labels by nearest neighbor) and prepare them again"
        )
    # Compiling one shape takes longer than evaluating hundreds of images.
    evaluated = [
        size
        for split in splits.keys() - {"train"}
        for size in photos.records(split).sizes(range(splits[split]))
    ]
    if (shapes := len(set(evaluated))) > 2:
        config.data.eval_pad_to = -(-max(map(max, evaluated)) // 32) * 32
        log.info(
            "unless --config.data.eval_pad_to overrides it, whole images are padded to "
            f"{config.data.eval_pad_to} pixels, because each of their {shapes} shapes would be "
            "compiled"
        )
    return config


def require_splits(photos: SegmentationSet, file: str, data_dir: str, advice: str) -> None:
    """Checks that a prepared folder has images to train on and to validate.

    Args:
      photos: the prepared set.
      file: the name of the config file, for messages.
      data_dir: the directory of the set.
      advice: the flags of `kdjax prepare` that make the splits.

    Raises:
      UserError: if a split is missing.
    """
    if absent := {"train", "val"} - {*photos.splits}:
        raise UserError(f"{file}: {data_dir} has no split {absent.pop()}; prepare it with {advice}")


def photo_steps(images: int, config: Config) -> int:
    """Returns the number of steps for a number of photos."""
    steps = round(PHOTO_EPOCHS * images / config.data.batch_size)
    return min(max(steps, PHOTO_STEPS[0]), PHOTO_STEPS[1])


def choose_steps(config: Config, images: int, log: RunLogger) -> None:
    """Sets the steps of a config, and between evaluations, by the number of photos."""
    config.steps = photo_steps(images, config)
    config.eval_every = max(100, config.steps // 4)
    fewest, most = PHOTO_STEPS
    log.info(
        f"unless --config.steps overrides it, {config.steps} steps of {config.data.batch_size} "
        f"images: {PHOTO_EPOCHS} times through all images, but {fewest} to {most} steps"
    )
