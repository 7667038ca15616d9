"""Compares the training step with PyTorch's: speed, memory, first step, price of a method.

    python benchmarks/train_step.py
    python -m benchmarks.train_step --methods nfd,cwd --student_width 64 --rounds 30
    python -m benchmarks.train_step --teacher fpn_light_efficientnet_lite2 --teacher_width 64 \
        --student fpn_light_efficientnet_lite0 --student_width 64 --optimizer adamw \
        --crop 160,208 --batch_size 8 --methods cwd

A network teaches another one, in kdjax and in the PyTorch trainer of `benchmarks/torch` with the
settings of its `Execution.best`. `--compiled` adds `torch.compile` on a CPU. First both take the
same batches in float32 from the same weights, and their losses must agree. Then their steps take
turns: with the first method, with the others, and with the teacher's forward pass and no method.
Ratios are those of one round. With `--alone`, a separate process for each side measures memory and
the time to the first step.

On a GPU, PSPNet-R101 teaches R18 on 8 crops of 512 x 1024 in bfloat16. On a CPU, a narrow pair runs
on small crops in float32. Methods are those of `kdjax.recipes`. The PyTorch trainer has some of
them. kdjax's price of a method is measured for all.
"""

import dataclasses
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
# If this file is run, Python looks into its folder first, which has a folder `torch`.
sys.path[:] = [
    str(ROOT),
    *(path for path in sys.path if pathlib.Path(path).resolve() != ROOT / "benchmarks"),
]
# On a GPU both libraries share this process, so that JAX must not reserve most of its memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402  reads the variable above
import numpy as np  # noqa: E402
import torch  # noqa: E402
from absl import flags  # noqa: E402

from benchmarks import kdjax_side  # noqa: E402
from benchmarks.rounds import spread  # noqa: E402
from benchmarks.torch import side as torch_side  # noqa: E402
from benchmarks.torch.trainer import Execution, settle  # noqa: E402
from benchmarks.work import CPU, GPU, Work  # noqa: E402
from kdjax import interop  # noqa: E402
from kdjax.cli import command  # noqa: E402
from kdjax.recipes import terms_of  # noqa: E402
from kdjax.utils import environment  # noqa: E402
from kdjax.utils.errors import UserError  # noqa: E402

LIGHT = ("fpn_light_efficientnet_lite0", "fpn_light_efficientnet_lite2")
NETWORKS = ("pspnet_r18", "pspnet_r34", "pspnet_r50", "pspnet_r101", *LIGHT)
WORK = {
    "teacher": flags.DEFINE_enum("teacher", None, NETWORKS, "The teacher."),
    "teacher_width": flags.DEFINE_integer("teacher_width", None, "64 is the published width."),
    "student": flags.DEFINE_enum("student", None, NETWORKS, "The student."),
    "student_width": flags.DEFINE_integer("student_width", None, "64 is the published width."),
    "optimizer": flags.DEFINE_enum("optimizer", None, ["sgd", "adamw"], "The optimizer."),
    "batch_size": flags.DEFINE_integer("batch_size", None, "Images of a step.", 1),
    "dtype": flags.DEFINE_enum(
        "dtype", None, ["float32", "bfloat16"], "The type of the networks' arithmetic."
    ),
}
CROP = flags.DEFINE_list("crop", None, "Height and width of the images, as 512,1024.")
METHODS = flags.DEFINE_list(
    "methods", ["cwd", "pixelwise_kl", "nfd", "pfs"], "The methods, as named in the recipes."
)
ALONE = flags.DEFINE_list(
    "alone", None, "Methods, or plain, whose memory is measured [the first method]."
)
ROUNDS = flags.DEFINE_integer("rounds", 20, "Rounds after the first, which compiles.", 1)
STEPS = flags.DEFINE_integer("steps_per_turn", None, "Steps in a row [10 on a GPU, else 1].", 1)
COMPILED = flags.DEFINE_bool("compiled", False, "PyTorch by torch.compile, also on a CPU.")
# How far a loss may be off, relative to itself, in the first steps: rounding grows with each.
TOLERANCES = (1e-4, 1e-3, 1e-2)
# The scores of a new classifier are almost 0, unlike a teacher's.
TEACHER_SCALE = 30
STEPS_ALONE = 3
PLAIN = "plain, teacher unread"


