"""Convolutions alone, and batch norm with ReLU alone: kdjax next to XLA's own and PyTorch.

    python -m benchmarks.convolutions

The shapes are those of `benchmarks.train_step` on the CPU, and of an EfficientNet-Lite0 that trains
on crops of 160 x 208. In float32, all with channels last; the sides take turns, and the table holds
medians of processor time and of the ratios of one round.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags
from flax import nnx
from torch.nn import functional

from kdjax.models.layers import Conv, DepthwiseConv

ROUNDS = flags.DEFINE_integer("rounds", 15, "Turns of each, after two that are not counted.", 1)


class Shape(NamedTuple):
    """A convolution [given, wanted, size, size] of a batch of maps of height x width."""

    given: int
    wanted: int
    size: int
    dilation: int
    batch: int
    height: int
    width: int
    depthwise: bool = False


SHAPES = {
    "R101, stage 3, 1x1": Shape(256, 64, 1, 1, 4, 16, 32),
    "R101, stage 3, 3x3": Shape(64, 64, 3, 2, 4, 16, 32),
    "R101, pyramid, 3x3": Shape(1024, 128, 3, 1, 4, 16, 32),
    "R18, stage 1, 3x3": Shape(16, 16, 3, 1, 4, 32, 64),
    "R18, stage 4, 3x3": Shape(128, 128, 3, 4, 4, 16, 32),
    "Lite0, stage 1, expansion": Shape(24, 144, 1, 1, 8, 40, 52),
    "Lite0, stage 1, depthwise 3x3": Shape(144, 144, 3, 1, 8, 40, 52, depthwise=True),
    "Lite0, stage 1, projection": Shape(144, 24, 1, 1, 8, 40, 52),
    "Lite0, stage 3, depthwise 5x5": Shape(672, 672, 5, 1, 8, 10, 13, depthwise=True),
}
BATCH_NORM = SHAPES["R18, stage 1, 3x3"]
Call = Callable[[], Any]


def main(argv: list[str]) -> None:
    del argv
    print("| operation | kdjax, ms | XLA / kdjax | PyTorch / kdjax |\n| --- | ---: | ---: | ---: |")
    for name, shape in SHAPES.items():
        for what, calls in convolution(shape).items():
            row(f"{name}, {what}", calls)
    for what, calls in normalisation().items():
        row(f"R18, stage 1, batch norm and ReLU, {what}", calls)
    threads = f"threads of PyTorch: {torch.get_num_threads()}"
    print(f"\nJAX {jax.__version__}, PyTorch {torch.__version__}, {threads}.")


def row(name: str, calls: Mapping[str, Call]) -> None:
    times = []
    for _ in range(ROUNDS.value + 2):
        marks = [time.process_time()]
        for call in calls.values():
            # Enough of them for the clock, which counts microseconds.
            for _ in range(10):
                call()
            marks.append(time.process_time())
        times.append(100 * np.diff(marks))
    columns = dict(zip(calls, np.array(times[2:]).T, strict=True))
    first = columns["kdjax"]
    cells = [f"{np.median(first):.2f}"]
    for side in ("XLA", "PyTorch"):
        if side in columns:
            low, middle, high = np.percentile(columns[side] / first, [25, 50, 75])
            cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        else:
            cells.append("–")
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def convolution(shape: Shape) -> dict[str, dict[str, Call]]:
    """Calls of the three sides, forward and with the gradients of map and kernel."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((shape.batch, shape.height, shape.width, shape.given), np.float32)
    groups, reach = shape.given if shape.depthwise else 1, shape.dilation * (shape.size // 2)
    options = {"dilation": shape.dilation, "dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    layer = (
        DepthwiseConv(shape.given, shape.size, **options)
        if shape.depthwise
        else Conv(shape.given, shape.wanted, shape.size, **options)
    )
    graph, state = nnx.split(layer)
    kernel = np.asarray(layer.kernel[...])

    def kdjax(x: jax.Array, state: nnx.State) -> jax.Array:
        return nnx.merge(graph, state)(x)

    def xla(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            [(reach, reach)] * 2,
            rhs_dilation=(shape.dilation, shape.dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    def pytorch(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(x, kernel, None, 1, reach, shape.dilation, groups)

    weights = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
    return turns(
        {
            "kdjax": jax_calls(kdjax, jnp.asarray(x), state),
            "XLA": jax_calls(xla, jnp.asarray(x), jnp.asarray(kernel)),
            "PyTorch": torch_calls(
                pytorch,
                torch.from_numpy(x).permute(0, 3, 1, 2),
                weights.to(memory_format=torch.channels_last),
            ),
        }
    )


def normalisation() -> dict[str, dict[str, Call]]:
    """Calls of both sides: batch norm in training, and ReLU."""
    shape = BATCH_NORM
    x = np.random.default_rng(0).standard_normal(
        (shape.batch, shape.height, shape.width, shape.wanted), np.float32
    )
    ones, zeros = np.ones(shape.wanted, np.float32), np.zeros(shape.wanted, np.float32)

    def kdjax(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        mean, square = jnp.mean(x, (0, 1, 2)), jnp.mean(jnp.square(x), (0, 1, 2))
        variance = square - jnp.square(mean)
        return jax.nn.relu((x - mean) * (jax.lax.rsqrt(variance + 1e-5) * scale) + bias)

    def pytorch(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return functional.relu(functional.batch_norm(x, None, None, scale, bias, training=True))

    inputs = torch.from_numpy(x).permute(0, 3, 1, 2), *map(torch.from_numpy, (ones, zeros))
    return turns(
        {
            "kdjax": jax_calls(kdjax, *map(jnp.asarray, (x, ones, zeros))),
            "PyTorch": torch_calls(pytorch, *inputs),
        }
    )


def turns(sides: Mapping[str, tuple[Call, Call]]) -> dict[str, dict[str, Call]]:
    """The sides' calls by what they do."""
    return {
        what: {side: calls[index] for side, calls in sides.items()}
        for index, what in enumerate(("forward", "forward and gradients"))
    }


def jax_calls(function: Callable[..., jax.Array], *inputs: Any) -> tuple[Call, Call]:
    forward = jax.jit(function)
    slope = forward(*inputs)

    @jax.jit
    def both(*inputs: Any) -> Any:
        value, pull = jax.vjp(function, *inputs)
        return value, pull(slope)

    return (
        lambda: jax.block_until_ready(forward(*inputs)),
        lambda: jax.block_until_ready(both(*inputs)),
    )


def torch_calls(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> tuple[Call, Call]:
    leaves = [x.clone().requires_grad_() for x in inputs]

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return function(*inputs)

    slope = forward()
    return forward, lambda: torch.autograd.grad(function(*leaves), leaves, slope)


if __name__ == "__main__":
    app.run(main)
