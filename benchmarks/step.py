"""Measures the parts of a training step: input, teacher, student, and each method.

    python -m benchmarks.step --config configs/shapes_pspnet_r18_tuned.py
    python -m benchmarks.step --config configs/camvid_pspnet_r18.py --config.data.data_dir=DIR

Builds the networks of a config with random weights, and the training step of each method of
`config.compare.methods`, on one batch that stays on the device. All steps and the teacher's forward
pass run in turn. The table shows the median time of each, its images/s, and its ratio to the plain
step of the same round as median and quartiles. The input pipeline is timed alone.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks import rounds
from kdjax import models
from kdjax.cli import command
from kdjax.cli.flags import ConfigFlag
from kdjax.comparison.runs import in_order
from kdjax.config import RunOptions
from kdjax.data.run_data import RunData
from kdjax.distillation import need_teacher
from kdjax.evaluation.evaluator import Predictor
from kdjax.experiment.build import build_distiller, build_state, build_step
from kdjax.models.folding import FrozenNetwork, can_freeze
from kdjax.models.options import NetworkOptions
from kdjax.models.outputs import IMAGENET
from kdjax.training.sharding import Placement
from kdjax.training.step import PreprocessedNetwork

CONFIG = ConfigFlag()
ROUNDS = flags.DEFINE_integer("rounds", 30, "Rounds after the first, which compiles.", 1)
WARM_UP_BATCHES = 20
INPUT_SECONDS = 10


def main(argv: list[str]) -> None:
    del argv
    options = CONFIG.read()
    images = RunData(options.data)
    print(f"Images/s of the input pipeline alone: {input_rate(images):.0f}\n")

    placement = Placement()
    batch = next(images.train_batches(first_step=0, steps=1, seed=0))
    batch = placement.put_batch(batch)
    calls = {
        name: step_call(options, terms, images, batch, placement)
        for name, terms in in_order(options.compare.methods)
    }
    calls["the teacher's forward pass alone"] = teacher_call(options, images, batch, placement)
    seconds = rounds.timed(calls, ROUNDS.value)
    print(f"{rounds.table(seconds, options.data.batch_size)}\n\n{rounds.machine()}")


def input_rate(images: RunData) -> float:
    """Returns the images/s of the training pipeline alone."""
    batches = images.train_batches(first_step=0, steps=10**6, seed=0)
    for _ in range(WARM_UP_BATCHES):
        next(batches)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < INPUT_SECONDS:
        count += len(next(batches)["image"])
    return count / (time.perf_counter() - started)


def create(
    side: NetworkOptions, images: RunData, seed: int, auxiliary: bool
) -> tuple[models.Network, models.Variables]:
    network = models.make_network(
        side.name,
        num_classes=images.num_classes,
        width=side.width,
        auxiliary=auxiliary,
        dtype=side.dtype,
        options=side.options,
    )
    blank = jnp.zeros((1, 64, 64, 3))
    return network, network.init(jax.random.key(seed), blank)


def create_teacher(options: RunOptions, images: RunData) -> tuple[models.Network, models.Variables]:
    """Returns the teacher as a run stores it."""
    network, variables = create(options.teacher, images, 1, False)
    if not can_freeze(network, options.teacher.dtype):
        return network, variables
    frozen = FrozenNetwork(network)
    return frozen, frozen.freeze(variables)


def step_call(
    options: RunOptions, terms: Mapping[str, Any], images: RunData, batch: Any, placement: Placement
) -> Callable[[], Any]:
    """Returns a call that runs one training step with these terms."""
    student = create(options.student, images, 0, options.student.auxiliary)
    teacher = create_teacher(options, images)
    options = dataclasses.replace(options, terms=terms)
    distiller = build_distiller(options, student, teacher, num_classes=images.num_classes)
    state = build_state(options, student[1], distiller)
    distilled = need_teacher(terms)
    step = build_step(
        options,
        PreprocessedNetwork(student[0], IMAGENET),
        PreprocessedNetwork(teacher[0], IMAGENET) if distilled else None,
        distiller,
    )
    step = jax.jit(step, donate_argnums=0)
    states = [jax.device_put(state, placement.replicated)]
    frozen = jax.device_put(teacher[1], placement.replicated) if distilled else None

    def call() -> None:
        state, metrics = step(states.pop(), frozen, batch)
        states.append(jax.block_until_ready(state))
        assert jnp.isfinite(metrics["loss"])

    return call


def teacher_call(
    options: RunOptions, images: RunData, batch: Any, placement: Placement
) -> Callable[[], Any]:
    """Returns a call that runs the teacher on the batch."""
    teacher, variables = create_teacher(options, images)
    variables = jax.device_put(variables, placement.replicated)
    forward = jax.jit(Predictor(teacher, IMAGENET))
    return lambda: jax.block_until_ready(forward(variables, batch["image"]))


if __name__ == "__main__":
    command.run(main)