def main(argv: list[str]) -> None:
    del argv
    # As kdjax's commands do. The changes to the process affect both sides.
    environment.set_up_jax()
    on_gpu = jax.default_backend() == "gpu"
    if on_gpu != torch.cuda.is_available():
        raise UserError("one of JAX and PyTorch sees a GPU and the other does not: compare alike")
    plain = chosen_work(GPU if on_gpu else CPU)
    works = {name: dataclasses.replace(plain, terms=terms_of(name)) for name in METHODS.value}
    name, first = next(iter(works.items()))
    if not torch_side.supports(first):
        raise UserError(f"benchmarks/torch has no {name}; begin --methods with one that it has")
    if unknown := [name for name in ALONE.value or () if name not in {"plain", *works}]:
        raise UserError(f"--alone {unknown[0]}: it is neither plain nor one of --methods")
    print(describe(plain), flush=True)
    print(f"\n{check(first)}", flush=True)
    print(f"\n{take_turns({PLAIN: plain, **works}, on_gpu)}", flush=True)
    by_name = {"plain": plain, **works}
    for measured in ALONE.value or [name]:
        print(f"\n{compare_alone(measured, by_name[measured], on_gpu)}", flush=True)
    print(f"\n{versions()}")


def chosen_work(usual: Work) -> Work:
    """Returns the device's work, changed by the flags."""
    given: dict[str, Any] = {
        name: flag.value for name, flag in WORK.items() if flag.value is not None
    }
    if CROP.value is not None:
        try:
            height, width = (int(value) for value in CROP.value)
        except ValueError as error:
            raise UserError(
                f"--crop is {','.join(CROP.value)}; give height,width as in 512,1024"
            ) from error
        given["crop"] = (height, width)
    work = dataclasses.replace(usual, **given)
    for role in ("teacher", "student"):
        width = getattr(work, f"{role}_width")
        if getattr(work, role) in LIGHT and width != 64:
            raise UserError(f"--{role}_width is {width}; it must be 64 for EfficientNet-Lite")
    return work


def describe(work: Work) -> str:
    height, width = work.crop
    return (
        f"{work.teacher} (width {work.teacher_width}) teaches {work.student} (width "
        f"{work.student_width}), {work.batch_size} x {height} x {width}, {work.dtype}, "
        f"{work.optimizer}."
    )


def check(work: Work) -> str:
    """Compares the losses of the first steps in float32.

    Raises:
      AssertionError: where one differs by more than its step's tolerance.
    """
    work = dataclasses.replace(work, dtype="float32")
    batches = [work.batch(seed) for seed in range(len(TOLERANCES))]
    # By default, GPUs multiply in TF32.
    torch.backends.cudnn.allow_tf32 = False
    precise = "float32" if jax.default_backend() == "gpu" else None
    with jax.default_matmul_precision(precise):
        ours, theirs = same_weights(work, batches)
        steps = [differences(ours.step(batch), theirs.step(batch)) for batch in batches]
    torch.backends.cudnn.allow_tf32 = True
    worst = [max(found, key=found.__getitem__) for found in steps]
    text = ", ".join(
        f"{found[name]:.0e} ({name})" for found, name in zip(steps, worst, strict=True)
    )
    for found, name, tolerance in zip(steps, worst, TOLERANCES, strict=True):
        assert found[name] <= tolerance, f"the sides do not compute the same: {text}"
    return f"Worst relative difference of a loss in the first steps, in float32: {text}."


def differences(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, float]:
    """Returns the relative differences to PyTorch's losses."""
    return {name: abs(float(found[name]) / float(value) - 1) for name, value in expected.items()}


def same_weights(work: Work, batches: list[Any]) -> tuple[kdjax_side.Side, torch_side.Side]:
    """Returns both sides with kdjax's weights, and a teacher with the batches' statistics."""
    ours = kdjax_side.Side(work)
    assert ours.teacher is not None
    theirs = torch_side.Side(work, Execution("cuda" if torch.cuda.is_available() else "cpu"))
    theirs.load(
        interop.to_mmseg(ours.student),
        interop.to_mmseg(ours.teacher),
        {
            name: np.asarray(learned["adapter"]["0"]["kernel"])
            for name, learned in ours.state.params["terms"].items()
        },
    )
    teacher = theirs.trainer.teacher
    assert teacher is not None
    settle(teacher, batches)
    teacher.get_parameter("decode_head.conv_seg.weight").data *= TEACHER_SCALE
    weights = {name: value.cpu().numpy() for name, value in teacher.state_dict().items()}
    interop.from_mmseg(ours.teacher, weights)
    ours.start()
    return ours, theirs


