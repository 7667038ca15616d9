"""What the compiled losses look like: memory, float32 copies of the inputs, passes over them.

    python -m benchmarks.programs                        all, about two minutes on two cores
    python -m benchmarks.programs --only cwd,pfs         losses whose name contains one of these

Prints Markdown. The programs are compiled for JAX's default back end and not run. "Forward" is the
mean of the loss, "both" that with its gradient by the first input. The columns:

copy: megabytes of the first input in float32, to compare with.
f32, bf16: megabytes of temporaries, by the compiler's own account, with inputs of that type: what a
program needs beside its inputs and results.
arrays: how often the bfloat16 program writes a float32 array of at least as many elements as the
first input. An instruction inside a fusion writes nothing down and does not count.
reads: how many instructions of the bfloat16 program have the first input among their operands, and
how many the teacher's scores or features, where there are any. A loop counts once.
"""

import argparse
import functools
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.planning.hlo import parse
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
    """What `upsampled_cross_entropy` does, in two steps of JAX."""
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


HEADER = """\
| loss | size | copy | f32: forward | both | bf16: forward | both | arrays: forward | both \
| reads: forward | both |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="parts of names, with commas between")
    flags = parser.parse_args()

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
