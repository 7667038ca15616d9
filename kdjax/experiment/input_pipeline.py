"""The batches of a run on the devices, with the teacher's cached maps if there are any."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from jaxtyping import Array

from kdjax.data.loading.device_augment import augment_batch
from kdjax.data.run_data import RunData
from kdjax.models import Variables
from kdjax.teachers.cache import OpenCache
from kdjax.teachers.sampling import CachedMaps
from kdjax.training.sharding import Placement
from kdjax.training.step import Batch, Metrics, TrainState, TrainStep

Host = TypeVar("Host")
Device = TypeVar("Device")


def prefetch(
    batches: Iterable[Host], put: Callable[[Host], Device], *, ahead: int = 1
) -> Iterator[Device]:
    """Yields each batch on the devices, after starting the copies of the next `ahead` batches.

    Neither the copy of a batch nor a step blocks the host, so that the next batch is copied during
    the step.

    Args:
      batches: batches on the host.
      put: places a batch on the devices, such as `Placement.put_batch`.
      ahead: the number of further batches, each of which takes device memory.
    """
    queue: collections.deque[Device] = collections.deque()
    for batch in batches:
        queue.append(put(batch))
        if len(queue) > ahead:
            yield queue.popleft()
    yield from queue


@dataclasses.dataclass(frozen=True)
class InputPipeline:
    """Batches on the devices, and the rest of their preparation, which runs inside the step.

    Attributes:
      batches: a batch for every step.
      expand: turns a batch into images and labels, under `jax.jit`.
    """

    batches: Iterator[Batch]
    expand: Callable[[Batch], Batch]

    def attach(self, train_step: TrainStep) -> TrainStep:
        """Returns the step that takes these batches."""

        def step(
            state: TrainState, teacher: Variables | None, batch: Batch
        ) -> tuple[TrainState, Metrics]:
            return train_step(state, teacher, self.expand(batch))

        return step


def make_input_pipeline(
    images: RunData,
    placement: Placement,
    *,
    first_step: int,
    steps: int,
    seed: int,
    clean_view: bool,
    cache: OpenCache | None = None,
) -> InputPipeline:
    """Returns the batches of the steps after `first_step`.

    If examples are cached on the devices, each device holds all of them. Were they split, every
    batch would be gathered across all devices.

    Args:
      images: the data set.
      placement: the mesh.
      first_step: the number of steps that were done before.
      steps: the number of steps of the whole run.
      seed: the seed of the run.
      clean_view: True to add each crop before its colors were changed, as `clean`.
      cache: the teacher's cached maps. Batches then hold those of their images as `teacher`, as
        `kdjax.training.step.make_train_step` takes them.
    """
    span: dict[str, Any] = {"first_step": first_step, "steps": steps, "seed": seed}
    views = {"clean_view": clean_view, "place": cache is not None}
    if images.cache.place != "device":
        batches = _with_maps(images.train_batches(**span, **views), "index", cache)
        return InputPipeline(
            prefetch(batches, placement.put_batch),
            lambda batch: _with_teacher(batch, batch.get("cached"), cache),
        )
    examples = placement.replicate(images.in_memory.padded())
    options = images.augment_options(**views)
    batches = _with_maps(images.index_batches(**span, **views), "indices", cache)
    return InputPipeline(
        ({"examples": examples, **batch} for batch in prefetch(batches, placement.put_batch)),
        lambda batch: _with_teacher(
            augment_batch(batch["examples"], batch["indices"], batch["draws"], options),
            batch.get("cached"),
            cache,
        ),
    )


def _with_maps(
    batches: Iterable[Mapping[str, Any]], key: str, cache: OpenCache | None
) -> Iterator[Mapping[str, Any]]:
    """Yields batches with the cached maps of their examples, whose indices are under `key`."""
    for batch in batches:
        yield {**batch, "cached": cache.rows(batch[key])} if cache else batch


def _with_teacher(
    batch: Batch, cached: Mapping[str, Mapping[str, Array]] | None, cache: OpenCache | None
) -> Batch:
    """Returns a batch with the teacher's maps of whole images, inside the step."""
    if cache is None or cached is None:
        return batch
    maps = CachedMaps(
        {
            name: (cache.maps[name].compression.expand(arrays), arrays["size"])
            for name, arrays in cached.items()
        },
        batch["place"],
        batch["image"].shape[1:3],
        tuple(sorted(cache.grids.items())),
    )
    rest = {key: value for key, value in batch.items() if key != "cached"}
    return {**rest, "teacher": maps}
