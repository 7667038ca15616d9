"""Convolutions alone, and batch norm with ReLU alone: XLA next to PyTorch, in float32.

    python -m benchmarks.convolutions

The shapes are those of `benchmarks.train_step` on the CPU. Both sides have channels last; they take
turns, and the table holds medians of processor time and of the ratio of one round.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags
from torch.nn import functional

ROUNDS = flags.DEFINE_integer("rounds", 15, "Turns of each, after two that are not counted.", 1)
BATCH = 4


class Shape(NamedTuple):
    """A convolution [given, wanted, size, size] on a map of height x width."""

    given: int
    wanted: int
    size: int
    dilation: int
    height: int
    width: int


SHAPES = {
    "teacher, stage 3, 1x1": Shape(256, 64, 1, 1, 16, 32),
    "teacher, stage 3, 3x3": Shape(64, 64, 3, 2, 16, 32),
    "teacher, pyramid, 3x3": Shape(1024, 128, 3, 1, 16, 32),
    "student, stage 1, 3x3": Shape(16, 16, 3, 1, 32, 64),
    "student, stage 4, 3x3": Shape(128, 128, 3, 4, 16, 32),
}
Call = Callable[[], Any]


def main(argv: list[str]) -> None:
    del argv
    print("| operation | XLA, ms | PyTorch, ms | PyTorch / XLA |\n| --- | ---: | ---: | ---: |")
    for name, shape in SHAPES.items():
        forward, both = convolution(shape)
        row(f"{name}, forward", *forward)
        if name.startswith("student"):
            row(f"{name}, forward and gradients", *both)
    row("student, stage 1, batch norm and ReLU, forward and gradients", *normalisation())
    threads = f"threads of PyTorch: {torch.get_num_threads()}"
    print(f"\nJAX {jax.__version__}, PyTorch {torch.__version__}, {threads}.")


def row(name: str, ours: Call, theirs: Call) -> None:
    times = []
    for _ in range(ROUNDS.value + 2):
        marks = [time.process_time()]
        for call in (ours, theirs):
            # Enough of them for the clock, which counts microseconds.
            for _ in range(10):
                call()
            marks.append(time.process_time())
        times.append(100 * np.diff(marks))
    xla, pytorch = np.array(times[2:]).T
    low, middle, high = np.percentile(pytorch / xla, [25, 50, 75])
    print(
        f"| {name} | {np.median(xla):.2f} | {np.median(pytorch):.2f} "
        f"| {middle:.2f} ({low:.2f} to {high:.2f}) |",
        flush=True,
    )


def convolution(shape: Shape) -> tuple[tuple[Call, Call], tuple[Call, Call]]:
    """Calls of both sides, forward and with the gradients of map and kernel."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((BATCH, shape.height, shape.width, shape.given), np.float32)
    kernel = rng.standard_normal((shape.size, shape.size, shape.given, shape.wanted), np.float32)
    reach = shape.dilation * (shape.size // 2)

    def ours(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            [(reach, reach)] * 2,
            rhs_dilation=(shape.dilation, shape.dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def theirs(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(x, kernel, padding=reach, dilation=shape.dilation)

    inputs = (
        torch.from_numpy(x).permute(0, 3, 1, 2),
        torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()).to(memory_format=torch.channels_last),
    )
    return calls(ours, theirs, (jnp.asarray(x), jnp.asarray(kernel)), inputs)


def normalisation() -> tuple[Call, Call]:
    """Calls of both sides: batch norm in training, ReLU, and their gradients."""
    shape = SHAPES["student, stage 1, 3x3"]
    x = np.random.default_rng(0).standard_normal(
        (BATCH, shape.height, shape.width, shape.wanted), np.float32
    )
    ones, zeros = np.ones(shape.wanted, np.float32), np.zeros(shape.wanted, np.float32)

    def ours(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        mean, square = jnp.mean(x, (0, 1, 2)), jnp.mean(jnp.square(x), (0, 1, 2))
        variance = square - jnp.square(mean)
        return jax.nn.relu((x - mean) * (jax.lax.rsqrt(variance + 1e-5) * scale) + bias)

    def theirs(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return functional.relu(functional.batch_norm(x, None, None, scale, bias, training=True))

    inputs = torch.from_numpy(x).permute(0, 3, 1, 2), *map(torch.from_numpy, (ones, zeros))
    return calls(ours, theirs, tuple(map(jnp.asarray, (x, ones, zeros))), inputs)[1]


def calls(
    ours: Callable[..., jax.Array],
    theirs: Callable[..., torch.Tensor],
    our_inputs: tuple[jax.Array, ...],
    their_inputs: tuple[torch.Tensor, ...],
) -> tuple[tuple[Call, Call], tuple[Call, Call]]:
    """Makes (forward, forward and gradients) of functions and their inputs."""
    forward = jax.jit(ours)
    cotangent = forward(*our_inputs)

    @jax.jit
    def pulled(*inputs: jax.Array) -> Any:
        value, pull = jax.vjp(ours, *inputs)
        return value, pull(cotangent)

    leaves = [x.clone().requires_grad_() for x in their_inputs]
    with torch.no_grad():
        their_cotangent = theirs(*their_inputs)

    def their_forward() -> torch.Tensor:
        with torch.no_grad():
            return theirs(*their_inputs)

    return (
        (lambda: jax.block_until_ready(forward(*our_inputs)), their_forward),
        (
            lambda: jax.block_until_ready(pulled(*our_inputs)),
            lambda: torch.autograd.grad(theirs(*leaves), leaves, their_cotangent),
        ),
    )


if __name__ == "__main__":
    app.run(main)
