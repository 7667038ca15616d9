"""Writes a finished student, alone, in formats that other programs run.

python -m kdjax.export --source WORKDIR --output DIR --format stablehlo,savedmodel

The source is the workdir of a run or any network checkpoint. Every file takes 8-bit RGB images
[B, H, W, 3] and returns class ids [B, H, W] int32; normalisation and resizing are inside. Each is
loaded again and compared with the network before DIR appears. `tflite`, and networks that compute
with the size of their images (PSPNet, UPerNet, SegFormer, Swin), need `--height` and `--width`;
`onnx` takes images of any size where these are not given and the network allows it.
"""

from absl import flags

from kdjax.cli import command
from kdjax.deployment import FORMATS, Export, export
from kdjax.errors import UserError

_SOURCE = flags.DEFINE_string("source", None, "A workdir or a network checkpoint.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "A new directory for what is written.", required=True)
_FORMAT = flags.DEFINE_list("format", None, f"Which of {', '.join(FORMATS)}.", required=True)
_FOLD = flags.DEFINE_bool("fold_batch_norm", False, "Fold batch norm into the convolutions.")
_HEIGHT = flags.DEFINE_integer(
    "height", None, "Height of the images.", lower_bound=1, upper_bound=8192
)
_WIDTH = flags.DEFINE_integer(
    "width", None, "Width of the images.", lower_bound=1, upper_bound=8192
)


def main(argv: list[str]) -> None:
    """Writes the files and says how each agrees with the network."""
    del argv
    if (_HEIGHT.value is None) != (_WIDTH.value is None):
        raise UserError("--height and --width go together: give both or neither")
    size = (_HEIGHT.value, _WIDTH.value) if _HEIGHT.value and _WIDTH.value else None
    exports = export(_SOURCE.value, _OUTPUT.value, _FORMAT.value, size=size, folded=_FOLD.value)
    for written in exports:
        print(_line(written))
    print(f"{_OUTPUT.value} holds them and export.json, which describes them")


def _line(written: Export) -> str:
    size = written.size
    takes = f"images of {size.height} x {size.width}" if size.fixed else "images of any size"
    megabytes = f"{written.bytes / 1e6:.1f} MB"
    return f"{written.file}: {takes}, {megabytes}; {written.agreement}"


if __name__ == "__main__":
    command.run(main)
