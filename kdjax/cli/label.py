"""Labels a folder of images with a teacher: class scores, label images, and overlays.

python -m kdjax label --teacher TEACHER --images photos --output labeled --masks --overlays 4

The teacher is a network checkpoint, a workdir, an ONNX or TensorFlow Lite file, or
"package.module:attribute". `scores/` then holds
a file for each image, for `config.teacher.logits`. With `--masks`, the output is also a source for
`kdjax prepare folder`. The same command continues an interrupted one.
"""

from absl import flags

from kdjax.cli.flags import ModelFileFlags
from kdjax.experiment.label import label
from kdjax.utils import environment

_TEACHER = flags.DEFINE_string("teacher", None, "The teacher.", required=True)
_IMAGES = flags.DEFINE_string(
    "images", None, "A folder of images, which may lie in folders inside it.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write to.", required=True)
_MASKS = flags.DEFINE_bool("masks", False, "Also write label images and classes.txt.")
_MIN_CONFIDENCE = flags.DEFINE_float(
    "min_confidence", 0.0, "Pixels with a lower highest probability get the label 255."
)
_OVERLAYS = flags.DEFINE_integer("overlays", 0, "Number of images to draw the labels over.")
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Images labeled at once; by default one per device.", lower_bound=1
)
_MODEL_FILE = ModelFileFlags()


def main(argv: list[str]) -> None:
    """Writes the files, and prints where they are."""
    del argv
    environment.set_up_jax()
    labeled = label(
        _TEACHER.value,
        _IMAGES.value,
        _OUTPUT.value,
        masks=_MASKS.value,
        min_confidence=_MIN_CONFIDENCE.value,
        overlays=_OVERLAYS.value,
        batch_size=_BATCH_SIZE.value,
        options=_MODEL_FILE.options(),
    )
    print(f"{labeled.images} images, {labeled.new} of them labeled now")
    print(f"config.teacher.logits={labeled.scores}")
    if _MASKS.value:
        print(f"python -m kdjax prepare folder --source {_OUTPUT.value} --data_dir DATA_DIR")
