"""Boundary IoU and boundary F1: how well predictions follow the outlines of classes."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy import ndimage, spatial

from kdjax.utils.classes import IGNORE_LABEL

WIDTH = 0.02  # of the image's diagonal: the band of Boundary IoU
TOLERANCE = 0.0075  # of the diagonal: the distance at which F1 counts an outline as found
_BOX = np.ones((3, 3), bool)


def band(
    mask: Bool[np.ndarray, "H W"], ignored: Bool[np.ndarray, "H W"], width: int
) -> Bool[np.ndarray, "H W"]:
    """Returns the pixels of a mask that are at most `width` pixels away from its outline.

    The mask minus its erosion by `width` steps of a 3 x 3 square. The edge of the image is part of
    the outline, as in the authors' code. An ignored pixel is not, because its class is unknown.

    Args:
      mask: the pixels of a class.
      ignored: the pixels without a label.
      width: a positive number of pixels.
    """
    around = np.pad(mask | ignored, 1)
    distance = np.asarray(ndimage.distance_transform_cdt(around, "chessboard"))[1:-1, 1:-1]
    return mask & ~ignored & (distance <= width)


def outline(
    mask: Bool[np.ndarray, "H W"], ignored: Bool[np.ndarray, "H W"]
) -> Bool[np.ndarray, "H W"]:
    """Returns the pixels of a mask next to another class. The edge of the image is none."""
    inner = np.asarray(ndimage.binary_erosion(mask | ignored, _BOX, border_value=1), bool)
    return mask & ~ignored & ~inner


class BoundaryScores:
    """Adds up the boundaries of predictions and labels, image by image.

    Counts are summed over all images, and the scores follow from the sums, as those of mIoU.

    Args:
      num_classes: K.

    Source:
      Cheng et al., "Boundary IoU" (CVPR 2021), with the mean over classes in place of objects;
      Csurka et al., "What is a good evaluation measure for semantic segmentation?" (BMVC 2013),
      for F1.
    """

    def __init__(self, num_classes: int):
        self._classes = num_classes
        # Pixels of the bands in both and in either, and of the outlines of predictions and labels,
        # each with those that have a counterpart.
        self._counts = np.zeros((6, num_classes), np.int64)

    def add(self, maps: Mapping[str, np.ndarray]) -> None:
        """Adds a batch.

        Args:
          maps: `prediction` and `label`, [B, H, W], and `size` [B, 2], height and width of each
            image without padding.
        """
        for prediction, label, (height, width) in zip(
            maps["prediction"], maps["label"], maps["size"], strict=True
        ):
            if height:  # 0 in blank images
                inside = (slice(height), slice(width))
                self._counts += _count(prediction[inside], label[inside], self._classes)

    @property
    def iou(self) -> Float[np.ndarray, "K"]:
        """Boundary IoU; NaN for a class that neither label nor prediction has."""
        both, either, *_ = self._counts
        return ratio(both, either)

    @property
    def f1(self) -> Float[np.ndarray, "K"]:
        """Boundary F1; NaN for a class without an outline in labels and predictions."""
        _, _, found, predicted, matched, labeled = self._counts
        precision, recall = ratio(found, predicted), ratio(matched, labeled)
        # With an outline on one side alone, nothing matches.
        total = np.nan_to_num(precision) + np.nan_to_num(recall)
        score = ratio(2 * np.nan_to_num(precision) * np.nan_to_num(recall), total)
        return np.where(predicted + labeled == 0, np.nan, np.nan_to_num(score))


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Returns quotients, and NaN where the divisor is 0."""
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def _count(prediction: np.ndarray, label: np.ndarray, classes: int) -> Int64[np.ndarray, "6 K"]:
    diagonal = np.hypot(*label.shape)
    width, tolerance = max(round(WIDTH * diagonal), 1), max(TOLERANCE * diagonal, 1.0)
    ignored = label == IGNORE_LABEL
    counts = np.zeros((6, classes), np.int64)
    for number in np.union1d(np.unique(label), np.unique(prediction[~ignored])):
        if number < classes:
            masks = [found == number for found in (prediction, label)]
            mine, other = (band(mask, ignored, width) for mask in masks)
            points = [np.argwhere(outline(mask, ignored)) for mask in masks]
            counts[:, number] = (
                *(np.sum(mine & other), np.sum(mine | other)),
                *(_near(points[0], points[1], tolerance), len(points[0])),
                *(_near(points[1], points[0], tolerance), len(points[1])),
            )
    return counts


def _near(points: np.ndarray, others: np.ndarray, tolerance: float) -> int:
    """Returns the number of points that have one of the others within a distance."""
    if not len(points) or not len(others):
        return 0
    # Outlines are thin, so a tree of their points is faster than the distances of all pixels.
    distances, _ = spatial.KDTree(others).query(points)
    return int(np.sum(distances <= tolerance))