def take_turns(works: dict[str, Work], on_gpu: bool) -> str:
    """Times every step of both sides in turn; returns a table of speeds, ratios and prices."""
    sides: dict[tuple[str, str], Any] = {}
    for name, work in works.items():
        sides["kdjax", name] = kdjax_side.Side(work)
        if torch_side.supports(work):
            sides["PyTorch", name] = torch_side.best_side(work, compiled=COMPILED.value)
    batch = works[PLAIN].batch(0)
    steps = STEPS.value or (10 if on_gpu else 1)
    # Wall time, and processor time, which other work on the CPU disturbs less.
    seconds: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in sides}
    for _ in range(ROUNDS.value + 1):
        for key, side in sides.items():
            wall, processor = time.perf_counter(), time.process_time()
            for _ in range(steps):
                side.step(batch)
            side.wait()
            spent = time.perf_counter() - wall, time.process_time() - processor
            seconds[key].append(spent)
    # [rounds, clocks], without the round that compiles.
    times = {key: np.array(found[1:]) for key, found in seconds.items()}
    images = steps * works[PLAIN].batch_size
    clock = 0 if on_gpu else 1
    return table(works, times, images, clock)


def table(works: dict[str, Work], times: dict[Any, Any], images: int, clock: int) -> str:
    """Returns medians with quartiles. Clock 0 is wall time, 1 is processor time."""
    unit = ("second", "CPU second")[clock]
    lines = [
        f"| method | kdjax, images a {unit} | PyTorch | kdjax / PyTorch | price in kdjax "
        "| in PyTorch |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in works:
        cells = [name]
        ours, theirs = times["kdjax", name], times.get(("PyTorch", name))
        cells.append(spread(images / ours[:, clock], "{:.2f}"))
        if theirs is None:
            cells += ["–", "–"]
        else:
            cells.append(spread(images / theirs[:, clock], "{:.2f}"))
            cells.append(spread(theirs[:, clock] / ours[:, clock], "{:.2f}"))
        for library in ("kdjax", "PyTorch"):
            found = times.get((library, name))
            if name == PLAIN or found is None:
                cells.append("–")
            else:
                more = found[:, clock] / times[library, PLAIN][:, clock] - 1
                cells.append(spread(100 * more, "{:+.1f}") + " %")
        lines.append(f"| {' | '.join(cells)} |")
    walls = times["PyTorch", PLAIN][:, 0] / times["kdjax", PLAIN][:, 0]
    lines.append(f"\nkdjax / PyTorch of {PLAIN} by wall time: {spread(walls, '{:.2f}')}.")
    return "\n".join(lines)


def compare_alone(name: str, work: Work, on_gpu: bool) -> str:
    """Returns a table: memory and time to the first step, each side in its own process."""
    other = "compiled_pytorch" if COMPILED.value else "pytorch"
    ours, theirs = (alone(side, work) for side in ("kdjax", other))
    rows = {"time to the first step, s": [x["seconds"] for x in (ours, theirs)]}
    peak = "peak of arrays, MiB" if on_gpu else "peak of the process, MiB"
    rows[peak] = [x["peak"] / 2**20 for x in (ours, theirs)]
    lines = [f"| {name}, alone | kdjax | PyTorch | ratio |", "| --- | ---: | ---: | ---: |"]
    lines += [f"| {row} | {a:.1f} | {b:.1f} | {a / b:.2f} |" for row, (a, b) in rows.items()]
    return "\n".join(lines)


def alone(side: str, work: Work) -> dict[str, float]:
    """Runs one side; the time to the first step counts from the start of Python.

    Raises:
      CalledProcessError: where it fails; it has said why.
    """
    with tempfile.TemporaryDirectory() as cache:
        # Without the programs that were compiled before.
        places = ("TORCHINDUCTOR_CACHE_DIR", "JAX_COMPILATION_CACHE_DIR")
        variables = {**os.environ, **dict.fromkeys(places, cache)}
        started = time.time()
        run = subprocess.run(
            [sys.executable, "-m", "benchmarks.alone", side, work.to_json(), str(STEPS_ALONE)],
            cwd=ROOT,
            env=variables,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    found = json.loads(run.stdout.splitlines()[-1])
    return {**found, "seconds": found["first_step"] - started}


def versions() -> str:
    return (
        f"{jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} "
        f"cores, {torch.get_num_threads()} threads of PyTorch, Python "
        f"{platform.python_version()}, JAX {jax.__version__}, PyTorch {torch.__version__}; "
        f"load {os.getloadavg()[0]:.1f}."
    )


if __name__ == "__main__":
    command.run(main)
