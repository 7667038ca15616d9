"""`kdjax.predict`: label maps and overlays of image files."""

import os
from collections.abc import Sequence

from etils import epath

from kdjax import ranges
from kdjax.data.classes import original_labels
from kdjax.evaluation.inference import make_inference, padding
from kdjax.experiments.networks import TrainedNetwork
from kdjax.experiments.prediction import Timing, find_images, label_images
from kdjax.experiments.workdir import Workdir
from kdjax.training.sharding import Placement


def predict(
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
) -> Timing:
    """Labels image files with a finished student, or any network checkpoint.

    Writes `labels/*.png` (class numbers, with a palette), `overlays/*.png` and `legend.png`. Photos
    are turned as their camera noted. Without TensorFlow. For arrays, see `kdjax.load`.

        print(kdjax.predict("runs/first", "photos/**/*.jpg", "labelled"))

    Args:
      workdir: of `kdjax.train`, or a network checkpoint.
      images: a pattern of paths, in which `**` stands for any folders.
      output: the folder to write to.
      ids: write the original ids of this data set, as "cityscapes", and not class numbers.
      opacity: of the colours over the image, 0 to 1.
      batch_size: images labelled at once; None for one on every device.
      overwrite: replace results that are there already; an image never is.
      mode: as `kdjax.evaluate` takes it, and so are the following.
      window: likewise.
      stride: likewise.
      scales: likewise.
      flip: likewise.
      pad_to: likewise; whole images are not padded unless asked for.

    Returns:
      How many images were labelled, and what it took.

    Raises:
      UserError: where there is no network or no image, for options that make no sense, and when
        something would be replaced. Images that are damaged are named when all others are done.
    """
    ranges.check_number("opacity", opacity, ranges.SHARE)
    if batch_size is not None:
        ranges.check_number("batch_size", batch_size, ranges.COUNT)
    files = Workdir(workdir)
    crop_size = files.read_config().data.crop_size if files.config.exists() else None
    inference = make_inference(mode, window, stride, scales, flip, crop_size=crop_size)
    values = None if ids is None else original_labels(ids)
    found = find_images(images, os.fspath(output), overwrite=overwrite)
    return label_images(
        TrainedNetwork.load(str(workdir), inference=inference),
        found,
        os.fspath(output),
        batch_size=batch_size or Placement().mesh.size,
        pad_to=padding(mode, pad_to, whole=1),
        values=values,
        opacity=opacity,
    )
