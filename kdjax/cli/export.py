"""Exports a trained student, alone, in formats that other programs run.

python -m kdjax export --source runs/first --output student --format stablehlo,savedmodel

The source is the workdir of a run, or any network checkpoint. Every file takes 8-bit RGB images
[B, H, W, 3] and returns class ids [B, H, W] int32, or class scores [B, H, W, K] float32. Each file
is compared with the network. `tflite`, and networks that compute with the size of their images
(PSPNet, UPerNet, SegFormer, Swin), need `--height` and `--width`; else images may have any size.

With `--int8 --calibrate DIR`, `tflite` is also written in 8-bit integers, calibrated on images of
the run's training split, whose data set is prepared in DIR. Then both files are evaluated on the
validation split and timed.
"""

import os
from typing import Any

from absl import flags

from kdjax.deployment import FORMATS, Export, export, measure
from kdjax.deployment.formats import LARGEST, RETURNED
from kdjax.utils.errors import UserError

_SOURCE = flags.DEFINE_string("source", None, "A workdir or a network checkpoint.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "A new directory for the files.", required=True)
_FORMAT = flags.DEFINE_list("format", None, f"One or more of {', '.join(FORMATS)}.", required=True)
_FOLD = flags.DEFINE_bool("fold_batch_norm", False, "Fold batch norm into the convolutions.")
_RETURNED: flags.FlagHolder[Any] = flags.DEFINE_enum(
    "returned", "labels", RETURNED, "What the files return."
)
_INT8 = flags.DEFINE_bool("int8", False, "Also write the tflite file in 8-bit integers.")
_CALIBRATE = flags.DEFINE_string(
    "calibrate", None, "Folder of the run's prepared data set, for --int8."
)
_HEIGHT = flags.DEFINE_integer(
    "height", None, "Height of the images.", lower_bound=1, upper_bound=LARGEST
)
_WIDTH = flags.DEFINE_integer(
    "width", None, "Width of the images.", lower_bound=1, upper_bound=LARGEST
)


def main(argv: list[str]) -> None:
    """Writes the files and prints how each agrees with the network."""
    del argv
    if (_HEIGHT.value is None) != (_WIDTH.value is None):
        raise UserError("--height and --width go together: give both or neither")
    size = (_HEIGHT.value, _WIDTH.value) if _HEIGHT.value and _WIDTH.value else None
    formats, calibration = list(_FORMAT.value), None
    if _INT8.value != (_CALIBRATE.value is not None):
        raise UserError("--int8 and --calibrate go together: give both or neither")
    if _INT8.value:
        if "tflite" not in formats:
            raise UserError("--int8 is for the format tflite: name it in --format")
        # Imports the data sets, which other formats do not need.
        from kdjax.experiment.evaluate import calibration_images

        formats.append("tflite_int8")
        calibration = calibration_images(_SOURCE.value, data_dir=_CALIBRATE.value)
    print(f"Writing {', '.join(formats)}, and comparing each with the network", flush=True)
    exports = export(
        _SOURCE.value,
        _OUTPUT.value,
        formats,
        size=size,
        folded=_FOLD.value,
        calibration=calibration,
        returned=_RETURNED.value,
    )
    for written in exports:
        print(_line(written))
    print(f"{_OUTPUT.value} contains the files, and export.json describes them", flush=True)
    if _INT8.value:
        from kdjax.experiment.evaluate import evaluate

        print("Evaluating and timing both files, image by image", flush=True)
        for written in exports:
            if written.format in ("tflite", "tflite_int8"):
                file = os.path.join(_OUTPUT.value, written.file)
                scores = evaluate(_SOURCE.value, exported=file, data_dir=_CALIBRATE.value)
                print(f"{measure(file)}; {scores.split} mIoU {100 * scores.miou:.2f} %", flush=True)


def _line(written: Export) -> str:
    size = written.size
    takes = f"images of {size.height} x {size.width}" if size.fixed else "images of any size"
    megabytes = f"{written.bytes / 1e6:.1f} MB"
    return f"{written.file}: {takes}, {megabytes}; {written.agreement}"
