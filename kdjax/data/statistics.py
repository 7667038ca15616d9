"""What a split looks like in numbers: its sizes, its classes' shares, its colours."""

import dataclasses

import numpy as np

from kdjax.classes import IGNORE_LABEL
from kdjax.data.prepared import PreparedSet
from kdjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SplitStatistics:
    """Statistics over all pixels of a split.

    Attributes:
        num_examples: how many images there are.
        smallest: height and width of the smallest image, by area, in pixels.
        largest: those of the largest.
        class_shares: share of each of the K classes among the labelled pixels.
        ignored_share: share of ignored pixels among all.
        mean: mean red, green and blue, 0..255.
        std: their standard deviations.
    """

    num_examples: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    class_shares: tuple[float, ...]
    ignored_share: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


def measure(dataset: PreparedSet, split: str) -> SplitStatistics:
    """Reads and decodes the whole split, once.

    Raises:
        UserError: the set has no such split, or a label holds a value that is no class.
    """
    records = dataset.records(split)
    sizes: set[tuple[int, int]] = set()
    labels = np.zeros(256, np.int64)
    colors = np.zeros((3, 256), np.int64)
    for example in records.decoded(range(len(records))):
        sizes.add(example["label"].shape)
        labels += np.bincount(example["label"].ravel(), minlength=256)
        for channel in range(3):
            colors[channel] += np.bincount(example["image"][..., channel].ravel(), minlength=256)
    if labels[dataset.num_classes : IGNORE_LABEL].any():
        value = dataset.num_classes + np.flatnonzero(labels[dataset.num_classes :])[0]
        raise UserError(
            f"split {split} of {dataset.directory} has labels of value {value}, but there are only "
            f"{dataset.num_classes} classes; remove it and prepare it again"
        )
    levels = np.arange(256)
    mean = colors @ levels / labels.sum()
    std = np.sqrt(colors @ levels**2 / labels.sum() - mean**2)
    return SplitStatistics(
        num_examples=len(records),
        smallest=min(sizes, key=np.prod),
        largest=max(sizes, key=np.prod),
        class_shares=tuple(labels[: dataset.num_classes] / max(labels[:IGNORE_LABEL].sum(), 1)),
        ignored_share=labels[IGNORE_LABEL] / labels.sum(),
        mean=tuple(mean),
        std=tuple(std),
    )
