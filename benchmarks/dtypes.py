"""What bfloat16 does to training: a run in both types, step by step on the same batches.

    python -m benchmarks.dtypes --config configs/shapes_pspnet_r18_cwd.py --output FILE.csv \\
        --config.teacher.checkpoint=runs/quickstart/teacher --steps 200 --seeds 3
    python -m benchmarks.dtypes --config configs/camvid_pspnet_r18_cwd.py --output FILE.csv \\
        --config.data.data_dir=DIR --config.teacher.checkpoint=DIR --steps 200 --seeds 3

For each seed two students start alike and see the same batches, one computing in float32 and one in
bfloat16, as does the teacher of each; `--steps` takes the place of `config.steps`. A config without
terms trains both from labels alone. FILE has one value a row, by seed, step, type and figure:

loss: the whole weighted sum, at every step.
cosine, norm_ratio: at a few steps, the gradient of all that is trained, in bfloat16 beside float32
at the float32 run's state and on its batch.
cosine_next_batch: likewise between two batches in float32, to compare with.
miou: on the validation split at the end, and computed in the student's own type.

Prints a Markdown table of the same: the mean loss of the last quarter, the lowest cosine, mIoU.
"""

import collections
import csv
import dataclasses
import itertools
import pathlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import optax
from absl import flags
from jaxtyping import PyTree

from benchmarks import rounds
from kdjax.cli import command
from kdjax.cli.flags import ConfigFlag
from kdjax.config import RunOptions
from kdjax.data.images import Images
from kdjax.distillation import Distiller, need_teacher
from kdjax.evaluation.evaluator import Predictor, TrainedNetwork, evaluate
from kdjax.experiment.build import build_distiller, build_state, build_step
from kdjax.experiment.student import make_student
from kdjax.models import Variables
from kdjax.models.batch_norm import with_batch_norm
from kdjax.training.sharding import Placement
from kdjax.training.step import (
    Batch,
    Objective,
    PreprocessedNetwork,
    TrainState,
    make_train_step,
)
from kdjax.utils.errors import UserError

CONFIG = ConfigFlag()
STEPS = flags.DEFINE_integer("steps", 200, "Steps of each run.", 2)
SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each type, from config.seed on.", 1)
LOOKS = flags.DEFINE_integer("looks", 6, "Steps, evenly spread, that compare gradients.", 1)
OUTPUT = flags.DEFINE_string("output", None, "The CSV file.", required=True)

Type = Literal["float32", "bfloat16"]
TYPES: tuple[Type, ...] = ("float32", "bfloat16")


class Row(NamedTuple):
    """One value of the file; `dtype` is empty where it is of both."""

    seed: int
    step: int
    dtype: str
    figure: str
    value: float


class Run(NamedTuple):
    """A student in one type: its first state, a step, its gradients, and its mIoU."""

    state: TrainState
    frozen: Variables | None
    step: Callable[..., Any]
    gradients: Callable[..., Any]
    miou: Callable[[TrainState], float]


