"""Exports a finished student, and compares what was written with the network itself."""

import json
import os
import pathlib
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, UInt8

from kdjax.deployment.formats import (
    ANY,
    DESCRIPTION,
    FORMATS,
    PLATFORMS,
    Images,
    Labels,
    PredictFn,
    Size,
    digest,
    files_of,
    make_predict_fn,
    takes_any_size,
)
from kdjax.deployment.rewriting import plain, plain_convolutions
from kdjax.models import Network, Preprocessing, Variables, serialization
from kdjax.models.folding import fold_batch_norm
from kdjax.models.layers import resize
from kdjax.models.network import scores_of
from kdjax.models.serialization import NetworkInfo
from kdjax.utils.environment import versions
from kdjax.utils.errors import UserError
from kdjax.utils.files import check_folder, is_remote, why_unwritable
from kdjax.utils.imports import did_you_mean

# Another program adds in another order. Two classes whose scores are nearer to each other than this
# part of the image's largest score are a tie, which rounding may decide either way.
TIE = 1e-4
# Where any size will do, these are tried: two of them, so that nothing is fixed by accident.
TRIED = ((64, 96), (97, 65))
# With int8, labels of many pixels may change; where most do, something else is wrong.
LEAST_INT8 = 0.5
COMPARED_INT8 = 8  # images


class Agreement(NamedTuple):
    """What a comparison found.

    Attributes:
      pixels: how many were labelled.
      agreeing: how many of them alike; the others are ties.
      classes: how many classes the network found among them.
    """

    pixels: int
    agreeing: int
    classes: int

    def __str__(self) -> str:
        """One line for people."""
        share = 100 * self.agreeing / self.pixels
        return (
            f"{share:.3f} % of {self.pixels} labels agree with the network's, classes among them: "
            f"{self.classes}"
        )


