"""Data sets to batches of NumPy arrays, for training and for evaluation.

A training batch is a function of the examples, the options, the seed and the step alone. Nothing is
shuffled through a buffer: position `step * batch_size + k` of an endless sequence of epochs names
its example by arithmetic, so any step can be had without the ones before it, and any part of a
batch without the rest.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np

from kdjax.data._tensorflow import tf, traced_as_written
from kdjax.data.interface import SegmentationSet, Source
from kdjax.data.loading.augment import augment
from kdjax.data.loading.records import explained
from kdjax.data.loading.sampling import (
    IMAGE_PADDING,
    AugmentOptions,
    BatchIndices,
    Draws,
    batch_by_size,
    draw,
    example_indices,
    rows_of_process,
)
from kdjax.utils.classes import IGNORE_LABEL
from kdjax.utils.errors import UserError


def train_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    num_steps: int,
    options: AugmentOptions,
    start_step: int = 0,
    num_threads: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches of steps `start_step` to `num_steps - 1`, in order.

    Every epoch visits each example once, in an order of its own; an epoch may begin in the middle
    of a batch. Starting late costs nothing: batch 137 is the same whether 136 came before or not.

    Args:
      source: the examples, such as `records(split)` of a set.
      batch_size: examples in a batch of all processes together, B.
      seed: not negative; chooses the order of the examples and what augmentation does to them.
      num_steps: the step before which to stop, counted from 0 and not from `start_step`.
      options: the augmentations; their crop size is the size of the batch's images.
      start_step: the first step.
      num_threads: threads that decode and augment; None leaves the number to tf.data.
      process_index: which process this is. It reads, decodes and augments its own rows alone;
        those of all processes, one after the other, are the batch of a single one.
      process_count: n, how many processes share a batch.

    Returns:
      An iterator of `image`, uint8 `[B / n, h, w, 3]`, and `label`, uint8 `[B / n, h, w]`; with
      `options.clean_view` also `clean`, like `image`; with `options.place` also `place`, int32
      `[B / n, 5]`, as `augment` describes it, and `index`, int32 `[B / n]`, the examples' numbers
      in the source.

    Raises:
      UserError: the processes cannot share a batch evenly; from the iterator, where an example
        cannot be read or decoded.
    """
    rows = rows_of_process(batch_size, process_index, process_count)
    form = draw(options, seed, rows)

    def locate(positions: np.ndarray) -> list[np.ndarray]:
        indices = example_indices(positions, seed, source.lengths, source.weights)
        return [indices, *draw(options, seed, positions)]

    @traced_as_written
    def fetch(step: tf.Tensor) -> tuple[tf.Tensor, Any, Draws]:
        positions = step * batch_size + tf.range(rows.start, rows.stop, dtype=tf.int64)
        types = [tf.as_dtype(value.dtype) for value in (np.array(0), *form)]
        indices, *numbers = tf.numpy_function(locate, [positions], types)
        draws = [tf.ensure_shape(new, old.shape) for new, old in zip(numbers, form, strict=True)]
        indices = tf.ensure_shape(indices, [len(rows)])
        return indices, source.fetch(indices), Draws(*draws)

    @traced_as_written
    def load(index: tf.Tensor, fetched: Any, draws: Draws) -> dict[str, tf.Tensor]:
        label, read_window = source.decode(fetched)
        crop = augment(read_window, label, draws, options)
        return {**crop, "index": tf.cast(index, tf.int32)} if options.place else crop

    batches = (
        tf.data.Dataset.range(start_step, num_steps)
        .map(fetch)
        .prefetch(2)
        .unbatch()
        .map(load, num_parallel_calls=num_threads or tf.data.AUTOTUNE, deterministic=True)
        .batch(len(rows), drop_remainder=True)
        .prefetch(2)
        .with_options(_options(num_threads))
    )

    def check(number: int) -> None:
        positions = (start_step + number) * batch_size + np.array(rows)
        source.check(locate(positions)[0].tolist())

    return explained(cast(Iterator[dict[str, np.ndarray]], batches.as_numpy_iterator()), check)


def eval_batches(
    dataset: SegmentationSet,
    split: str,
    *,
    batch_size: int,
    pad_to: int = 1,
    exact_below: tuple[int, int] = (0, 0),
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields whole images, each exactly once on one process, in batches of one size.

    Images of the same height and width share batches. A batch that stays incomplete is filled up
    with blank images, so that all batches of a size have one shape, and all processes run the same
    number of batches.

    Args:
      dataset: an open set.
      split: which of its splits.
      batch_size: images in a batch of all processes together, B.
      pad_to: pad images below and on the right, to a height and a width that are multiples of
        this, so that fewer shapes are compiled. What a network says near the padding changes,
        and everywhere where it pools globally (PSPNet); 1 pads nothing.
      exact_below: leave a height and a width below these as they are, as `Inference.exact_below`
        of sliding windows, which padding then does not change.
      process_index: which process this is; it reads its own rows alone.
      process_count: n, how many processes share a batch.

    Returns:
      An iterator of `image`, uint8 `[B / n, H, W, 3]`, padded with `IMAGE_PADDING`; `label`,
      uint8 `[B / n, H, W]`, padded with 255; `size`, int32 `[B / n, 2]`, the image's own height
      and width, 0 where it only fills up; `valid`, bool `[B / n]`, False where an image only
      fills up, whose label is 255 throughout; `index`, int32 `[B / n]`, the place of the image
      in the split, and -1 where it only fills up.

    Raises:
      UserError: the set has no such split, or the processes cannot share a batch evenly.
    """
    records = dataset.records(split)
    sizes = records.sizes(range(len(records)))
    batches = batch_by_size(
        enumerate(sizes),
        batch_size,
        pad_to=pad_to,
        exact_below=exact_below,
        process_index=process_index,
        process_count=process_count,
    )
    own = [index for batch in batches for index in batch.indices if index >= 0]
    examples = records.decoded(own)
    return (_eval_batch(batch, examples) for batch in batches)


def _eval_batch(batch: BatchIndices, examples: Iterator[dict[str, Any]]) -> dict[str, np.ndarray]:
    """A batch of the next examples, padded to its size."""
    rows = len(batch.indices)
    arrays = {
        "image": np.full((rows, *batch.size, 3), IMAGE_PADDING, np.uint8),
        "label": np.full((rows, *batch.size), IGNORE_LABEL, np.uint8),
        "size": np.zeros((rows, 2), np.int32),
        "valid": np.array(batch.indices) >= 0,
        "index": np.array(batch.indices, np.int32),
    }
    for row in np.flatnonzero(arrays["valid"]):
        example = next(examples)
        height, width = arrays["size"][row] = example["label"].shape
        arrays["image"][row, :height, :width] = example["image"]
        arrays["label"][row, :height, :width] = example["label"]
    return arrays


def example_names(dataset: SegmentationSet, split: str) -> list[str]:
    """The names of the examples of a split, by index.

    Raises:
      UserError: the set has no such split.
    """
    return dataset.records(split).names()


def load_examples(
    dataset: SegmentationSet, split: str, indices: Sequence[int]
) -> list[dict[str, Any]]:
    """The examples at `indices` of a split, decoded.

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
