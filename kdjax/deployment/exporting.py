"""Writes a student in several formats: all, each loaded again and compared, or none."""

import json
import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

from etils import epath

from kdjax.deployment.agreement import Agreement, compare, random_images
from kdjax.deployment.formats import FORMATS
from kdjax.deployment.labelling import ANY, Label, Size, labelling, takes_any_size
from kdjax.deployment.stablehlo import PLATFORMS
from kdjax.errors import UserError
from kdjax.models import saved
from kdjax.models.folding import fold_batch_norm
from kdjax.models.saved import NetworkInfo
from kdjax.paths import check_folder, is_remote, why_unwritable
from kdjax.suggest import nearest
from kdjax.versions import versions

DESCRIPTION = "export.json"


class Export(NamedTuple):
    """One file that was written.

    Attributes:
      format: its name in `FORMATS`.
      file: what it is called in the output directory.
      size: of the images that it takes.
      bytes: how large it is.
      agreement: how its labels compare with the network's.
    """

    format: str
    file: str
    size: Size
    bytes: int
    agreement: Agreement


def export(
    source: epath.PathLike,
    output: str | os.PathLike[str],
    formats: str | Sequence[str],
    *,
    size: tuple[int, int] | Size | None = None,
    folded: bool = False,
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
        will do.
      folded: fold batch norm into the convolutions.

    Raises:
      UserError: where there is no network, a format is unknown, a size is missing, or the output
        cannot be written; where a file's labels are not the network's.
    """
    formats = list(dict.fromkeys([formats] if isinstance(formats, str) else formats))
    output, size = os.fspath(output), Size(*size) if size else ANY
    _check_formats(formats, size)
    _check_output(output)
    network, variables, info = saved.load(source)
    label = labelling(network, variables, info.preprocessing)
    sizes = _sizes(label, info, formats, size)
    if folded:
        label = labelling(*fold_batch_norm(network, variables), info.preprocessing)
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
                chosen.write(label, sizes[name], path)
                images = random_images(sizes[name])
                try:
                    agreement = compare(
                        chosen.read(path), network, variables, info.preprocessing, images
                    )
                except UserError as error:
                    raise UserError(f"{name}: nothing is written, since {error}") from error
                exports.append(Export(name, chosen.file, sizes[name], _bytes(path), agreement))
            text = json.dumps(_description(info, exports, folded), indent=2, allow_nan=False)
            (directory / DESCRIPTION).write_text(text + "\n")
            directory.rename(target)
    except OSError as error:
        raise UserError(f"cannot write {output}: {why_unwritable(error)}") from error
    return exports


def _check_formats(formats: Sequence[str], size: Size) -> None:
    if not formats:
        raise UserError(f"no format is named: {nearest('', FORMATS)}")
    for name in formats:
        if name not in FORMATS:
            raise UserError(f'unknown format "{name}": {nearest(name, FORMATS)}')
        if not FORMATS[name].flexible and not size.fixed:
            raise UserError(f"{name} takes images of one size: give --height and --width")


def _check_output(output: str) -> None:
    if is_remote(output):
        raise UserError(f"{output}: exports are written to a local directory")
    check_folder(output)
    target = pathlib.Path(output)
    if os.path.lexists(target) and (target.is_symlink() or any(target.iterdir())):
        raise UserError(f"{output}: exists already; name a new directory")


def _sizes(label: Label, info: NetworkInfo, formats: Sequence[str], size: Size) -> dict[str, Size]:
    """The image size of each format: any where that can be, else the given one."""
    flexible = [name for name in formats if FORMATS[name].flexible]
    sizes = dict.fromkeys(formats, size)
    if flexible and takes_any_size(label):
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
                "agreement": export.agreement._asdict(),
            }
            for export in exports
        },
        "platforms": {"stablehlo": PLATFORMS, "savedmodel": PLATFORMS},
        # Of what wrote the files, and what they have to be loaded by.
        "versions": versions("jax", "flax", "tensorflow", "tensorflow-cpu"),
    }


def _bytes(path: pathlib.Path) -> int:
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
