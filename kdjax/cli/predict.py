"""Labels images with a finished student, or any network checkpoint.

python -m kdjax predict --workdir runs/first --images 'photos/**/*.jpg' --output labelled

Writes `labels/*.png` (class numbers, with a palette), `overlays/*.png` and `legend.png`, and says
how long it took. Photos are turned as their camera noted. No image is ever replaced.
"""

from absl import flags

from kdjax.cli.flags import InferenceFlags
from kdjax.experiment.predict import predict
from kdjax.utils import environment

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "A workdir of kdjax train, or a network checkpoint.", required=True
)
_IMAGES = flags.DEFINE_string(
    "images",
    None,
    "A folder of images, or a pattern in quotes; ** stands for any folders.",
    required=True,
)
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write to.", required=True)
_IDS = flags.DEFINE_string(
    "ids", None, "Write the original ids of this data set, as cityscapes, not class numbers."
)
_OPACITY = flags.DEFINE_float(
    "opacity", 0.5, "Of the colours over the image.", lower_bound=0, upper_bound=1
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Images labelled at once; by default one on every device.", lower_bound=1
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace results that are there already.")
_INFERENCE = InferenceFlags()


def main(argv: list[str]) -> None:
    """Writes the pictures and prints the time."""
    del argv
    environment.set_up_jax()
    timing = predict(
        _WORKDIR.value,
        _IMAGES.value,
        _OUTPUT.value,
        ids=_IDS.value,
        opacity=_OPACITY.value,
        batch_size=_BATCH_SIZE.value,
        overwrite=_OVERWRITE.value,
        **_INFERENCE.options(),
    )
    print(timing)
    print(f"labels/, overlays/ and legend.png are in {_OUTPUT.value}")
