"""`kdjax.predict`."""

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from etils import epath

from kdjax.data.preparing.classes import original_labels
from kdjax.evaluation.evaluator import TrainedNetwork
from kdjax.evaluation.inference import make_inference, padding
from kdjax.evaluation.predict_files import SAVED, Saved, Timing, find_images, predict_files
from kdjax.experiment.workdir import Workdir
from kdjax.training.sharding import Placement
from kdjax.utils import schema
from kdjax.utils.errors import UserError


def predict(  # noqa: PLR0913
    workdir: epath.PathLike,
    images: str,
    output: str | os.PathLike[str],
    *,
    ids: str | None = None,
    opacity: float = 0.5,
    batch_size: int | None = None,
    overwrite: bool = False,
    mode: str = "whole",
    window: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    pad_to: int | None = None,
    save_scores: Saved = "none",
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Timing:
    """Labels image files with a finished student, a network checkpoint, or a model file.

    Writes `labels/*.png` (class numbers, with a palette), `overlays/*.png`, and `legend.png`.
    Photos are rotated as their EXIF data say. Needs no TensorFlow. For arrays, use `kdjax.load`.

        print(kdjax.predict("runs/first", "photos/**/*.jpg", "labeled"))

    Args:
      workdir: the directory of a run, a network checkpoint, or an ONNX or TensorFlow Lite file.
      images: a folder, whose own image files are labeled, or a pattern of paths, in which `**`
        stands for any number of folders.
      output: the folder to write to.
      ids: a data set, such as "cityscapes", whose original ids replace the class numbers.
      opacity: the opacity of the colors over the image, 0 to 1.
      batch_size: the number of images in a batch; None for one on every device.
      overwrite: replace existing results. An image is never replaced.
      mode: as in `kdjax.evaluate`.
      window: as in `kdjax.evaluate`.
      stride: as in `kdjax.evaluate`.
      scales: as in `kdjax.evaluate`.
      flip: as in `kdjax.evaluate`.
      pad_to: as in `kdjax.evaluate`, but whole images are not padded by default.
      save_scores: "scores" or "probabilities" to write `scores/*.npy` too, float16 [H, W, K].
      options: how to read a model file, as `config.teacher.options` takes them.

    Returns:
      The number of images and the time.

    Raises:
      UserError: if there is no network or no image, if an option is wrong, or if a file would be
        replaced. Damaged images are named after all others are done.
    """
    schema.check_number("opacity", opacity, schema.SHARE)
    if batch_size is not None:
        schema.check_number("batch_size", batch_size, schema.COUNT)
    if save_scores not in SAVED:
        raise UserError(f'save_scores is "{save_scores}"; it must be {", ".join(SAVED)}')
    files = Workdir(workdir)
    crop_size = files.read_options().data.crop_size if files.config.exists() else None
    inference = make_inference(mode, window, stride, scales, flip, crop_size=crop_size)
    values = None if ids is None else original_labels(ids)
    network = TrainedNetwork.load(str(workdir), inference=inference, options=options)
    network.info.require_scores(str(workdir))
    found = find_images(images, os.fspath(output), overwrite=overwrite, bands=network.info.bands)
    return predict_files(
        network,
        found,
        os.fspath(output),
        batch_size=batch_size or Placement().mesh.size,
        pad_to=padding(mode, pad_to, whole=1),
        values=values,
        opacity=opacity,
        save=save_scores,
    )
