"""Training batches for examples that lie on the device: only indices and random numbers travel."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from kdjax.data.augmentation import AugmentOptions, draw
from kdjax.data.order import example_indices
from kdjax.data.share import rows_of_process


def index_batches(
    lengths: Sequence[int],
    weights: Sequence[int],
    *,
    batch_size: int,
    seed: int,
    num_steps: int,
    options: AugmentOptions,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, Any]]:
    """What `kdjax.data.device_augment.augment_batch` takes to make the batches of the pipeline.

    Args:
        lengths: number of examples of each set.
        weights: how many of the examples in a row come from each set.
        batch_size: examples in a batch of all processes together, B.
        seed: not negative; chooses the order of the examples and what augmentation does to them.
        num_steps: the step before which to stop, counted from 0.
        options: the augmentations.
        start_step: the first step.
        process_index: which process this is.
        process_count: n, how many processes share a batch.

    Yields:
        `indices`, int32 `[B / n]`, and `draws`, with an axis `[B / n]`.

    Raises:
        UserError: the processes cannot share a batch evenly.
    """
    rows = np.array(rows_of_process(batch_size, process_index, process_count))
    for step in range(start_step, num_steps):
        positions = step * batch_size + rows
        indices = example_indices(positions, seed, lengths, weights)
        yield {"indices": indices.astype(np.int32), "draws": draw(options, seed, positions)}
