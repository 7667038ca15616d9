"""From a config to what training takes: student, terms, state, step, and batches on the devices."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Array, UInt8

from kdjax.config import RunOptions
from kdjax.data.images import Images
from kdjax.data.loading.device_augment import augment_batch
from kdjax.distillation import Distiller, Spec
from kdjax.distillation.feature_maps import array_of
from kdjax.interop import imagenet
from kdjax.models import Network, NNXNetwork, Variables, serialization
from kdjax.models.network import SCORES, arrays_by_path, is_random_key, preprocessing_of, trace_maps
from kdjax.models.options import IMAGENET_WEIGHTS, StudentOptions
from kdjax.models.serialization import NetworkInfo
from kdjax.teachers.scores import CachedScores, ScoreFiles, expand_scores
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
from kdjax.utils.classes import IGNORE_LABEL, class_order, differing_class
from kdjax.utils.errors import UserError

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
        network, variables, start = serialization.load(
            student.checkpoint, dtype=student.dtype, seed=options.seed
        )
        _check_start(student, info, start, variables)
        return network, variables, _started_from(info, start, student.checkpoint)
    network = info.make(dtype=student.dtype, where="config.student")
    variables = network.init(jax.random.key(options.seed), info.blank_image())
    info = dataclasses.replace(info, preprocessing=preprocessing_of(network))
    if student.backbone == IMAGENET_WEIGHTS:
        return network, *_take_imagenet(student, network, variables, info)
    if student.backbone:
        return network, *_take_backbone(student.backbone, variables, info, options.seed)
    return network, variables, info


def _check_start(
    student: StudentOptions, info: NetworkInfo, start: NetworkInfo, variables: Variables
) -> None:
    """Requires a checkpoint of the network and of the classes that a run trains."""
    for key in ("name", "num_classes", "width", "auxiliary", "options"):
        wanted, found = getattr(info, key), getattr(start, key)
        if wanted != found and not (key == "auxiliary" and _same_arrays(student, info, variables)):
            raise UserError(
                f"config.student.checkpoint {student.checkpoint} has {key} {found!r}; this run "
                f"needs {wanted!r}"
            )
    if student.any_class_names:
        return
    try:
        difference = class_order(start.class_names, info.class_names) and differing_class(
            info.class_names, start.class_names
        )
    except ValueError as error:
        difference = str(error)
    if difference:
        raise UserError(
            f"config.student.checkpoint {student.checkpoint} scores other classes than the data, "
            f"or the same in another order ({difference}); name it in config.student.backbone to "
            "take its backbone alone, or set config.student.any_class_names to True to take its "
            "classes by their numbers, whatever their names"
        )


def _same_arrays(student: StudentOptions, info: NetworkInfo, variables: Variables) -> bool:
    """Returns whether a network has the same arrays as the one that `info` describes."""
    network = info.make(dtype=student.dtype, where="config.student")
    abstract = jax.eval_shape(network.init, jax.random.key(0), info.blank_image())
    return _shapes(abstract) == _shapes(variables)


def _take_backbone(
    path: str, variables: Variables, info: NetworkInfo, seed: int
) -> tuple[Variables, NetworkInfo]:
    """Returns the variables with the backbone of the network in `path`, and `info` with its input.

    Classes, head, and the number of channels behind the backbone may differ. The random keys of the
    backbone's modules are made from `seed`, since a checkpoint holds none.
    """
    _, source, start = serialization.load(path, seed=seed)
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
    """Returns the distillation terms of a config, or None if the config has none.

    Both networks are traced on batches as training and evaluation give them, to find their maps and
    what would fail later.

    Args:
      options: of the run.
      student: the network and its variables, or `jax.ShapeDtypeStruct` in their place.
      teacher: the same of the teacher, or its maps alone; None if no term reads the teacher.
      num_classes: of the data.

    Raises:
      UserError: if a term does not fit the networks, or if a network fails or scores other classes.
    """
    size, micro_batch = options.data.crop_size, micro_batch_size(options)
    name = f"config.student {options.student.name}"
    maps = trace_maps(*student, size, train=True, batch=micro_batch, name=name)
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
        teacher_maps = trace_maps(*teacher, size, train=False, batch=micro_batch, name=name)
    return Distiller(
        options.terms,
        student=maps,
        teacher=teacher_maps,
        image_size=size,
        ignore_label=IGNORE_LABEL,
        where="config.terms",
    )


def micro_batch_size(options: RunOptions) -> int:
    """Returns the number of images that a step passes through the networks at once."""
    return options.data.batch_size // options.optimizer.accumulate


def check_evaluation(
    options: RunOptions, images: Images, network: Network, variables: Variables, name: str
) -> None:
    """Traces a network on the smallest and the largest images that evaluation gives it.

    Args:
      options: of the run.
      images: its data set.
      network: the network.
      variables: its arrays.
      name: what messages call the network.

    Raises:
      UserError: as `kdjax.models.network.trace_maps`.
    """
    for size in images.evaluated_sizes():
        batch = options.data.eval_batch_size
        trace_maps(network, variables, size, train=False, batch=batch, name=name)


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
    """Returns the step, not yet jitted."""
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
