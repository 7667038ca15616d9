"""Measures the compiled losses: memory, float32 copies of the inputs, passes over the inputs.

    python -m benchmarks.programs                        all, about two minutes on two cores
    python -m benchmarks.programs --only cwd,pfs         losses whose name contains one of these
    python -m benchmarks.programs --terms FILE.csv       terms; adds the rows that are missing

The first two commands print Markdown. The programs are compiled for JAX's default backend and not
run. "Forward" is the mean of the loss. "both" adds its gradient with respect to the first input.
The columns:

copy: megabytes of the first input in float32, for comparison.
f32, bf16: megabytes of temporaries with inputs of that type, as the compiler reports them.
arrays: number of float32 arrays, at least as large as the first input, that the bfloat16 program
writes. Values inside a fusion do not count.
reads: number of instructions of the bfloat16 program that read the first input, and the teacher's
scores or features. A loop counts once.

The third command writes a row for the cross-entropy and for every loss as a term with its defaults,
on the maps of PSPNet with ResNet-101 and ResNet-18: its value, the update of its state, and its
gradient by the student's maps and the term's parameters, without the networks. Columns:

gflop: products and convolutions on 4 images of 512 x 1024. Loops count as often as they run.
megabytes: temporaries on the same images, as the compiler reports them.
processor_seconds: the least of three runs, of all threads, on one image of 512 x 512 and networks
with a quarter of the channels. Only this column runs the programs.
"""

import argparse
import csv
import functools
import math
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from kdjax import losses, models
from kdjax.distillation import Distiller, term
from kdjax.distillation.methods import LOSSES
from kdjax.models import NNXNetwork
from kdjax.models.adapters import traced_rngs
from kdjax.models.network import trace_maps
from kdjax.planning.collectives import parse
from kdjax.training.profiling import count_flops
from tools.hlo import float32_arrays, reads

CHANNELS = 128  # of the features that FAKD moves
SIZES = [(4, 65, 65, 21), (4, 64, 128, 19), (4, 64, 64, 150)]
# One image of many pixels: a 512 x 1024 crop at stride 8, and a 2048 x 4096 image.
LARGE = [(1, 64, 128, 512), (1, 256, 512, 64)]


class Case(NamedTuple):
    name: str
    size: tuple[int, ...]
    loss: Callable[..., Any]
    # Shapes of the floating-point arguments, and of the labels where the loss reads them; `loss`
    # takes them in this order.
    maps: tuple[tuple[int, ...], ...]
    labels: tuple[int, ...] | None = None


def resized_cross_entropy(logits, labels):
    """Computes `upsampled_cross_entropy` in two steps of JAX."""
    size = (*labels.shape, logits.shape[-1])
    resized = jax.image.resize(logits, size, "bilinear", antialias=False)
    return losses.cross_entropy(resized, labels)


def cases(size: tuple[int, ...]) -> list[Case]:
    *pixels, classes = size
    batch, height, width = pixels
    features, full = (*pixels, CHANNELS), (batch, 8 * height, 8 * width)
    head = ((CHANNELS, classes), (classes,), (classes, CHANNELS))
    pair = (size, size)

    def augmented(function):
        def loss(features, teacher, kernel, bias, covariance, labels):
            return function(features, kernel, bias, teacher, labels, covariance, strength=2.0)

        return loss

    def pairs(student, teacher):
        return losses.dsd_pairs((student, student**2), (teacher, teacher**2))

    kl, cwd = augmented(losses.fakd_kl), augmented(losses.fakd_cwd)
    return [
        Case("cwd", size, losses.cwd, pair),
        Case("pixelwise_kl", size, losses.pixelwise_kl, pair),
        Case("gap_weighted_kl", size, losses.gap_weighted_kl, pair, tuple(pixels)),
        Case("fakd_kl", size, kl, (features, size, *head), tuple(pixels)),
        Case("fakd_cwd", size, cwd, (features, size, *head), tuple(pixels)),
        Case("nfd", size, losses.nfd, pair),
        Case("l2", size, losses.l2, pair),
        Case("attention_transfer", size, losses.attention_transfer, pair),
        Case("dsd_pairs", size, pairs, pair),
        Case("ifvd", size, losses.ifvd, pair, tuple(pixels)),
        Case("dist_inter", size, losses.dist_inter, pair),
        Case("dist_intra", size, losses.dist_intra, pair),
        Case("dkd", size, losses.dkd, pair, tuple(pixels)),
        Case("wsld", size, losses.wsld, pair, tuple(pixels)),
        Case("bpkd, body", size, losses.bpkd, pair, full),
        Case("bpkd, edge", size, functools.partial(losses.bpkd, part="edge"), pair, full),
        Case("jml", size, losses.jml, pair, tuple(pixels)),
        Case("cirkd_minibatch", size, losses.cirkd_minibatch, pair),
        *similarities(size),
        Case("cross_entropy", size, losses.cross_entropy, (size,), tuple(pixels)),
        Case("upsampled_cross_entropy, x8", size, losses.upsampled_cross_entropy, (size,), full),
        Case("resizing and cross_entropy apart, x8", size, resized_cross_entropy, (size,), full),
    ]


def similarities(size: tuple[int, ...]) -> list[Case]:
    softmax = functools.partial(losses.pfs, similarity="softmax")
    pair = (size, size)
    return [
        Case("pfs, cosine", size, losses.pfs, pair),
        Case("pfs, softmax", size, softmax, pair),
    ]


def compile_case(case: Case, dtype: Any, backward: bool) -> Any:
    def mean(*arguments):
        return jnp.mean(case.loss(*arguments))

    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape in case.maps]
    if case.labels is not None:
        arguments.append(jax.ShapeDtypeStruct(case.labels, jnp.int32))
    return jax.jit(jax.value_and_grad(mean) if backward else mean).lower(*arguments).compile()


