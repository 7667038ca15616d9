"""From a config to what training takes: student, terms, state, step, and batches on the devices."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Array, UInt8

from kdjax.classes import IGNORE_LABEL
from kdjax.config import RunOptions
from kdjax.data.images import Images
from kdjax.data.loading.device_augment import augment_batch
from kdjax.distillation import Distiller, Spec
from kdjax.distillation.feature_maps import array_of
from kdjax.errors import UserError
from kdjax.interop import imagenet
from kdjax.models import Network, NNXNetwork, Variables, saved
from kdjax.models.folding import FrozenNetwork
from kdjax.models.network import SCORES, arrays_by_path, is_random_key, preprocessing_of, trace_maps
from kdjax.models.options import IMAGENET_WEIGHTS, StudentOptions
from kdjax.models.saved import NetworkInfo
from kdjax.teacher_cache.scores import CachedScores, ScoreFiles, expand_scores
from kdjax.training import optimizer as optimizers
from kdjax.training.sharding import Placement
from kdjax.training.step import (
    Batch,
    Metrics,
    Objective,
    PreprocessedNetwork,
    TrainState,
    TrainStep,
    create_state,
    make_train_step,
)

BACKBONE = "backbone"


def make_student(
    options: RunOptions, class_names: Sequence[str], palette: UInt8[np.ndarray, "K 3"]
) -> tuple[Network, Variables, NetworkInfo]:
    """The student of a config for these classes: fresh, on a trained backbone, or as it was saved.

    Raises:
      UserError: for a network that cannot be made, and when the checkpoint to start from is
        missing, damaged, or of another network.
    """
    student = options.student
    info = NetworkInfo(
        name=student.name,
        num_classes=len(class_names),
        width=student.width,
        auxiliary=student.auxiliary,
        class_names=tuple(class_names),
        palette=tuple(tuple(int(value) for value in color) for color in palette),
        options=dict(student.options),
        image_size=options.data.crop_size,
        source=f"trained by kdjax from seed {options.seed}",
    )
    if student.checkpoint:
        network, variables, start = saved.load(
            student.checkpoint, dtype=student.dtype, seed=options.seed
        )
        for key in ("name", "num_classes", "width", "auxiliary", "options"):
            if getattr(start, key) != getattr(info, key):
                raise UserError(
                    f"config.student.checkpoint {student.checkpoint} has {key} "
                    f"{getattr(start, key)!r}; this run needs {getattr(info, key)!r}"
                )
        return network, variables, _started_from(info, start, student.checkpoint)
    network = info.make(dtype=student.dtype, where="config.student")
    variables = network.init(jax.random.key(options.seed), info.blank_image())
    info = dataclasses.replace(info, preprocessing=preprocessing_of(network))
    if student.backbone == IMAGENET_WEIGHTS:
        return network, *_take_imagenet(student, network, variables, info)
    if student.backbone:
        return network, *_take_backbone(student.backbone, variables, info)
    return network, variables, info


def _take_backbone(
    path: str, variables: Variables, info: NetworkInfo
) -> tuple[Variables, NetworkInfo]:
    """The variables with the backbone of the network in `path`, and `info` with its input.

    Classes, head and the number of channels behind the backbone may differ.
    """
    _, source, start = saved.load(path)
    taken = {}
    for kind, tree in variables.items():
        fresh, trained = tree.get(BACKBONE, {}), source[kind].get(BACKBONE, {})
        if _shapes(fresh) != _shapes(trained) or (kind == "params" and not fresh):
            raise UserError(
                f"config.student.backbone {path} is that of {start.name} (width {start.width}); "
                f"{info.name} (width {info.width}) has another"
            )
        taken[kind] = {**tree, **({BACKBONE: trained} if trained else {})}
    return taken, _started_from(info, start, path, "its backbone ")


def _started_from(info: NetworkInfo, start: NetworkInfo, path: str, how: str = "") -> NetworkInfo:
    return dataclasses.replace(
        info,
        preprocessing=start.preprocessing,
        source=f"{info.source}, {how}from {path} ({start.fingerprint})",
        initial_weights={"path": path, "fingerprint": start.fingerprint},
    )


def _take_imagenet(
    options: StudentOptions, network: Network, variables: Variables, info: NetworkInfo
) -> tuple[Variables, NetworkInfo]:
    """As `_take_backbone`, with the weights that are published for the backbone."""
    found = imagenet.find(options, "config.student")
    assert isinstance(network, NNXNetwork)  # as all for which some are published
    variables, preprocessing = found.load(network, variables)
    return variables, dataclasses.replace(
        info,
        preprocessing=preprocessing,
        source=f"{info.source}, its backbone from {found.path.name} (SHA-256 {found.sha256})",
        initial_weights={"file": found.path.name, "sha256": found.sha256},
    )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    arrays = arrays_by_path(tree)
    return {path: leaf.shape for path, leaf in arrays.items() if not is_random_key(leaf)}


def assemble_distiller(
    options: RunOptions,
    student: tuple[Network, Variables],
    teacher: tuple[Network, Variables] | Mapping[str, Spec] | None,
    *,
    num_classes: int,
) -> Distiller | None:
    """The distillation terms of a config; None where it has none.

    What maps there are, and of which channels and strides, is found by tracing both networks.

    Args:
      options: of the run.
      student: the network and its variables, or what stands for them.
      teacher: likewise, or its maps alone; None where no term reads it.
      num_classes: of the data.

    Raises:
      UserError: for terms that do not go with the networks, and networks that fail, or score other
        classes.
    """
    size = options.data.crop_size
    maps = trace_maps(*student, size, train=True, name=f"config.student {options.student.name}")
    if (found := array_of(maps[SCORES]).shape[-1]) != num_classes:
        raise UserError(
            f"config.student {options.student.name} scores {found} classes; the data have "
            f"{num_classes}"
        )
    if not options.terms:
        return None
    if teacher is None or isinstance(teacher, Mapping):
        teacher_maps = teacher
    else:
        name = f"config.teacher {options.teacher.name or options.teacher.checkpoint}"
        teacher_maps = trace_maps(*teacher, size, train=False, name=name)
    return Distiller(
        options.terms,
        student=maps,
        teacher=teacher_maps,
        image_size=size,
        ignore_label=IGNORE_LABEL,
        where="config.terms",
    )


def assemble_state(
    options: RunOptions, student: Variables, distiller: Distiller | None
) -> TrainState:
    """The state before the first step, of a student's variables."""
    return create_state(
        student,
        distiller.init(jax.random.key(options.seed)) if distiller else ({}, {}),
        optimizers.make_optimizer(options.optimizer, options.steps),
        ema=options.optimizer.ema_decay > 0,
        seed=options.seed,
    )


