"""The student, the terms, the state and the step of a config's training."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from kdjax.classes import IGNORE_LABEL
from kdjax.config import RunOptions
from kdjax.distillation import Distiller, Spec
from kdjax.distillation.maps import array_of
from kdjax.errors import UserError
from kdjax.models import Network, Variables, saved
from kdjax.models.network import SCORES, arrays_by_path, is_random_key, preprocessing_of, trace_maps
from kdjax.models.saved import NetworkInfo
from kdjax.training import optimizer as optimizers
from kdjax.training.step import (
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
        return network, variables, _started_from(info, start, f"from {student.checkpoint}")
    network = info.make(dtype=student.dtype, where="config.student")
    variables = network.init(jax.random.key(options.seed), info.blank_image())
    info = dataclasses.replace(info, preprocessing=preprocessing_of(network))
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
    return taken, _started_from(info, start, f"its backbone from {path}")


def _started_from(info: NetworkInfo, start: NetworkInfo, how: str) -> NetworkInfo:
    return dataclasses.replace(
        info,
        preprocessing=start.preprocessing,
        source=f"{info.source}, {how} ({start.fingerprint})",
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
    """The step, not yet jitted."""
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
