"""How training batches reach the step: from the host each time, or out of the device's memory."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from kdjax.data.device_augment import augment_batch
from kdjax.experiments.images import Images
from kdjax.training.prefetch import prefetch
from kdjax.training.sharding import Placement
from kdjax.training.state import TrainState
from kdjax.training.step import Batch, Metrics, TrainStep


@dataclasses.dataclass(frozen=True)
class Feed:
    """Batches on the devices, and what is left to do to them inside the step.

    Attributes:
      batches: one for every step.
      expand: turns one into images and labels, under `jax.jit`.
    """

    batches: Iterator[Batch]
    expand: Callable[[Batch], Batch]

    def attach(self, train_step: TrainStep) -> TrainStep:
        """The step that takes these batches."""

        def step(state: TrainState, teacher: Any, batch: Batch) -> tuple[TrainState, Metrics]:
            return train_step(state, teacher, self.expand(batch))

        return step


def feed(
    images: Images,
    placement: Placement,
    *,
    first_step: int,
    steps: int,
    seed: int,
    clean_view: bool,
) -> Feed:
    """Opens the batches of the steps from `first_step` on, cached as the config says.

    Examples that are kept on the devices are kept whole on each one. Spread over them, every batch
    would have to be gathered across all devices, since any example may fall to any of them.
    """
    span = {"first_step": first_step, "steps": steps, "seed": seed, "clean_view": clean_view}
    if images.cache.place != "device":
        batches = images.train_batches(**span)
        return Feed(prefetch(batches, placement.put_batch), lambda batch: batch)
    held = placement.replicate(images.held.padded())
    options = images.augment_options(clean_view=clean_view)
    batches = prefetch(images.index_batches(**span), placement.put_batch)
    return Feed(
        ({"held": held, **batch} for batch in batches),
        lambda batch: augment_batch(batch["held"], batch["indices"], batch["draws"], options),
    )
