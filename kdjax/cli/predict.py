"""Predicts images with a trained student, any network checkpoint, or a model file.

python -m kdjax predict --workdir runs/first --images 'photos/**/*.jpg' --output labeled

Writes `labels/*.png` (class numbers), `overlays/*.png`, and `legend.png`, and prints the time.
"""

from typing import Any

from absl import flags

from kdjax.cli.flags import InferenceFlags, ModelFileFlags
from kdjax.evaluation.predict_files import SAVED
from kdjax.experiment.predict import predict
from kdjax.utils import environment

_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "A workdir of kdjax train, a network checkpoint, or a .onnx or .tflite file.",
    required=True,
)
_IMAGES = flags.DEFINE_string(
    "images",
    None,
    "A folder of images, or a pattern in quotes; ** matches any folders.",
    required=True,
)
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write to.", required=True)
_IDS = flags.DEFINE_string(
    "ids", None, "Write the original ids of this data set, such as cityscapes, not class numbers."
)
_OPACITY = flags.DEFINE_float(
    "opacity", 0.5, "Opacity of the colors over the image.", lower_bound=0, upper_bound=1
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Images predicted at once; by default one per device.", lower_bound=1
)
_SAVE_SCORES: flags.FlagHolder[Any] = flags.DEFINE_enum(
    "save_scores", "none", SAVED, "Also write scores/*.npy, [H, W, K]."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace existing results.")
_INFERENCE = InferenceFlags()
_MODEL_FILE = ModelFileFlags()


def main(argv: list[str]) -> None:
    """Writes the results and prints the time."""
    del argv
    environment.set_up_jax()
    timing = predict(
        _WORKDIR.value,
        _IMAGES.value,
        _OUTPUT.value,
        ids=_IDS.value,
        opacity=_OPACITY.value,
        batch_size=_BATCH_SIZE.value,
        save_scores=_SAVE_SCORES.value,
        overwrite=_OVERWRITE.value,
        options=_MODEL_FILE.options(),
        **_INFERENCE.options(),
    )
    print(timing)
    print(f"labels/, overlays/ and legend.png are in {_OUTPUT.value}")
