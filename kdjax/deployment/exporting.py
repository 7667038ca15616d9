"""Exports a trained student, and compares each file with the network."""

import json
import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Shaped

from kdjax.deployment.agreement import Agreement, compare_predictions, random_images
from kdjax.deployment.formats import (
    ANY,
    DESCRIPTION,
    FORMATS,
    PLATFORMS,
    RETURNED,
    PredictFn,
    Returned,
    Size,
    digest,
    files_of,
    labels_of,
    make_predict_fn,
    takes_any_size,
)
from kdjax.deployment.rewriting import plain, plain_convolutions
from kdjax.models import Network, Variables, serialization
from kdjax.models.folding import fold_batch_norm
from kdjax.models.serialization import NetworkInfo
from kdjax.utils.bands import RGB, Bands
from kdjax.utils.environment import versions
from kdjax.utils.errors import UserError
from kdjax.utils.files import check_folder, is_remote, why_unwritable
from kdjax.utils.imports import did_you_mean

# int8 changes many labels. If it changes most of them, the cause is not rounding.
LEAST_INT8 = 0.5
COMPARED_INT8 = 8  # images


class Export(NamedTuple):
    """An exported file.

    Attributes:
      format: its name in `FORMATS`.
      file: its name in the output directory.
      size: the size of the images that it takes.
      bytes: its size on disk.
      sha256: its digest, which reveals later damage.
      agreement: the comparison of its labels with the network's.
    """

    format: str
    file: str
    size: Size
    bytes: int
    sha256: str
    agreement: Agreement


def export(
    source: epath.PathLike,
    output: str | os.PathLike[str],
    formats: str | Sequence[str],
    *,
    size: tuple[int, int] | Size | None = None,
    folded: bool = False,
    calibration: Sequence[Shaped[np.ndarray, "H W C"]] | None = None,
    returned: Returned = "labels",
) -> list[Export]:
    """Writes a network without its auxiliary head, and `export.json`, which describes the files.

        kdjax.export("runs/first", "exported", ["stablehlo", "tflite"], size=(512, 1024))

    Every file takes 8-bit RGB images [B, H, W, 3], or the bands and the number type that the
    network was trained on, and returns class ids [B, H, W] int32 at the
    images' size, as `kdjax.evaluation` computes them; or class scores [B, H, W, K] float32. Before
    the directory appears, each file is loaded and compared with the network on random images.

    Args:
      source: a network checkpoint, or the workdir of a finished run.
      output: a directory that does not exist yet, or is empty.
      formats: one name of `FORMATS`, or several.
      size: height and width of the images, if a format or the network needs them. An ONNX file for
        one size is smaller and faster than one for any size; other formats ignore the size.
      folded: True to fold batch norm into the convolutions.
      calibration: training images of this size, from which `tflite_int8` takes the ranges of its
        numbers. A hundred are enough.
      returned: "labels" for class ids, "scores" for logits, or "probabilities".

    Raises:
      UserError: if there is no network, a format is unknown, a size or calibration images are
        missing or wrong, the output cannot be written, or the labels of a file differ from the
        network's.
    """
    if returned not in RETURNED:
        raise UserError(f'unknown result "{returned}": {did_you_mean(returned, RETURNED)}')
    formats = list(dict.fromkeys([formats] if isinstance(formats, str) else formats))
    output, size = os.fspath(output), Size(*size) if size else ANY
    _check_formats(formats, size)
    _check_output(output)
    network, variables, info = serialization.load(source)
    info.require_scores(os.fspath(source))
    _check_calibration(formats, size, calibration or (), info.bands)
    sizes = _sizes(make_predict_fn(network, variables, info.preprocessing), info, formats, size)
    original = network, variables
    written = fold_batch_norm(*original) if folded else original
    target = pathlib.Path(output)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".kdjax-export-", dir=target.parent) as scratch:
            # Other users cannot read the temporary directory itself.
            directory = pathlib.Path(scratch) / "export"
            directory.mkdir()
            exports = [
                _export_as(
                    name,
                    directory,
                    (written, original),
                    info,
                    sizes[name],
                    calibration or (),
                    returned,
                )
                for name in formats
            ]
            description = _description(info, exports, folded, returned)
            text = json.dumps(description, indent=2, allow_nan=False)
            (directory / DESCRIPTION).write_text(text + "\n")
            directory.rename(target)
    except OSError as error:
        raise UserError(f"cannot write {output}: {why_unwritable(error)}") from error
    return exports


