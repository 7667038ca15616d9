"""Scores from one confusion matrix over a whole split."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int


def confusion_matrix(
    predictions: Int[Array, "..."], labels: Int[Array, "..."], num_classes: int
) -> Int[Array, "K K"]:
    """Counts pixels by (label, prediction), in integers.

    Args:
      predictions: class ids in 0..K-1, of any shape.
      labels: train ids of the same shape; those outside 0..K-1 (255 is the ignore label) are left
        out.
      num_classes: K.
    """
    labels = labels.astype(jnp.int32).ravel()
    valid = (labels >= 0) & (labels < num_classes)
    # The cells past the end collect what is left out.
    cells = jnp.where(valid, labels * num_classes + predictions.ravel(), num_classes**2)
    counts = jnp.bincount(cells, length=num_classes**2 + 1)
    return counts[:-1].reshape(num_classes, num_classes).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a network scored on a split.

    Attributes:
      confusion: pixels by (label, prediction), int64 [K, K].
      agreement: share of the labelled pixels where student and teacher predict the same class, or
        None where there is no teacher.
    """

    confusion: np.ndarray
    agreement: float | None = None

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union [K]; nan for a class that neither label nor prediction has."""
        hits = np.diag(self.confusion)
        union = self.confusion.sum(0) + self.confusion.sum(1) - hits
        return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)

    @property
    def miou(self) -> float:
        """Mean of the IoU over the classes that occur; nan where no pixel has a label."""
        iou = self.iou
        return float(iou[~np.isnan(iou)].mean()) if not np.isnan(iou).all() else float("nan")

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels that are right; nan where no pixel has a label."""
        total = self.confusion.sum()
        return float(np.trace(self.confusion) / total) if total else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """The scores as JSON holds them; None stands for nan."""

        def known(value: float | None) -> float | None:
            return None if value is None or np.isnan(value) else float(value)

        return {
            "miou": known(self.miou),
            "pixel_accuracy": known(self.pixel_accuracy),
            "agreement": known(self.agreement),
            "iou": [known(value) for value in self.iou],
        }
