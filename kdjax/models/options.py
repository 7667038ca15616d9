"""The sections of a config on networks: what is common to all, the student's, and the teacher's."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from kdjax import sections
from kdjax.sections import Section, WrongValue

# That networks compute in; their parameters are float32.
Dtype = Literal["float32", "bfloat16"]
DTYPES: tuple[str, ...] = get_args(Dtype)

# Of a `backbone`, in place of a path: the weights that were published for it.
IMAGENET_WEIGHTS = "imagenet"


@dataclasses.dataclass(frozen=True)
class NetworkOptions(Section):
    """A network by name."""

    name: str = ""  # one of kdjax's, or "package.module:factory"
    width: Annotated[int, sections.WIDTH] = 64  # channels of the first stage; 64 as published
    dtype: Dtype = "float32"  # that it computes in
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # further arguments of it
    # Takes the classes of a checkpoint by number, even if their names are not those of the data.
    any_class_names: bool = False


@dataclasses.dataclass(frozen=True)
class StudentOptions(NetworkOptions):
    """`config.student`: the network that is trained."""

    name: str = "pspnet_r18"
    auxiliary: bool = True  # whether it has an auxiliary head
    # Statistics of the whole batch, of each device's images, or, in the backbone, those that its
    # weights came with.
    batch_norm: Literal["global", "per_device", "frozen"] = "global"
    checkpoint: str = ""  # weights to start from, of the whole network
    # Or of its backbone alone: any network checkpoint that has the same, or "imagenet" for the
    # weights that are published for it, as far as they are installed; docs/weights.md says how.
    backbone: str = ""

    def __post_init__(self) -> None:
        """Checks also that it starts from one place, and that what is frozen came from one."""
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
                "and config.student.backbone are both set; the former brings a backbone with it, "
                "so leave one of them empty",
            )


@dataclasses.dataclass(frozen=True)
class TeacherOptions(NetworkOptions):
    """`config.teacher`: the network that teaches, or what it said elsewhere."""

    # A network checkpoint, the workdir of a finished run, or "package.module:attribute" of a
    # network that brings its trained weights, or of a function that returns one.
    checkpoint: str = ""
    backbone: str = ""  # what the teacher that kdjax.compare trains starts from, as a student's
    view: Literal["student", "clean"] = "student"  # of a crop: what the student sees, or as it was
    # A directory on disk for the teacher's scores on the whole training images, at scale 1 and in
    # their own colours. Made at first use; no step runs the teacher then. Empty: it runs.
    cache: str = ""
    # A directory of the class scores of a teacher that ran elsewhere, a .npy or .safetensors file
    # for every training image: the cache is made from these, and no teacher network is needed.
    logits: str = ""
    # Highest scores kept of each cell, beside one for the rest; 0 for all.
    cache_classes: Annotated[int, sections.COUNT_OR_ZERO] = 0
    min_miou: Annotated[float, sections.SHARE] = (
        0.0  # refuse one below this on the validation split
    )
    # Its convolutions in int8, calibrated on training images. For TPUs; needs qwix.
    int8: bool = False
    # Of the validation pixels, which it must label in int8 as without.
    min_agreement: Annotated[float, sections.SHARE] = 0.98

    def __post_init__(self) -> None:
        """Checks also that given scores go with the rest."""
        super().__post_init__()
        if self.int8 and (self.cache or self.logits):
            raise WrongValue(
                "int8",
                "is True, which makes the teacher of every step cheaper; with config.teacher.cache "
                "none runs, so set it to False",
            )
        if not self.logits:
            return
        if self.checkpoint:
            raise WrongValue(
                "logits",
                "and config.teacher.checkpoint are both set; only one teaches, so leave one empty",
            )
        if not self.cache:
            raise WrongValue(
                "logits",
                "is set: name the directory that is made from these files in config.teacher.cache",
            )
        if self.min_miou:
            raise WrongValue(
                "min_miou",
                "cannot be asked of config.teacher.logits, which says nothing of the validation "
                "split; set it to 0",
            )