def _export_as(
    name: str,
    directory: pathlib.Path,
    networks: tuple[tuple[Network, Variables], tuple[Network, Variables]],
    info: NetworkInfo,
    size: Size,
    calibration: Sequence[np.ndarray],
    returned: Returned,
) -> Export:
    """Writes one format of the first network, and compares it with the second, the original."""
    chosen = FORMATS[name]
    path = directory / chosen.file
    (network, variables), original = networks
    network = plain_convolutions(network) if chosen.plain else network
    function = make_predict_fn(network, variables, info.preprocessing, returned)
    images, least = random_images(size, info.bands), None
    options: dict[str, Any] = {"returned": returned, "bands": info.bands}
    if chosen.calibrated:
        images, least = [image[None] for image in calibration[:COMPARED_INT8]], LEAST_INT8
        options["calibration"] = calibration
    chosen.write(plain(function) if chosen.plain else function, size, path, **options)
    try:
        agreement = compare_predictions(
            labels_of(chosen.read(path), returned),
            *original,
            info.preprocessing,
            images,
            least=least,
        )
    except UserError as error:
        raise UserError(f"{name}: nothing is written, since {error}") from error
    size_on_disk = sum(file.stat().st_size for file in files_of(path))
    return Export(name, chosen.file, size, size_on_disk, digest(path), agreement)


def _check_formats(formats: Sequence[str], size: Size) -> None:
    for name in formats:
        if name not in FORMATS:
            raise UserError(f'unknown format "{name}": {did_you_mean(name, FORMATS)}')
        if not FORMATS[name].flexible and not size.fixed:
            raise UserError(f"{name} takes images of one size: give --height and --width")


def _check_calibration(
    formats: Sequence[str], size: Size, calibration: Sequence[np.ndarray], bands: Bands
) -> None:
    if not any(FORMATS[name].calibrated for name in formats):
        return
    if not calibration:
        raise UserError(
            "tflite_int8 is calibrated on images of the training split: give --int8 --calibrate DIR"
        )
    for image in calibration:
        shape = (*size, bands.channels)
        if image.shape != shape or image.dtype != bands.dtype:
            raise UserError(
                f"an image for calibration is {image.dtype} {list(image.shape)}, and the file "
                f"takes {bands.dtype} {list(shape)}: give its --height and --width"
            )


def _check_output(output: str) -> None:
    if is_remote(output):
        raise UserError(f"{output}: exports are written to a local directory")
    check_folder(output)
    target = pathlib.Path(output)
    if os.path.lexists(target) and (target.is_symlink() or any(target.iterdir())):
        raise UserError(f"{output}: exists already; name a new directory")


def _sizes(
    predict_fn: PredictFn, info: NetworkInfo, formats: Sequence[str], size: Size
) -> dict[str, Size]:
    """Returns the image size of each format: any size if possible, else the given one."""
    flexible = [
        name
        for name in formats
        if FORMATS[name].flexible and not (FORMATS[name].keeps_size and size.fixed)
    ]
    sizes = dict.fromkeys(formats, size)
    if flexible and takes_any_size(predict_fn, info.bands):
        sizes |= dict.fromkeys(flexible, ANY)
    elif flexible and not size.fixed:
        raise UserError(
            f"{info.name} cannot be exported for images of any size, since it computes with their "
            "size: give --height and --width"
        )
    return sizes


def _description(
    info: NetworkInfo, exports: Sequence[Export], folded: bool, returned: Returned
) -> dict[str, Any]:
    """Returns the facts that a program needs to run the files."""
    return {
        "network": info.name,
        "num_classes": info.num_classes,
        "class_names": info.class_names,
        "palette": info.palette,
        "source": info.source,
        "fingerprint": info.fingerprint,
        "batch_norm_folded": folded,
        "input": {
            "name": "images",
            "type": info.bands.dtype,
            "channels": "RGB, not normalised"
            if info.bands == RGB
            else f"{info.bands.channels} bands, not normalised",
        },
        "output": {
            "name": returned,
            "type": "int32" if returned == "labels" else "float32",
            "shape": ["batch", "height", "width", *([] if returned == "labels" else ["class"])],
        },
        "exports": {
            export.format: {
                "file": export.file,
                "input_shape": FORMATS[export.format].input_shape(export.size, info.bands.channels),
                "sha256": export.sha256,
                "agreement": export.agreement._asdict(),
            }
            for export in exports
        },
        "platforms": {"stablehlo": PLATFORMS, "savedmodel": PLATFORMS},
        "versions": versions(
            *("jax", "flax", "tensorflow", "tensorflow-cpu", "jax2onnx", "onnxruntime")
        ),
    }
