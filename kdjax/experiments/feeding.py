"""How training batches reach the step: from the host each time, or out of the device's memory."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from kdjax.data.device_augment import augment_batch
from kdjax.experiments.images import Images
from kdjax.experiments.score_files import ScoreFiles
from kdjax.training.compact_scores import expand
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
    scores: ScoreFiles | None = None,
) -> Feed:
    """Opens the batches of the steps from `first_step` on, cached as the config says.

    Examples that are kept on the devices are kept whole on each one. Spread over them, every batch
    would have to be gathered across all devices, since any example may fall to any of them.

    With `scores` of the teacher, batches hold `cached`, those of their images, as
    `kdjax.training.step.make_train_step` takes them; of the files only these are read.
    """
    span: dict[str, Any] = {"first_step": first_step, "steps": steps, "seed": seed}
    views = {"clean_view": clean_view, "place": scores is not None}
    if images.cache.place != "device":
        batches = _with_scores(images.train_batches(**span, **views), "index", scores)
        return Feed(
            prefetch(batches, placement.put_batch), lambda batch: {**batch, **_dense(batch, scores)}
        )
    held = placement.replicate(images.held.padded())
    options = images.augment_options(**views)
    batches = _with_scores(images.index_batches(**span, **views), "indices", scores)
    return Feed(
        ({"held": held, **batch} for batch in prefetch(batches, placement.put_batch)),
        lambda batch: {
            **augment_batch(batch["held"], batch["indices"], batch["draws"], options),
            **_dense(batch, scores),
        },
    )


def _with_scores(
    batches: Iterable[Mapping[str, Any]], key: str, scores: ScoreFiles | None
) -> Iterator[Mapping[str, Any]]:
    """Batches with the kept scores of their examples, whose numbers stand under `key`."""
    for batch in batches:
        yield {**batch, "cached": scores.rows(batch[key])} if scores else batch


def _dense(batch: Batch, scores: ScoreFiles | None) -> Batch:
    """The scores of all classes, made from those that were kept, inside the step."""
    if scores is None:
        return {}
    cached = batch["cached"]
    dense = expand(cached, scores.num_classes)
    return {"cached": {"scores": dense, "size": cached["size"]}}
