"""Time to trace networks and their gradients: with kdjax's keys and statistics, and with Flax's.

    python -m benchmarks.tracing
    python -m benchmarks.tracing --network fcn_hr18 --rounds 1

Nothing is compiled or run. Flax compares the shardings of the old and the new value at every key
that is drawn (making the parameters) and at every running statistic (the gradient of a training
step), which for traced arrays is quadratic in their number: `kdjax.models.adapters`,
`kdjax.models.batch_norm`. Both sides take turns; a row holds median seconds and the median and the
quartiles of the ratio of one round. The programs of the gradients must be the same.
"""

import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import numpy as np
from absl import app, flags
from flax import nnx

from benchmarks.rounds import machine
from kdjax import models
from kdjax.models import batch_norm
from kdjax.models.adapters import traced_rngs

NETWORK = flags.DEFINE_multi_string(
    "network", ["pspnet_r18", "pspnet_r101", "pspnet_mbv2", "segformer_b0"], "Which networks."
)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each, after one that is not counted.", 1)
IMAGES = jax.ShapeDtypeStruct((2, 64, 64, 3), np.float32)
# Traces; returns what must be the same on both sides.
Trace = Callable[[], Any]


def main(argv: list[str]) -> None:
    del argv
    print("| network | traced | Flax, s | kdjax, s | Flax / kdjax |")
    print("| --- | --- | ---: | ---: | ---: |")
    for name in NETWORK.value:
        row(f"{name} | parameters", parameters(name, nnx.Rngs), parameters(name, traced_rngs))
        with mock.patch.object(batch_norm, "_Statistic", nnx.BatchStat):
            flax = gradient(name)
        row(f"{name} | gradient", flax, gradient(name))
    print(f"\n{machine()}")


def row(name: str, flax: Trace, ours: Trace) -> None:
    seconds = []
    for _ in range(ROUNDS.value + 1):
        marks, found = [time.perf_counter()], []
        for trace in (flax, ours):
            found.append(trace())
            marks.append(time.perf_counter())
        if str(found[0]) != str(found[1]):
            raise AssertionError(f"{name}: the two sides differ")
        seconds.append(np.diff(marks))
    theirs, mine = np.array(seconds[1:]).T
    low, middle, high = np.percentile(theirs / mine, [25, 50, 75])
    print(
        f"| {name} | {np.median(theirs):.2f} | {np.median(mine):.2f} "
        f"| {middle:.1f} ({low:.1f} to {high:.1f}) |",
        flush=True,
    )


def parameters(name: str, rngs: Callable[[int], nnx.Rngs]) -> Trace:
    """Makes a network without values."""

    def trace() -> Any:
        net = nnx.eval_shape(lambda: models.create(name, num_classes=19, rngs=rngs(0)))
        return nnx.to_pure_dict(nnx.state(net, nnx.Param))

    return trace


def gradient(name: str) -> Trace:
    """Traces the gradient of a training step."""
    net = nnx.eval_shape(lambda: models.create(name, num_classes=19, rngs=traced_rngs(0)))
    graphdef, parameters, rest = nnx.split(net, nnx.Param, ...)

    def trace() -> Any:
        def loss(parameters: Any, rest: Any, images: jax.Array) -> Any:
            net = nnx.merge(graphdef, parameters, rest, copy=True)
            output = net(images, train=True, rngs=traced_rngs(dropout=jax.random.key(0)))
            return output.logits.sum(), nnx.state(net, nnx.Not(nnx.Param))

        step = jax.jit(jax.grad(loss, has_aux=True))
        return step.trace(parameters, rest, IMAGES).jaxpr

    return trace


if __name__ == "__main__":
    app.run(main)