def main(argv: list[str]) -> None:
    del argv
    options = dataclasses.replace(CONFIG.read(), steps=STEPS.value)
    if not pathlib.Path(OUTPUT.value).absolute().parent.is_dir():
        raise UserError(f"--output {OUTPUT.value}: its folder is not there; make it")
    images, placement = Images(options.data), Placement(options.mesh)
    rows: list[Row] = []
    with open(OUTPUT.value, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        for seed in range(options.seed, options.seed + SEEDS.value):
            for row in compared(dataclasses.replace(options, seed=seed), images, placement):
                writer.writerow(row._replace(value=float(f"{row.value:.7g}")))
                rows.append(row)
            file.flush()
    print(f"{table(rows)}\n\n{rounds.machine()}")


def compared(options: RunOptions, images: Images, placement: Placement) -> Iterator[Row]:
    """Trains one seed in both types at once, and yields what is seen of it."""
    runs = {dtype: make_run(in_type(options, dtype), images, placement) for dtype in TYPES}
    states = {dtype: run.state for dtype, run in runs.items()}
    looks = {round(i * (options.steps - 1) / LOOKS.value) for i in range(LOOKS.value)}
    batches = images.train_batches(
        first_step=0,
        steps=options.steps + 1,  # the last is only looked at
        seed=options.seed,
        clean_view=options.teacher.view == "clean",
    )
    batches = map(placement.put_batch, batches)
    for step, (batch, following) in enumerate(itertools.pairwise(batches)):
        if step in looks:
            exact, rounded = (
                run.gradients(states["float32"], run.frozen, batch) for run in runs.values()
            )
            other = runs["float32"].gradients(states["float32"], runs["float32"].frozen, following)
            ratio = float(optax.tree.norm(rounded) / optax.tree.norm(exact))
            yield Row(options.seed, step, "", "cosine", cosine(exact, rounded))
            yield Row(options.seed, step, "", "norm_ratio", ratio)
            yield Row(options.seed, step, "", "cosine_next_batch", cosine(exact, other))
        for dtype, run in runs.items():
            states[dtype], metrics = run.step(states[dtype], run.frozen, batch)
            yield Row(options.seed, step, dtype, "loss", float(metrics["loss"]))
    for dtype, run in runs.items():
        yield Row(options.seed, options.steps, dtype, "miou", run.miou(states[dtype]))


def in_type(options: RunOptions, dtype: Type) -> RunOptions:
    """The options with both networks computing in a type."""
    return dataclasses.replace(
        options,
        student=dataclasses.replace(options.student, dtype=dtype),
        teacher=dataclasses.replace(options.teacher, dtype=dtype),
    )


def make_run(options: RunOptions, images: Images, placement: Placement) -> Run:
    """A student as `kdjax.train` begins with it."""
    student, variables, info = make_student(options, images.class_names, images.palette)
    student = with_batch_norm(student, options.student.batch_norm, placement.batch_shards)
    teacher, frozen = None, None
    if need_teacher(options.terms):
        dtype = options.teacher.dtype
        loaded = TrainedNetwork.load(options.teacher.checkpoint, dtype=dtype).frozen(dtype)
        teacher = PreprocessedNetwork(loaded.network, loaded.info.preprocessing)
        frozen = loaded.variables
    distiller = build_distiller(
        options,
        (student, variables),
        (teacher.network, frozen) if teacher and frozen else None,
        num_classes=images.num_classes,
    )
    state = build_state(options, variables, distiller)
    preprocessed = PreprocessedNetwork(student, info.preprocessing)
    predictor = Predictor(student, info.preprocessing)

    def miou(state: TrainState) -> float:
        batches = images.eval_batches(options.data.val_split)
        scores = evaluate(
            predictor, state.student(), batches, images.num_classes, placement.put_batch
        )
        return scores.miou

    return Run(
        placement.put_state(state),
        frozen and placement.put_state(frozen),
        jax.jit(build_step(options, preprocessed, teacher, distiller), donate_argnums=0),
        jax.jit(gradients_of(options, preprocessed, teacher, distiller)),
        miou,
    )


def gradients_of(
    options: RunOptions,
    student: PreprocessedNetwork,
    teacher: PreprocessedNetwork | None,
    distiller: Distiller | None,
) -> Callable[[TrainState, Variables | None, Batch], PyTree]:
    """What returns the gradients of a step: those that it hands to its optimizer."""
    loss = options.loss

    def keep(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        """What takes the optimizer's place: its state is what it was given."""
        del state, params
        return updates, updates

    step = make_train_step(
        student,
        teacher,
        Objective(loss.cross_entropy, loss.auxiliary, distiller, loss.mean_over),
        optax.GradientTransformation(lambda params: params, keep),
        lambda step: 0.0,
        steps=options.steps,
        accumulate=options.optimizer.accumulate,
    )
    return lambda *arguments: step(*arguments)[0].opt_state


def cosine(one: PyTree, other: PyTree) -> float:
    """Of the angle between two gradients."""
    norms = optax.tree.norm(one) * optax.tree.norm(other)
    return float(optax.tree.vdot(one, other) / norms)


def table(rows: Sequence[Row]) -> str:
    """A line for every seed: both losses at the end, gradients, both mIoU."""
    lines = [
        "| seed | loss at the end, float32 | bfloat16 | least cosine | median, next batch "
        "| mIoU, float32 | bfloat16 |",
        "| ---: " * 7 + "|",
    ]
    found = collections.defaultdict[tuple[int, str, str], list[float]](list)
    for row in rows:
        found[row.seed, row.dtype, row.figure].append(row.value)
    for seed in sorted({row.seed for row in rows}):
        losses = [found[seed, dtype, "loss"] for dtype in TYPES]
        late = [statistics.mean(values[3 * len(values) // 4 :]) for values in losses]
        exact, rounded = (100 * found[seed, dtype, "miou"][0] for dtype in TYPES)
        lines.append(
            f"| {seed} | {late[0]:.4f} | {late[1]:.4f} | {min(found[seed, '', 'cosine']):.4f} "
            f"| {statistics.median(found[seed, '', 'cosine_next_batch']):.4f} "
            f"| {exact:.2f} | {rounded:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    command.run(main)
