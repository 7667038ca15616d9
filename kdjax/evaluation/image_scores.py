"""Scores of single images: the worst ones, and those whose label may be wrong."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

COUNT = 4  # images of each kind


@dataclasses.dataclass(frozen=True)
class ImageScore:
    """The score of one image.

    Attributes:
      index: the index of the image in its split.
      miou: the mean of the IoU over the classes in its label.
      disputed: the share of its labeled pixels where student and teacher predict the same class,
        and the label has another one. 0 without a teacher.
      predictions: the label maps of "teacher", if there is one, and "student".
    """

    index: int
    miou: float
    disputed: float
    predictions: Mapping[str, UInt8[np.ndarray, "H W"]] = dataclasses.field(repr=False)


class ImageScores:
    """Keeps the images with the lowest IoU, and those with the largest disputed share.

    Args:
      num_classes: K.

    Attributes:
      worst: at most `COUNT` images, the lowest mIoU first.
      disputed: at most `COUNT` images, the largest disputed share first, without shares of 0.
    """

    def __init__(self, num_classes: int):
        self._classes = num_classes
        self.worst: list[ImageScore] = []
        self.disputed: list[ImageScore] = []

    def as_dict(self, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """Returns both lists for JSON, without predictions.

        Args:
          names: the names of all images of the split.
        """

        def listed(scores: Sequence[ImageScore]) -> list[dict[str, Any]]:
            return [
                {
                    "index": score.index,
                    "name": names[score.index],
                    "miou": score.miou,
                    "disputed": score.disputed,
                }
                for score in scores
            ]

        return {"worst": listed(self.worst), "disputed": listed(self.disputed)}

    def add(self, maps: Mapping[str, np.ndarray]) -> None:
        """Adds a batch.

        Args:
          maps: `prediction` and `label`, [B, H, W]; `reference`, the same of the teacher, if there
            is one; `size` [B, 2], height and width of each image without padding; `index` [B].
        """
        for row in np.flatnonzero(maps["index"] >= 0):
            height, width = maps["size"][row]
            image = {
                key: maps[key][row, :height, :width].astype(np.uint8)
                for key in ("prediction", "label", "reference")
                if key in maps
            }
            if found := _score(int(maps["index"][row]), image, self._classes):
                self.worst = _first([*self.worst, found], lambda score: score.miou)
                if found.disputed:
                    self.disputed = _first([*self.disputed, found], lambda score: -score.disputed)


def _first(scores: Sequence[ImageScore], key: Callable[[ImageScore], float]) -> list[ImageScore]:
    return sorted(scores, key=lambda score: (key(score), score.index))[:COUNT]


def _score(index: int, image: Mapping[str, np.ndarray], classes: int) -> ImageScore | None:
    """Returns the score of an image, or None if none of its pixels has a label."""
    valid = image["label"] < classes
    if not valid.any():
        return None
    label, prediction = (image[key][valid] for key in ("label", "prediction"))
    hits, labeled, predicted = (
        np.bincount(values, minlength=256)[:classes]
        for values in (label[label == prediction], label, prediction)
    )
    occurs = labeled > 0
    iou = hits[occurs] / (labeled + predicted - hits)[occurs]
    disputed, predictions = 0.0, {}
    if "reference" in image:
        reference = image["reference"][valid]
        disputed = float(np.mean((prediction == reference) & (prediction != label)))
        predictions["teacher"] = image["reference"]
    predictions["student"] = image["prediction"]
    return ImageScore(index, float(iou.mean()), disputed, predictions)