def assemble_step(
    options: RunOptions,
    student: PreprocessedNetwork,
    teacher: PreprocessedNetwork | None,
    distiller: Distiller | None,
) -> TrainStep:
    """The step, not yet jitted.

    A teacher in bfloat16 runs folded; in int8 it is so already. In float32 it runs as evaluation
    runs it, so that what was measured stays to the digit.
    """
    if (
        teacher is not None
        and options.teacher.dtype == "bfloat16"
        and not options.teacher.int8
        and isinstance(teacher.network, NNXNetwork)
    ):
        teacher = dataclasses.replace(teacher, network=FrozenNetwork(teacher.network))
    return make_train_step(
        student,
        teacher,
        Objective(
            options.loss.cross_entropy, options.loss.auxiliary, distiller, options.loss.mean_over
        ),
        optimizers.make_optimizer(options.optimizer, options.steps),
        optimizers.learning_rate_schedule(options.optimizer, options.steps),
        steps=options.steps,
        accumulate=options.optimizer.accumulate,
        ema_decay=options.optimizer.ema_decay,
    )


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
        expand_scores(cached, scores.num_classes),
        cached["size"],
        batch["place"],
        batch["image"].shape[1:3],
    )
    rest = {key: value for key, value in batch.items() if key != "cached"}
    return {**rest, "teacher": maps}
