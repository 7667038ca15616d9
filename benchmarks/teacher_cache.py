"""Measures the size of a teacher's cached scores, and the time of a step with the cache.

    python -m benchmarks.teacher_cache --config configs/camvid_pspnet_r18_cwd.py \\
        --config.teacher.checkpoint=DIR

Makes a cache with all scores and one with the highest scores of each cell, and prints time and
size. Then it times training steps in turn, on a batch that stays on the device: the plain student,
the live teacher, and both caches. It also times reading a batch's scores from the files.
"""

import dataclasses
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import rounds
from kdjax.cli import command
from kdjax.cli.flags import ConfigFlag
from kdjax.config import RunOptions
from kdjax.data.run_data import RunData
from kdjax.distillation import Distiller
from kdjax.evaluation.evaluator import TrainedNetwork
from kdjax.experiment.build import build_distiller, build_state, build_step
from kdjax.experiment.input_pipeline import make_input_pipeline
from kdjax.experiment.student import make_student
from kdjax.teachers.cache import OpenCache, TeacherCache
from kdjax.teachers.network_maps import NetworkMaps
from kdjax.training.sharding import Placement
from kdjax.training.step import PreprocessedNetwork
from kdjax.utils.log import RunLogger

CONFIG = ConfigFlag()
ROUNDS = flags.DEFINE_integer("rounds", 20, "Rounds after the first, which compiles.", 1)
KEEP = flags.DEFINE_integer("keep", 3, "Scores of each cell in the smaller cache.", 1)


def main(argv: list[str]) -> None:
    del argv
    options = CONFIG.read()
    images, dtype = RunData(options.data), options.teacher.dtype
    teacher = TrainedNetwork.load(options.teacher.checkpoint, dtype=dtype).frozen(dtype)
    student, variables, _ = make_student(options, images.class_names, images.palette)
    distiller = build_distiller(
        options,
        (student, variables),
        (teacher.network, teacher.variables),
        num_classes=images.num_classes,
    )
    assert distiller is not None, "the config has no terms"
    with tempfile.TemporaryDirectory() as folder:
        calls = {
            "plain": step_call(options, images, None, None),
            "live teacher": step_call(options, images, teacher, distiller),
        }
        for keep in (0, KEEP.value):
            name = f"cache, {keep or 'all'} scores"
            cache = str(pathlib.Path(folder) / str(keep))
            kept = dataclasses.replace(options.teacher, cache=cache, cache_classes=keep)
            cached = dataclasses.replace(options, teacher=kept)
            said = NetworkMaps(cached, images, teacher)
            scores = TeacherCache(cached, images, said, distiller, RunLogger(name)).open()
            calls[name] = step_call(options, images, None, distiller, scores)
            print(f"{name}: {1e3 * reading(options, images, scores):.2f} ms to read a batch's\n")
        seconds = rounds.timed(calls, ROUNDS.value)
    print(f"{rounds.table(seconds, options.data.batch_size)}\n\n{rounds.machine()}")


def step_call(
    options: RunOptions,
    images: RunData,
    teacher: TrainedNetwork | None,
    distiller: Distiller | None,
    scores: OpenCache | None = None,
) -> Callable[[], Any]:
    """Returns a call that runs one training step on a batch that stays on the device."""
    placement = Placement(options.mesh)
    student, variables, info = make_student(options, images.class_names, images.palette)
    state = build_state(options, variables, distiller)
    source = make_input_pipeline(
        images, placement, first_step=0, steps=1, seed=0, clean_view=False, cache=scores
    )
    step = build_step(
        options,
        PreprocessedNetwork(student, info.preprocessing),
        teacher and PreprocessedNetwork(teacher.network, teacher.info.preprocessing),
        distiller,
    )
    step = jax.jit(source.attach(step), donate_argnums=0)
    states = [placement.put_state(state)]
    frozen = teacher and placement.put_state(teacher.variables)
    batch = next(iter(source.batches))

    def call() -> None:
        state, metrics = step(states.pop(), frozen, batch)
        states.append(jax.block_until_ready(state))
        assert jnp.isfinite(metrics["loss"])

    return call


def reading(options: RunOptions, images: RunData, scores: OpenCache) -> float:
    """Returns the median seconds to read the scores of a batch, from files in memory."""
    generator = np.random.default_rng(0)
    count, times = len(images.sizes(options.data.train_split)), []
    for _ in range(50):
        indices = generator.integers(0, count, options.data.batch_size)
        started = time.perf_counter()
        scores.rows(indices)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


if __name__ == "__main__":
    command.run(main)
