"""Evaluates the student of a finished run, or any network checkpoint, and prints each class's IoU.

python -m kdjax evaluate --workdir runs/first --split test --scales 0.5,1.0 --flip --details worst
"""

from absl import flags

from kdjax.cli.flags import InferenceFlags, ModelFileFlags
from kdjax.experiment.evaluate import evaluate
from kdjax.utils import environment, processes
from kdjax.utils.log import logger

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "A workdir of kdjax train, which names the data set.", required=True
)
_SPLIT = flags.DEFINE_string("split", None, "The split to score; by default the validation split.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Another network to evaluate, such as the teacher or a .onnx file."
)
_EXPORTED = flags.DEFINE_string(
    "exported", None, "A file of kdjax export to evaluate instead, such as student.tflite."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "The directory of the run's data set, if it has moved."
)
_ANY_CLASS_NAMES = flags.DEFINE_bool(
    "any_class_names", False, "Match classes by number, whatever their names."
)
_DETAILS = flags.DEFINE_string(
    "details",
    None,
    "Measure boundaries too; folder for pictures of bad results and doubtful labels.",
)
_PROCESSES = processes.define_flags()
_INFERENCE = InferenceFlags()
_MODEL_FILE = ModelFileFlags()


def main(argv: list[str]) -> None:
    """Prints mIoU, pixel accuracy, and the IoU of every class."""
    del argv
    processes.join(_PROCESSES)
    environment.set_up_jax()
    network = _EXPORTED.value or _CHECKPOINT.value or _WORKDIR.value
    logger.info(f"Scoring {network} on every image of the {_SPLIT.value or 'validation'} split")
    found = evaluate(
        _WORKDIR.value,
        split=_SPLIT.value,
        checkpoint=_CHECKPOINT.value,
        exported=_EXPORTED.value,
        data_dir=_DATA_DIR.value,
        any_class_names=_ANY_CLASS_NAMES.value,
        options=_MODEL_FILE.options() or None,
        boundaries=_DETAILS.value is not None,
        pictures=_DETAILS.value,
        **_INFERENCE.options(),
    )
    logger.info(found)
