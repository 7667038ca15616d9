"""The training step of a config, for devices that need not be present."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import numpy as np

from kdjax import config as configuration
from kdjax.config import Config, RunOptions
from kdjax.distillation import need_teacher
from kdjax.distillation.feature_maps import SCORES, array_of
from kdjax.experiment.build import build_distiller, build_state, build_step
from kdjax.models import Network, Variables, make_network, serialization
from kdjax.models.batch_norm import with_batch_norm
from kdjax.models.folding import FrozenNetwork, can_freeze
from kdjax.models.model_files import is_model_file
from kdjax.models.network import maps_of, preprocessing_of
from kdjax.training.profiling import count_flops
from kdjax.training.sharding import Placement
from kdjax.training.step import Batch, PreprocessedNetwork, TrainState, TrainStep
from kdjax.utils import imports
from kdjax.utils.environment import compiler_options
from kdjax.utils.errors import UserError


class DoesNotFit(Exception):
    """The compiler found that the program needs more memory than the device has."""


@dataclasses.dataclass(frozen=True)
class Work:
    """Multiplications and additions of one step on all devices."""

    teacher: int  # the part of the teacher's forward pass that the terms read
    student: int  # the student's forward pass
    step: int  # the whole step


@dataclasses.dataclass(frozen=True)
class Program:
    """A training step and its arguments, as `jax.ShapeDtypeStruct` with shardings.

    `start` makes the initial training state and the teacher's variables.
    """

    start: Callable[[], tuple[TrainState, Variables | None]]
    step: TrainStep
    state: TrainState
    frozen: Variables | None
    batch: Batch
    placement: Placement
    work: Work
    num_classes: int

    def compile(self) -> jax.stages.Compiled:
        """Compiles the step as the training loop does.

        Raises:
          DoesNotFit: if the compiler refuses the program; contains its reason.
        """
        jitted = jax.jit(
            self.step,
            donate_argnums=0,
            out_shardings=(
                self.placement.state_shardings(self.state),
                self.placement.replicated,
            ),
            compiler_options=compiler_options(self.placement.platform),
        )
        try:
            return jitted.lower(self.state, self.frozen, self.batch).compile()
        except jax.errors.JaxRuntimeError as error:
            _, refused, reason = str(error).partition("RESOURCE_EXHAUSTED: ")
            if refused:
                raise DoesNotFit(reason.splitlines()[0]) from error
            raise

    def values(self) -> tuple[TrainState, Variables | None, Batch]:
        """Returns arguments for the step on the devices: initial networks and random images."""
        state, frozen = self.placement.put_state(self.start())
        rng = np.random.default_rng(0)
        batch = {
            name: rng.integers(0, self.num_classes if name == "label" else 256, x.shape, x.dtype)
            for name, x in self.batch.items()
        }
        return state, frozen, self.placement.put_batch(batch)

    def resident_bytes(self) -> dict[str, int]:
        """Returns the bytes on each device that the arguments of the step take, by kind."""
        state = self.state
        kinds = {
            "parameters": state.params,
            "running statistics": state.model_state,
            "optimizer": state.opt_state,
            "state of terms": state.terms,
            "moving average": state.ema,
            "teacher": self.frozen,
            "batch": self.batch,
        }
        return {kind: _bytes_per_device(tree) for kind, tree in kinds.items()}


def make_program(
    config: Config | RunOptions, devices: Sequence[Any], *, num_classes: int, batch_size: int
) -> Program:
    """Assembles the training step of a config for some devices, as a run does.

    Args:
      config: the config, from `kdjax.config.default`.
      devices: attached devices, or the devices of a topology.
      num_classes: number of classes of the data.
      batch_size: images on all devices together.

    Raises:
      UserError: if the config has a mistake, names no teacher or a cached one, or has terms that do
        not match the networks, or if the devices cannot share the batch evenly.
    """
    options = configuration.read(config)
    if options.teacher.cache:
        raise UserError(
            "config.teacher.cache: the size of its maps depends on the images, which a plan does "
            "not see; leave it empty to plan with the live teacher, or plan without terms"
        )
    placement = Placement(options.mesh, devices)
    placement.check_batch_size(
        "data.batch_size", batch_size, accumulate=options.optimizer.accumulate
    )
    data = dataclasses.replace(options.data, batch_size=batch_size)
    options = dataclasses.replace(options, data=data)
    student, start_student = _network(options, "student", options.student.auxiliary, num_classes)
    student = with_batch_norm(student, options.student.batch_norm, placement.batch_shards)
    teacher, start_teacher = _teacher(options, num_classes)
    variables, frozen = jax.eval_shape(start_student), jax.eval_shape(start_teacher)
    distiller = build_distiller(
        options,
        (student, variables),
        (teacher, frozen) if teacher and frozen is not None else None,
        num_classes=num_classes,
    )

    def start() -> tuple[TrainState, Variables | None]:
        return build_state(options, start_student(), distiller), start_teacher()

    state, _ = jax.eval_shape(start)
    step = build_step(
        options,
        PreprocessedNetwork(student, preprocessing_of(student)),
        PreprocessedNetwork(teacher, preprocessing_of(teacher)) if teacher else None,
        distiller,
    )
    size = (batch_size, *options.data.crop_size)
    batch = {
        "image": jax.ShapeDtypeStruct((*size, 3), np.uint8),
        "label": jax.ShapeDtypeStruct(size, np.uint8),
    }
    if teacher is not None and options.teacher.view == "clean":
        batch["clean"] = batch["image"]
    needed = sorted(distiller.reads("teacher")) if distiller else []
    work = Work(
        teacher=_forward_flops(teacher, frozen, batch["image"], needed) if teacher else 0,
        student=_forward_flops(student, variables, batch["image"], SCORES, train=True),
        step=count_flops(step, state, frozen, batch),
    )
    return Program(
        start=start,
        step=step,
        state=_with_shardings(state, placement.state_shardings(state)),
        frozen=_with_shardings(frozen, placement.state_shardings(frozen)),
        batch=_with_shardings(batch, placement.batch_shardings(batch)),
        placement=placement,
        work=work,
        num_classes=num_classes,
    )


def _teacher(
    options: RunOptions, num_classes: int
) -> tuple[Network | None, Callable[[], Variables | None]]:
    """Returns the teacher as a run stores it and a function that makes its variables."""
    if not need_teacher(options.terms):
        return None, lambda: None
    source = options.teacher.checkpoint
    if options.teacher.name:
        # A converted teacher includes its auxiliary head. The step does not compute the head, but
        # the head takes memory.
        network, start = _network(options, "teacher", True, num_classes)
    elif source and (is_model_file(source) or not imports.is_path(source)):
        network, variables, _ = serialization.load(
            source, dtype=options.teacher.dtype, options=options.teacher.options
        )
        start = lambda: variables  # noqa: E731
    else:
        raise UserError(
            "config.terms need a teacher: name its network, as config.teacher.name = pspnet_r101"
        )
    if not can_freeze(network, options.teacher.dtype):
        return network, start
    frozen = FrozenNetwork(network)
    return frozen, lambda: frozen.freeze(start())


def _network(
    options: RunOptions, side: Literal["student", "teacher"], auxiliary: bool, num_classes: int
) -> tuple[Network, Callable[[], Variables]]:
    """Returns a network and a function that makes its initial variables."""
    settings = options.student if side == "student" else options.teacher
    network = make_network(
        settings.name,
        num_classes=num_classes,
        width=settings.width,
        auxiliary=auxiliary,
        dtype=settings.dtype,
        options=settings.options,
        where=f"config.{side}",
    )
    image = np.zeros((1, *options.data.crop_size, 3), np.float32)
    return network, lambda: network.init(jax.random.key(0), image)


def _forward_flops(
    network: Network,
    variables: Any,
    images: jax.ShapeDtypeStruct,
    wanted: Iterable[str],
    train: bool = False,
) -> int:
    """Counts the operations that a forward pass needs for the wanted maps."""

    def forward(variables: Variables, images: jax.Array) -> list[Any]:
        key = jax.random.key(0) if train else None
        inputs = preprocessing_of(network)(images)
        maps = maps_of(network.apply(variables, inputs, train=train, key=key)[0])
        return [array_of(maps[name]) for name in wanted if name in maps]

    return count_flops(forward, variables, images)


def _with_shardings(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )


def _bytes_per_device(tree: Any) -> int:
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