def measure(case: Case) -> list[str]:
    temporaries, arrays, passes = [], [], []
    for dtype in (jnp.float32, jnp.bfloat16):
        for backward in (False, True):
            compiled = compile_case(case, dtype, backward)
            memory = compiled.memory_analysis()
            temporaries.append(f"{memory.temp_size_in_bytes / 1e6:.1f}")
            if dtype == jnp.bfloat16:
                program, entry = parse(compiled.as_text())
                arrays.append(str(float32_arrays(program, entry, math.prod(case.maps[0]))))
                of_each = (reads(program, entry, i) for i in range(min(2, len(case.maps))))
                passes.append(" and ".join(map(str, of_each)))
    size = " x ".join(map(str, case.size))
    copy = f"{4 * math.prod(case.maps[0]) / 1e6:.1f}"
    return [case.name, size, copy, *temporaries, *arrays, *passes]


class Side(NamedTuple):
    """The maps of both networks, and labels: arrays, or shapes and types of arrays."""

    student: dict[str, Any]
    teacher: dict[str, Any]
    labels: Any


def side(images: int, height: int, width: int, channels: int) -> Side:
    """Returns shapes and types of the maps of PSPNets of a width."""

    def maps(name: str, train: bool) -> dict[str, Any]:
        network = nnx.eval_shape(
            lambda: models.create(
                name, num_classes=19, width=channels, auxiliary=True, rngs=traced_rngs(0)
            )
        )
        found = trace_maps(*NNXNetwork.of(network), (height, width), train=train)
        # The network was traced with two images.
        return jax.tree.map(
            lambda x: x if x.ndim < 4 else jax.ShapeDtypeStruct((images, *x.shape[1:]), x.dtype),
            dict(found),
        )

    student, teacher = maps("pspnet_r18", True), maps("pspnet_r101", False)
    # A frozen teacher has no auxiliary scores. DSD reads some.
    teacher.setdefault("aux_logits", student["aux_logits"])
    return Side(student, teacher, jax.ShapeDtypeStruct((images, height, width), jnp.int32))


def program_of(name: str, maps: Side) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns functions for the parameters and state of a term, and its value and gradients."""
    if name == "cross_entropy":

        def of_labels(params, student, state, teacher, labels):
            values = losses.upsampled_cross_entropy(student["logits"].logits, labels)
            return losses.valid_mean(values, labels != 255), state

        return lambda key: ({}, {}), jax.value_and_grad(of_labels, (0, 1), has_aux=True)
    distiller = Distiller(
        {name: term(name)},
        student=maps.student,
        teacher=maps.teacher,
        image_size=maps.labels.shape[1:],
    )

    def of_term(params, student, state, teacher, labels):
        # In the middle of a run, after the terms that are fitted first.
        return distiller(
            params, state, student, teacher, labels, step=500, steps=1000, key=jax.random.key(0)
        )

    return distiller.init, jax.value_and_grad(of_term, (0, 1), has_aux=True)


def cost(name: str, large: Side, small: Side) -> list[Any]:
    """Returns a row of the table of terms."""
    init, program = program_of(name, large)
    params, state = jax.eval_shape(init, jax.random.key(0))
    arguments = (params, large.student, state, large.teacher, large.labels)
    compiled: Any = jax.jit(program).lower(*arguments).compile()
    megabytes = compiled.memory_analysis().temp_size_in_bytes / 1e6
    flops = count_flops(program, *arguments)

    init, program = program_of(name, small)
    params, state = init(jax.random.key(0))
    key = jax.random.key(1)

    def drawn(x: Any) -> jax.Array:
        if x.dtype == jnp.int32:
            return jax.random.randint(key, x.shape, 0, 19)
        return jax.random.normal(key, x.shape)

    student, teacher, labels = jax.tree.map(drawn, small)
    run, seconds = jax.jit(program), []
    for _ in range(4):
        started = time.process_time()
        jax.block_until_ready(run(params, student, state, teacher, labels))
        seconds.append(time.process_time() - started)
    # The first call compiled the program.
    return [name, f"{flops / 1e9:.3g}", f"{megabytes:.3g}", f"{min(seconds[1:]):.3g}"]


def write_costs(path: str) -> None:
    """Adds the missing rows."""
    header = ["loss", "gflop", "megabytes", "processor_seconds"]
    large, small = side(4, 512, 1024, 64), side(1, 512, 512, 16)
    with open(path, "a+", newline="") as file:
        file.seek(0)
        done = {row[0] for row in csv.reader(file)}
        rows = csv.writer(file, lineterminator="\n")
        if not done:
            rows.writerow(header)
        for name in ("cross_entropy", *LOSSES):
            if name not in done:
                rows.writerow(cost(name, large, small))
                file.flush()


HEADER = """\
| loss | size | copy | f32: forward | both | bf16: forward | both | arrays: forward | both \
| reads: forward | both |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="parts of names, with commas between")
    parser.add_argument("--terms", metavar="FILE", help="where to write what terms cost")
    flags = parser.parse_args()
    if flags.terms:
        write_costs(flags.terms)
        return

    every = [case for size in SIZES for case in cases(size)]
    every += [case for size in LARGE for case in similarities(size)]
    wanted = flags.only.split(",")
    print(f"`{' '.join(['python -m benchmarks.programs', *sys.argv[1:]])}`\n")
    print(f"JAX {jax.__version__}, compiled for {jax.devices()[0].device_kind}.\n\n{HEADER}")
    for case in sorted(every, key=lambda case: case.name):
        if any(part in case.name for part in wanted):
            print("|", " | ".join(measure(case)), "|", flush=True)


if __name__ == "__main__":
    main()
