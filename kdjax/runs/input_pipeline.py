"""How training batches reach the step: from the host each time, or out of the device's memory."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from jaxtyping import Array

from kdjax.data.images import Images
from kdjax.data.loading.device_augment import augment_batch
from kdjax.models import Variables
from kdjax.teacher_cache.scores import CachedScores, ScoreFiles, expand
from kdjax.training.sharding import Placement
from kdjax.training.step import Batch, Metrics, TrainState, TrainStep

Host = TypeVar("Host")
Device = TypeVar("Device")


def prefetch(
    batches: Iterable[Host], put: Callable[[Host], Device], *, ahead: int = 1
) -> Iterator[Device]:
    """Yields every batch once it is placed and `ahead` further ones are on their way.

    Placing returns before the copy is done, and so does the start of a step: with one batch ahead,
    the copy of the next batch runs beside the computation of this one.

    Args:
      batches: what is to be placed.
      put: places one on the devices, as `Placement.put_batch`.
      ahead: batches beyond the one that is yielded; each takes its size in device memory.
    """
    queue: collections.deque[Device] = collections.deque()
    for batch in batches:
        queue.append(put(batch))
        if len(queue) > ahead:
            yield queue.popleft()
    yield from queue


@dataclasses.dataclass(frozen=True)
class InputPipeline:
    """Batches on the devices, and what is left to do to them inside the step.

    Attributes:
      batches: one for every step.
      expand: turns one into images and labels, under `jax.jit`.
    """

    batches: Iterator[Batch]
    expand: Callable[[Batch], Batch]

    def attach(self, train_step: TrainStep) -> TrainStep:
        """The step that takes these batches."""

        def step(
            state: TrainState, teacher: Variables | None, batch: Batch
        ) -> tuple[TrainState, Metrics]:
            return train_step(state, teacher, self.expand(batch))

        return step


def make_input_pipeline(
    images: Images,
    placement: Placement,
    *,
    first_step: int,
    steps: int,
    seed: int,
    clean_view: bool,
    scores: ScoreFiles | None = None,
) -> InputPipeline:
    """Opens the batches of the steps from `first_step` on, cached as the config says.

    Examples that are cached on the devices are whole on each one. Spread over them, every batch
    would have to be gathered across all devices, since any example may fall to any of them.

    With `scores` of the teacher, batches come with those of their images as `teacher`, as
    `kdjax.training.step.make_train_step` takes them; of the files only these are read.
    """
    span: dict[str, Any] = {"first_step": first_step, "steps": steps, "seed": seed}
    views = {"clean_view": clean_view, "place": scores is not None}
    if images.cache.place != "device":
        batches = _with_scores(images.train_batches(**span, **views), "index", scores)
        return InputPipeline(
            prefetch(batches, placement.put_batch),
            lambda batch: _with_teacher(batch, batch.get("cached"), scores),
        )
    examples = placement.replicate(images.in_memory.padded())
    options = images.augment_options(**views)
    batches = _with_scores(images.index_batches(**span, **views), "indices", scores)
    return InputPipeline(
        ({"examples": examples, **batch} for batch in prefetch(batches, placement.put_batch)),
        lambda batch: _with_teacher(
            augment_batch(batch["examples"], batch["indices"], batch["draws"], options),
            batch.get("cached"),
            scores,
        ),
    )


def _with_scores(
    batches: Iterable[Mapping[str, Any]], key: str, scores: ScoreFiles | None
) -> Iterator[Mapping[str, Any]]:
    """Batches with the cached scores of their examples, whose numbers stand under `key`."""
    for batch in batches:
        yield {**batch, "cached": scores.rows(batch[key])} if scores else batch


def _with_teacher(
    batch: Batch, cached: Mapping[str, Array] | None, scores: ScoreFiles | None
) -> Batch:
    """A batch with the scores of all classes, made from the cached ones, inside the step."""
    if scores is None or cached is None:
        return batch
    maps = CachedScores(
        expand(cached, scores.num_classes),
        cached["size"],
        batch["place"],
        batch["image"].shape[1:3],
    )
    rest = {key: value for key, value in batch.items() if key != "cached"}
    return {**rest, "teacher": maps}
