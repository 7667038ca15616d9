"""The config sections `student` and `teacher`."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from kdjax.utils import schema
from kdjax.utils.errors import WrongValue
from kdjax.utils.schema import Section

# The type in which a network computes. Its parameters are float32.
Dtype = Literal["float32", "bfloat16"]
DTYPES: tuple[str, ...] = get_args(Dtype)

# The value of `backbone` that stands for the published ImageNet weights, in place of a path.
IMAGENET_WEIGHTS = "imagenet"


@dataclasses.dataclass(frozen=True)
class NetworkOptions(Section):
    """A network by name."""

    name: str = ""  # a network of kdjax, or "package.module:factory"
    width: Annotated[int, schema.WIDTH] = 64  # channels of the first stage; 64 as published
    dtype: Dtype = "float32"  # the type in which the network computes
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # further arguments
    # Matches the classes of a checkpoint by number, even if their names differ from the data's.
    any_class_names: bool = False


@dataclasses.dataclass(frozen=True)
class StudentOptions(NetworkOptions):
    """`config.student`: the network that is trained."""

    name: str = "pspnet_r18"
    auxiliary: bool = True  # whether the network has an auxiliary head
    # Batch norm uses the statistics of the whole batch, of the images of each device, or, in the
    # backbone, the statistics stored with the weights.
    batch_norm: Literal["global", "per_device", "frozen"] = "global"
    checkpoint: str = ""  # initial weights of the whole network
    # Initial weights of the backbone alone: a network checkpoint with the same backbone, or
    # "imagenet" for the published weights. docs/weights.md says how to install them.
    backbone: str = ""

    def __post_init__(self) -> None:
        """Also checks that the sources of the initial weights agree."""
        super().__post_init__()
        if self.batch_norm == "frozen" and not (self.checkpoint or self.backbone):
            raise WrongValue(
                "batch_norm",
                'is "frozen", and the backbone starts from scratch: name its weights in '
                'config.student.backbone, or set it to "global"',
            )
        if self.checkpoint and self.backbone:
            raise WrongValue(
                "checkpoint",
                "and config.student.backbone are both set; a checkpoint includes a backbone, so "
                "leave one of them empty",
            )


@dataclasses.dataclass(frozen=True)
class TeacherOptions(NetworkOptions):
    """`config.teacher`: the network that teaches, or its scores in files."""

    # A network checkpoint, the workdir of a finished run, or "package.module:attribute" of a
    # trained network or of a function that returns a trained network.
    checkpoint: str = ""
    # Initial backbone weights of the teacher that kdjax.compare trains; see StudentOptions.
    backbone: str = ""
    # The teacher sees each crop as the student does, or before its colors were changed.
    view: Literal["student", "clean"] = "student"
    # The bands of the images that the teacher reads, in its order, as (3, 2, 1); empty for all.
    bands: Annotated[tuple[int, ...], schema.COUNT_OR_ZERO] = ()
    # A directory for the teacher's maps of the whole training images, at scale 1 and without color
    # changes. The first run fills it; steps then read it and do not run the teacher. If it is
    # empty, every step runs the teacher.
    cache: str = ""
    # A directory with the class scores of a teacher that ran elsewhere: a .npy or .safetensors
    # file for every training image. The cache is made from them, without a teacher network.
    logits: str = ""
    # How many of the highest scores of a cell the cache keeps, besides one for all others; 0 keeps
    # all.
    cache_classes: Annotated[int, schema.COUNT_OR_ZERO] = 0
    cache_features: Literal["bfloat16", "int8"] = "bfloat16"  # the type of features in the cache
    # The cache may hold expensive scores: the mean probabilities of several scales, of the mirror
    # image, and of sliding windows of this height and width (empty for whole images).
    scales: Annotated[tuple[float, ...], schema.POSITIVE] = (1.0,)
    flip: bool = False
    window: Annotated[tuple[int, ...], schema.PIXELS] = ()
    # Further checkpoints, whose probabilities the cache averages with those of `checkpoint`.
    ensemble: tuple[str, ...] = ()
    # A run refuses a teacher with a lower mIoU on the validation split.
    min_miou: Annotated[float, schema.SHARE] = 0.0

    def __post_init__(self) -> None:
        """Also checks that `logits` agrees with the other keys."""
        super().__post_init__()
        if not self.logits:
            return
        if self.checkpoint:
            raise WrongValue(
                "logits",
                "and config.teacher.checkpoint are both set; leave one of them empty",
            )
        if not self.cache:
            raise WrongValue(
                "logits",
                "is set: name the directory for the scores made from these files in "
                "config.teacher.cache",
            )
        if self.min_miou:
            raise WrongValue(
                "min_miou",
                "cannot be asked of config.teacher.logits, which has no scores of the validation "
                "split; set it to 0",
            )