def random_images(size: Size) -> list[UInt8[np.ndarray, "B H W 3"]]:
    """Returns batches of two and of one image: noise, and patches of even colour.

    Noise alone looks the same everywhere to a network with large windows.

    Args:
      size: of the images; where any will do, the batches differ in size too.
    """
    sizes = TRIED if size == ANY else (size, size)
    generator = np.random.default_rng(0)
    batches = []
    for count, (height, width) in zip((2, 1), sizes, strict=True):
        assert height is not None
        assert width is not None
        patches = generator.integers(0, 256, (count, -(-height // 16), -(-width // 16), 3))
        images = patches.repeat(16, 1).repeat(16, 2)[:, :height, :width]
        images[0] += generator.integers(-64, 65, images[0].shape)
        batches.append(images.clip(0, 255).astype(np.uint8))
    return batches


def compare_predictions(
    predict_fn: PredictFn,
    network: Network,
    variables: Variables,
    preprocessing: Preprocessing,
    batches: Iterable[UInt8[np.ndarray, "B H W 3"]],
    *,
    least: float | None = None,
) -> Agreement:
    """Compares the labels of an exported function with those of the network.

    Args:
      predict_fn: the exported function.
      network: as it was before anything was done to it.
      variables: its arrays.
      preprocessing: how pixels become its input.
      batches: images.
      least: share of the labels that must be alike, where coarser numbers change more than ties.

    Raises:
      UserError: where they differ by more than the rounding of scores explains, or in too many.
    """
    predict = make_predict_fn(network, variables, preprocessing)

    @jax.jit
    def behind(variables: Variables, images: Images, labels: Labels) -> Float[Array, "B H W"]:
        seen = preprocessing(jnp.asarray(images))
        scores = scores_of(network.apply(variables, seen, train=False, key=None)[0])
        return _behind(resize(scores.astype(jnp.float32), images.shape[1:3]), labels)

    pixels, agreeing, classes = 0, 0, set()
    for images in batches:
        expected, found = np.asarray(predict(images)), np.asarray(predict_fn(images))
        if found.shape != expected.shape:
            raise UserError(
                f"it labels images {images.shape} by {found.shape} instead of {expected.shape}"
            )
        # The scores are computed only where they are needed: they take another compilation.
        same = least is not None or np.array_equal(found, expected)
        # NaN is no tie.
        wrong = 0 if same else int(np.sum(~(np.asarray(behind(variables, images, found)) <= TIE)))
        if wrong:
            raise UserError(
                f"{wrong} of {found.size} labels are not the network's, by more than rounding"
            )
        pixels += found.size
        agreeing += int(np.sum(found == expected))
        classes |= set(np.unique(expected).tolist())
    if least is not None and agreeing < least * pixels:
        raise UserError(f"only {100 * agreeing / pixels:.0f} % of its labels are the network's")
    return Agreement(pixels, agreeing, len(classes))


def _behind(scores: Float[Array, "B H W K"], labels: Labels) -> Float[Array, "B H W"]:
    """Returns the best score minus the label's score, divided by the image's largest score."""
    # A label that is no class has no score.
    chosen = jnp.sum(jax.nn.one_hot(labels, scores.shape[-1]) * scores, axis=-1)
    known = (labels >= 0) & (labels < scores.shape[-1])
    behind = jnp.max(scores, axis=-1) - jnp.where(known, chosen, -jnp.inf)
    largest = jnp.max(jnp.abs(scores), axis=(1, 2, 3), keepdims=True)[..., 0]
    return behind / jnp.where(largest == 0, 1.0, largest)


class Export(NamedTuple):
    """One file that was written.

    Attributes:
      format: its name in `FORMATS`.
      file: what it is called in the output directory.
      size: of the images that it takes.
      bytes: how large it is.
      sha256: its digest, by which a file that was damaged later is recognized.
      agreement: how its labels compare with the network's.
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
    calibration: Sequence[UInt8[np.ndarray, "H W 3"]] | None = None,
) -> list[Export]:
    """Writes a network without its auxiliary head, and `export.json`, which describes it.

        kdjax.export("runs/first", "exported", ["stablehlo", "tflite"], size=(512, 1024))

    Every file takes 8-bit RGB images [B, H, W, 3] and returns class ids [B, H, W] int32 at the
    images' size, as `kdjax.evaluation` computes them. It is loaded again and compared on random
    images before the directory appears.

    Args:
      source: a network checkpoint, or the workdir of a finished run.
      output: a directory that does not exist yet, or is empty.
      formats: one name of `FORMATS`, or several.
      size: height and width of the images, where a format or the network needs them; elsewhere any
        will do, but that ONNX then holds a program for these alone, which is smaller and faster.
      folded: fold batch norm into the convolutions.
      calibration: images of the training split, of that size, which `tflite_int8` takes the ranges
        of its numbers from; a hundred will do.

    Raises:
      UserError: where there is no network, a format is unknown, a size is missing, calibration
        images are missing or of another size, or the output cannot be written; where a file's
        labels are not the network's.
    """
    formats = list(dict.fromkeys([formats] if isinstance(formats, str) else formats))
    output, size = os.fspath(output), Size(*size) if size else ANY
    _check_formats(formats, size)
    _check_calibration(formats, size, calibration)
    _check_output(output)
    network, variables, info = serialization.load(source)
    predict_fn = make_predict_fn(network, variables, info.preprocessing)
    sizes = _sizes(predict_fn, info, formats, size)
    written, weights = fold_batch_norm(network, variables) if folded else (network, variables)
    target = pathlib.Path(output)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".kdjax-export-", dir=target.parent) as scratch:
            # Not the temporary directory itself, which nobody else may read.
            directory = pathlib.Path(scratch) / "export"
            directory.mkdir()
            exports = []
            for name in formats:
                chosen = FORMATS[name]
                path = directory / chosen.file
                form = plain_convolutions(written) if chosen.plain else written
                predict_fn = make_predict_fn(form, weights, info.preprocessing)
                images, options, least = random_images(sizes[name]), {}, None
                if chosen.calibrated and calibration is not None:
                    images = [image[None] for image in calibration[:COMPARED_INT8]]
                    options, least = {"calibration": calibration}, LEAST_INT8
                function = plain(predict_fn) if chosen.plain else predict_fn
                chosen.write(function, sizes[name], path, **options)
                try:
                    agreement = compare_predictions(
                        chosen.read(path),
                        network,
                        variables,
                        info.preprocessing,
                        images,
                        least=least,
                    )
                except UserError as error:
                    raise UserError(f"{name}: nothing is written, since {error}") from error
                size_on_disk = sum(file.stat().st_size for file in files_of(path))
                exports.append(
                    Export(name, chosen.file, sizes[name], size_on_disk, digest(path), agreement)
                )
            text = json.dumps(_description(info, exports, folded), indent=2, allow_nan=False)
            (directory / DESCRIPTION).write_text(text + "\n")
            directory.rename(target)
    except OSError as error:
        raise UserError(f"cannot write {output}: {why_unwritable(error)}") from error
    return exports


def _check_formats(formats: Sequence[str], size: Size) -> None:
    if not formats:
        raise UserError(f"no format is named: {did_you_mean('', FORMATS)}")
    for name in formats:
        if name not in FORMATS:
            raise UserError(f'unknown format "{name}": {did_you_mean(name, FORMATS)}')
        if not FORMATS[name].flexible and not size.fixed:
            raise UserError(f"{name} takes images of one size: give --height and --width")


def _check_calibration(
    formats: Sequence[str], size: Size, calibration: Sequence[np.ndarray] | None
) -> None:
    if not any(FORMATS[name].calibrated for name in formats):
        return
    if not calibration:
        raise UserError(
            "tflite_int8 is calibrated on images of the training split: give --int8 --calibrate DIR"
        )
    for image in calibration:
        if image.shape != (*size, 3) or image.dtype != np.uint8:
            raise UserError(
                f"an image for calibration is {image.dtype} {list(image.shape)}, and the file "
                f"takes uint8 {[*size, 3]}: give its --height and --width"
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
    """The image size of each format: any where that can be, else the given one."""
    flexible = [
        name
        for name in formats
        if FORMATS[name].flexible and not (FORMATS[name].keeps_size and size.fixed)
    ]
    sizes = dict.fromkeys(formats, size)
    if flexible and takes_any_size(predict_fn):
        sizes |= dict.fromkeys(flexible, ANY)
    elif flexible and not size.fixed:
        raise UserError(
            f"{info.name} cannot be exported for images of any size, since it computes with their "
            "size: give --height and --width"
        )
    return sizes


def _description(info: NetworkInfo, exports: Sequence[Export], folded: bool) -> dict[str, Any]:
    """What a program that runs an export has to know."""
    return {
        "network": info.name,
        "num_classes": info.num_classes,
        "class_names": info.class_names,
        "palette": info.palette,
        "source": info.source,
        "fingerprint": info.fingerprint,
        "batch_norm_folded": folded,
        "input": {"name": "images", "type": "uint8", "channels": "RGB, not normalised"},
        "output": {"name": "labels", "type": "int32", "shape": ["batch", "height", "width"]},
        "exports": {
            export.format: {
                "file": export.file,
                "input_shape": FORMATS[export.format].input_shape(export.size),
                "sha256": export.sha256,
                "agreement": export.agreement._asdict(),
            }
            for export in exports
        },
        "platforms": {"stablehlo": PLATFORMS, "savedmodel": PLATFORMS},
        # Of what wrote the files, and what they have to be loaded by.
        "versions": versions(
            *("jax", "flax", "tensorflow", "tensorflow-cpu", "jax2onnx", "onnxruntime")
        ),
    }
