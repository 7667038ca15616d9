"""Batches of NumPy arrays for training and evaluation.

A training batch depends on the examples, the options, the seed, and the step alone. Nothing is
shuffled through a buffer: arithmetic gives the example at position `step * batch_size + k` of an
endless sequence of epochs. So a run can start at any step, and a process can read its part alone.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np

from kdjax.data._tensorflow import tf, traced_as_written
from kdjax.data.interface import SegmentationSet
from kdjax.data.loading.augment import augment
from kdjax.data.loading.records import Records, explained
from kdjax.data.loading.sampling import (
    AugmentOptions,
    BatchIndices,
    ClassSampling,
    Draws,
    batch_by_size,
    draw,
    examples_at,
    rows_of_process,
)
from kdjax.data.loading.sources import InMemoryExamples, Mixture, Part
from kdjax.utils.bands import Bands
from kdjax.utils.classes import IGNORE_LABEL


def train_batches(  # noqa: PLR0913
    source: Mixture | InMemoryExamples | Records,
    *,
    batch_size: int,
    seed: int,
    steps: range,
    options: AugmentOptions,
    by_class: ClassSampling | None = None,
    num_threads: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Returns the batches of some steps, in order.

    Every epoch visits each example once, in its own order. An epoch may begin within a batch.
    `by_class` replaces some of the examples.

    Args:
      source: the examples, such as `records(split)` of a set.
      batch_size: examples in a batch of all processes together, B.
      seed: a non-negative number that determines the order of examples and the augmentation.
      steps: the steps, counted from 0: `range(first, last + 1)`.
      options: the augmentations. Their crop size is the size of the images.
      by_class: draws a share of the examples by class.
      num_threads: threads that decode and augment; None to let tf.data choose.
      process_index: the index of this process, which reads its own rows alone. The rows of all
        processes, in order, are the batch of a single process.
      process_count: the number n of processes that share a batch.

    Returns:
      An iterator of `image`, uint8 `[B / n, h, w, 3]` (see `augment` for other bands than those of
      photos), and `label`, uint8 `[B / n, h, w]`. With
      `options.clean_view` also `clean`, like `image`. With `options.place` also `place`, int32
      `[B / n, 5]`, as `augment` describes it, and `index`, int32 `[B / n]`, the examples' indices
      in the source.

    Raises:
      UserError: if the processes cannot share a batch evenly; from the iterator, if an example
        is damaged.
    """
    examples = Mixture([Part(source)]) if isinstance(source, Records) else source
    rows = rows_of_process(batch_size, process_index, process_count)
    form = draw(options, seed, rows)

    def locate(positions: np.ndarray) -> list[np.ndarray]:
        indices, draws = examples_at(
            positions, seed, examples.lengths, examples.weights, options, by_class
        )
        return [indices, *draws]

    @traced_as_written
    def fetch(step: tf.Tensor) -> tuple[tf.Tensor, Any, Draws]:
        positions = step * batch_size + tf.range(rows.start, rows.stop, dtype=tf.int64)
        types = [tf.as_dtype(value.dtype) for value in (np.array(0), *form)]
        indices, *numbers = tf.numpy_function(locate, [positions], types)
        draws = [tf.ensure_shape(new, old.shape) for new, old in zip(numbers, form, strict=True)]
        indices = tf.ensure_shape(indices, [len(rows)])
        return indices, examples.fetch(indices), Draws(*draws)

    @traced_as_written
    def load(index: tf.Tensor, fetched: Any, draws: Draws) -> dict[str, tf.Tensor]:
        label, read_window = examples.decode(fetched)
        crop = augment(read_window, label, draws, options)
        return {**crop, "index": tf.cast(index, tf.int32)} if options.place else crop

    settings = tf.data.Options()
    settings.deterministic = True
    if num_threads:
        settings.threading.private_threadpool_size = num_threads
    batches = (
        tf.data.Dataset.range(steps.start, steps.stop)
        .map(fetch)
        .prefetch(2)
        .unbatch()
        .map(load, num_parallel_calls=num_threads or tf.data.AUTOTUNE, deterministic=True)
        .batch(len(rows), drop_remainder=True)
        .prefetch(2)
        .with_options(settings)
    )

    def check(number: int) -> None:
        positions = (steps.start + number) * batch_size + np.array(rows)
        examples.check(locate(positions)[0].tolist())

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
    """Returns whole images, each exactly once on one process, in batches of one size.

    Images of the same height and width share batches. Blank images fill up incomplete batches, so
    that all batches of a size have one shape, and all processes run the same number of batches.

    Args:
      dataset: an open set.
      split: one of its splits.
      batch_size: images in a batch of all processes together, B.
      pad_to: pad images below and on the right to a height and a width that are multiples of this,
        so that fewer shapes are compiled. Padding changes a network's output near it, and
        everywhere if the network pools globally (PSPNet). 1 pads nothing.
      exact_below: do not pad a height and a width below these. Sliding windows of this size pad
        anyway: see `Inference.exact_below`.
      process_index: the index of this process, which reads its own rows alone.
      process_count: the number n of processes that share a batch.

    Returns:
      An iterator of `image`, `[B / n, H, W, C]` of `Bands.batch_dtype`, padded with
      `Bands.padding`; `label`, uint8 `[B / n, H, W]`, padded with 255; `size`, int32
      `[B / n, 2]`, height and width of the image, 0 for blank ones; `valid`, bool `[B / n]`, False
      for blank images, whose label is 255 throughout; `index`, int32 `[B / n]`, the index of the
      image in the split, -1 for blank ones.

    Raises:
      UserError: if the set has no such split, or the processes cannot share a batch evenly.
    """
    records = dataset.records(split)
    batches = batch_by_size(
        enumerate(records.sizes(range(len(records)))),
        batch_size,
        pad_to=pad_to,
        exact_below=exact_below,
        process_index=process_index,
        process_count=process_count,
    )
    own = [index for batch in batches for index in batch.indices if index >= 0]
    examples = records.decoded(own)
    return (_eval_batch(batch, examples, records.bands) for batch in batches)


def _eval_batch(
    batch: BatchIndices, examples: Iterator[dict[str, Any]], bands: Bands
) -> dict[str, np.ndarray]:
    """Returns a batch of the next examples, padded to its size."""
    rows = len(batch.indices)
    arrays = {
        "image": np.full((rows, *batch.size, bands.channels), bands.padding, bands.batch_dtype),
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


def load_examples(
    dataset: SegmentationSet, split: str, indices: Sequence[int]
) -> list[dict[str, Any]]:
    """Decodes the examples at `indices` of a split.

    Returns:
      For each `image`, `[H, W, C]`, uint8 `[H, W, 3]` for photos; `label`, uint8 `[H, W]`; `name`,
      str.

    Raises:
      UserError: if the set has no such split.
    """
    examples = dataset.records(split).decoded(indices)
    return [{**example, "name": example["name"].decode()} for example in examples]
