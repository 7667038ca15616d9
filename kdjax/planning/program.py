"""A config's training step on devices that need not exist: shapes in place of arrays."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from kdjax import config as configuration
from kdjax import names
from kdjax.config import Config, RunOptions
from kdjax.distillation import need_teacher
from kdjax.distillation.feature_maps import SCORES, array_of
from kdjax.environment import compiler_options
from kdjax.errors import UserError
from kdjax.models import Network, Variables, make_network, saved
from kdjax.models.batch_norm import with_batch_norm
from kdjax.models.int8 import Int8Network, check_platform
from kdjax.models.network import maps_of, preprocessing_of
from kdjax.runs.assembly import assemble_distiller, assemble_state, assemble_step
from kdjax.training import profiling
from kdjax.training.sharding import Placement
from kdjax.training.step import Batch, PreprocessedNetwork, TrainState, TrainStep


class DoesNotFit(Exception):
    """The compiler found no room for the program in the device's memory."""


@dataclasses.dataclass(frozen=True)
class Work:
    """Multiplications and additions of one step on all devices.

    Attributes:
      teacher: of the teacher's forward pass, as far as terms read it.
      student: of the student's forward pass.
      step: of everything.
    """

    teacher: int
    student: int
    step: int


@dataclasses.dataclass(frozen=True)
class Program:
    """The step of a config, and what it is called with: `jax.ShapeDtypeStruct` with shardings.

    `start` makes the values of the state and of the frozen teacher, as a run begins with them.
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
        """Compiles the step as the training loop calls it.

        Raises:
          DoesNotFit: with the compiler's reason.
        """
        shardings = (self.placement.state_shardings(self.state), self.placement.replicated)
        jitted = jax.jit(
            self.step,
            donate_argnums=0,
            out_shardings=shardings,
            compiler_options=compiler_options(self.placement.platform),
        )
        lowered = jitted.lower(self.state, self.frozen, self.batch)
        try:
            return lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                reason = str(error).partition("RESOURCE_EXHAUSTED: ")[2].splitlines()[0]
                raise DoesNotFit(reason) from error
            raise

    def values(self) -> tuple[TrainState, Variables | None, Batch]:
        """What the step is called with, on the devices: networks as they begin, images of noise."""
        state, frozen = self.placement.put_state(self.start())
        rng = np.random.default_rng(0)
        batch = {
            name: rng.integers(0, self.num_classes if name == "label" else 256, x.shape, x.dtype)
            for name, x in self.batch.items()
        }
        return state, frozen, self.placement.put_batch(batch)

    def resident_bytes(self) -> dict[str, int]:
        """Bytes on each device of what stays there between two steps, by kind."""
        state = self.state
        kinds = {
            "parameters": state.params,
            "running statistics": state.model_state,
            "optimizer": state.opt_state,
            "what terms carry": state.terms,
            "moving average": state.ema,
            "teacher": self.frozen,
            "batch": self.batch,
        }
        return {kind: _device_bytes(tree) for kind, tree in kinds.items()}


def make_program(
    config: Config, devices: Sequence[Any], *, num_classes: int, batch_size: int
) -> Program:
    """Puts together the step of `config` for `devices`, as `kdjax.runs.run` does.

    Args:
      config: as `kdjax.config.default` makes it.
      devices: attached, or those of a topology.
      num_classes: of the data.
      batch_size: of all devices together.

    Raises:
      UserError: for a mistake in the config, a batch that cannot be split over the devices, an
        unnamed or cached teacher, or terms that do not go with the networks.
    """
    configuration.validate(config)
    options = configuration.read(config)
    if options.teacher.cache:
        raise UserError(
            "config.teacher.cache: the size of its maps depends on the images, which a plan does "
            "not see; leave it empty to plan with the live teacher, or plan without terms"
        )
    placement = Placement(options.mesh, devices)
    placement.check_batch_size("data.batch_size", batch_size)
    student, start_student = _network(options, "student", num_classes, options.student.auxiliary)
    student = with_batch_norm(student, options.student.batch_norm, placement.batch_shards)
    named = _teacher(options, num_classes, placement.platform)
    teacher, start_teacher = named or (None, lambda: None)
    variables, frozen = jax.eval_shape(start_student), jax.eval_shape(start_teacher)
    distiller = assemble_distiller(
        options,
        (student, variables),
        (teacher, frozen) if teacher and frozen is not None else None,
        num_classes=num_classes,
    )

    def start() -> tuple[TrainState, Variables | None]:
        return assemble_state(options, start_student(), distiller), start_teacher()

    state, _ = jax.eval_shape(start)
    step = assemble_step(
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
    read = distiller.reads("teacher") if distiller else set()
    work = Work(
        teacher=_teacher_work(teacher, frozen, read, batch["image"]) if teacher else 0,
        student=_student_work(student, variables, batch["image"]),
        step=profiling.count_flops(step, state, frozen, batch),
    )
    return Program(
        start=start,
        step=step,
        state=_placed(state, placement.state_shardings(state)),
        frozen=_placed(frozen, placement.state_shardings(frozen)),
        batch=_placed(batch, placement.batch_shardings(batch)),
        placement=placement,
        work=work,
        num_classes=num_classes,
    )


# A network, and what makes its first variables.
_Start = tuple[Network, Callable[[], Variables]]


def _teacher(options: RunOptions, num_classes: int, platform: str) -> _Start | None:
    if not need_teacher(options.terms):
        return None
    teacher = _float_teacher(options, num_classes)
    if not options.teacher.int8:
        return teacher
    check_platform(platform)
    network, start = Int8Network(teacher[0]), teacher[1]
    # Of a blank image, since no plan depends on the scales.
    image = np.zeros((1, *options.data.crop_size, 3), np.float32)
    return network, lambda: network.quantize(start(), image)


def _float_teacher(options: RunOptions, num_classes: int) -> _Start:
    source = options.teacher.checkpoint
    if not options.teacher.name and (not source or names.is_path(source)):
        raise UserError(
            "config.terms need a teacher: name its network, as config.teacher.name = pspnet_r101"
        )
    if not options.teacher.name:
        network, variables, _ = saved.load(source, dtype=options.teacher.dtype)
        return network, lambda: variables
    # Converted teachers bring their auxiliary head. Nothing computes it, but it takes memory.
    return _network(options, "teacher", num_classes, True)


def _network(
    options: RunOptions, side: Literal["student", "teacher"], num_classes: int, auxiliary: bool
) -> _Start:
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


def _teacher_work(
    teacher: Network, variables: Any, read: set[str], images: jax.ShapeDtypeStruct
) -> int:
    def forward(variables: Variables, images: jax.Array) -> list[Any]:
        seen = preprocessing_of(teacher)(images)
        maps = maps_of(teacher.apply(variables, seen, train=False, key=None)[0])
        return [array_of(maps[name]) for name in sorted(read)]

    return profiling.count_flops(forward, variables, images)


def _student_work(student: Network, variables: Any, images: jax.ShapeDtypeStruct) -> int:
    def forward(variables: Variables, images: jax.Array) -> list[Any]:
        seen = preprocessing_of(student)(images)
        maps = maps_of(student.apply(variables, seen, train=True, key=jax.random.key(0))[0])
        return [array_of(maps[name]) for name in SCORES if name in maps]

    return profiling.count_flops(forward, variables, images)


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )


def _device_bytes(tree: Mapping[str, Any] | Any) -> int:
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
