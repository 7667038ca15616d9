"""Prepared sets to batches of NumPy arrays, for training and for evaluation.

A training batch is a function of the records, the options, the seed and the step alone. Nothing is
shuffled through a buffer: position `step * batch_size + k` of an endless sequence of epochs names
its example by arithmetic, so any step can be had without the ones before it.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Int64

from kdjax.data._tensorflow import tf
from kdjax.data.augment import AugmentOptions, augment
from kdjax.data.builder import IGNORE_LABEL
from kdjax.data.records import decode
from kdjax.data.sets import PreparedSet
from kdjax.errors import UserError


def train_batches(
    dataset: PreparedSet,
    split: str,
    *,
    batch_size: int,
    seed: int,
    num_steps: int,
    options: AugmentOptions,
    start_step: int = 0,
    num_threads: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches of steps `start_step` to `num_steps - 1`, in order.

    Every epoch visits each example once, in an order of its own; an epoch may begin in the middle
    of a batch. Starting late costs nothing: batch 137 is the same whether 136 came before or not.

    Args:
        dataset: an open set.
        split: which of its splits.
        batch_size: examples in a batch, B.
        seed: not negative; chooses the order of the examples and what augmentation does to them.
        num_steps: the step before which to stop, counted from 0 and not from `start_step`.
        options: the augmentations; their crop size is the size of the batch's images.
        start_step: the first step.
        num_threads: threads that decode and augment; None leaves the number to tf.data.

    Returns:
        An iterator of `image`, uint8 `[B, h, w, 3]`, and `label`, uint8 `[B, h, w]`.

    Raises:
        UserError: the set has no such split.
    """
    records = dataset.records(split)

    def locate(positions: np.ndarray) -> np.ndarray:
        return example_indices(positions, len(records), seed)

    def fetch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        positions = step * batch_size + tf.range(batch_size, dtype=tf.int64)
        return records.fetch(tf.numpy_function(locate, [positions], tf.int64)), positions

    def load(record: tf.Tensor, position: tf.Tensor) -> dict[str, tf.Tensor]:
        example = decode(record)
        seeds = tf.stack([tf.constant(seed, tf.int64), position])
        image, label = augment(example["image"], example["label"], seeds, options)
        return {"image": image, "label": label}

    batches = (
        tf.data.Dataset.range(start_step, num_steps)
        .map(fetch)
        .prefetch(2)
        .unbatch()
        .map(load, num_parallel_calls=num_threads or tf.data.AUTOTUNE, deterministic=True)
        .batch(batch_size, drop_remainder=True)
        .prefetch(2)
        .with_options(_options(num_threads))
    )
    return cast(Iterator[dict[str, np.ndarray]], batches.as_numpy_iterator())


def example_indices(
    positions: Int64[np.ndarray, "B"], num_examples: int, seed: int
) -> Int64[np.ndarray, "B"]:
    """Which examples stand at `positions` of the endless sequence of shuffled epochs."""
    epochs, places = np.divmod(positions, num_examples)
    return np.array(
        [_epoch_order(num_examples, seed, int(e))[p] for e, p in zip(epochs, places, strict=True)]
    )


@functools.lru_cache(maxsize=4)
def _epoch_order(num_examples: int, seed: int, epoch: int) -> Int64[np.ndarray, "N"]:
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


def eval_batches(
    dataset: PreparedSet, split: str, *, batch_size: int, indices: Sequence[int] | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Yields whole images at their own size, each exactly once, in batches of one size.

    Images of the same height and width share batches. A batch that stays incomplete is filled up
    with blank images, so that all batches of a size have one shape.

    Args:
        dataset: an open set.
        split: which of its splits.
        batch_size: images in a batch, B.
        indices: take these images of the split only.

    Yields:
        `image`, uint8 `[B, H, W, 3]`; `label`, uint8 `[B, H, W]`; `valid`, bool `[B]`, False where
        an image only fills up, whose label is 255 throughout; `index`, int32 `[B]`, the place of
        the image in the split, and -1 where it only fills up.

    Raises:
        UserError: the set has no such split.
    """
    records = dataset.records(split)
    indices = range(len(records)) if indices is None else indices
    return _group_by_size(indices, records.decoded(indices), batch_size)


def example_names(dataset: PreparedSet, split: str) -> list[str]:
    """The names of the examples of a split, by index.

    Raises:
        UserError: the set has no such split.
    """
    return dataset.records(split).names()


def _group_by_size(
    indices: Sequence[int], examples: Iterator[dict[str, Any]], batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    groups: dict[tuple[int, int], list[tuple[int, dict[str, Any]]]] = {}
    for index, example in zip(indices, examples, strict=True):
        group = groups.setdefault(example["label"].shape, [])
        group.append((index, example))
        if len(group) == batch_size:
            yield _stack(groups.pop(example["label"].shape), batch_size)
    for group in groups.values():
        yield _stack(group, batch_size)


def _stack(group: list[tuple[int, dict[str, Any]]], batch_size: int) -> dict[str, np.ndarray]:
    height, width = group[0][1]["label"].shape
    batch = {
        "image": np.zeros((batch_size, height, width, 3), np.uint8),
        "label": np.full((batch_size, height, width), IGNORE_LABEL, np.uint8),
        "valid": np.arange(batch_size) < len(group),
        "index": np.full(batch_size, -1, np.int32),
    }
    for row, (index, example) in enumerate(group):
        batch["image"][row] = example["image"]
        batch["label"][row] = example["label"]
        batch["index"][row] = index
    return batch


def load_examples(dataset: PreparedSet, split: str, indices: Sequence[int]) -> list[dict[str, Any]]:
    """The examples at `indices` of a split, as they were prepared.

    Returns:
        For each `image`, uint8 `[H, W, 3]`; `label`, uint8 `[H, W]`; `name`, str.

    Raises:
        UserError: the set has no such split, or the split no such index.
    """
    records = dataset.records(split)
    if wrong := [index for index in indices if not 0 <= index < len(records)]:
        raise UserError(
            f"split {split!r} of {dataset.name} has no example {wrong[0]}; "
            f"its {len(records)} count from 0"
        )
    return [{**example, "name": example["name"].decode()} for example in records.decoded(indices)]


def _options(num_threads: int | None) -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    if num_threads:
        options.threading.private_threadpool_size = num_threads
    return options
