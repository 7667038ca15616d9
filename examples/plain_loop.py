"""Distillation in a training loop of your own, on JAX alone.

    python examples/plain_loop.py

A network with eight times the channels learns to label colored rectangles, and then teaches a small
one by CWD on the scores and NFD on the features. Networks, data, and optimizer are a few lines
each, and you can replace them with any others.
"""

import functools
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import distillation, losses

CLASSES, SIZE, BATCH = 4, 32, 8
RATE, MOMENTUM = 0.1, 0.9
Arrays = dict[str, Any]


def batches(seed: int) -> Iterator[Arrays]:
    """Yields labels, and images [B, H, W, 3] of rectangles in noise whose color is their class."""
    generator = np.random.default_rng(seed)
    while True:
        labels = np.zeros((BATCH, SIZE, SIZE), np.int32)
        for label in labels:
            for _ in range(4):
                top, left = generator.integers(0, SIZE - 8, 2)
                height, width = generator.integers(6, 16, 2)
                label[top : top + height, left : left + width] = generator.integers(1, CLASSES)
        colors = np.eye(CLASSES, 3, k=-1)[labels]
        noise = generator.normal(0, 0.8, (*labels.shape, 3))
        yield {"image": (colors + noise).astype(np.float32), "label": labels}


def init_network(key: jax.Array, channels: int) -> Arrays:
    """Returns three 3x3 kernels, of which the first halves the size, and a 1x1 classifier."""
    widths, sizes = (3, channels, channels, channels, CLASSES), (3, 3, 3, 1)
    draw = jax.nn.initializers.he_normal()
    return {
        f"conv{i}": draw(jax.random.fold_in(key, i), (size, size, widths[i], widths[i + 1]))
        for i, size in enumerate(sizes)
    }


def network(params: Arrays, images: jax.Array) -> Arrays:
    """Returns the maps by name, at half the images' size: "features" and "logits"."""
    x = images
    for i in range(3):
        x = jax.nn.relu(_convolve(x, params[f"conv{i}"], stride=2 if i == 0 else 1))
    return {"features": x, "logits": _convolve(x, params["conv3"])}


def _convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    strides = (stride, stride)
    return jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=layout)


def train(
    params: Arrays,
    steps: int,
    seed: int,
    distiller: distillation.Distiller | None = None,
    teacher: Arrays | None = None,
) -> Arrays:
    """Trains a network by SGD with momentum, with or without a teacher's terms."""
    key = jax.random.key(seed)
    learned, carried = distiller.init(key) if distiller else ({}, {})
    trained = {"network": params, "terms": learned}
    velocity = jax.tree.map(jnp.zeros_like, trained)

    @jax.jit
    def step(trained, velocity, carried, batch, number):
        # Outside the differentiated function, so that the gradient stores nothing of the teacher.
        theirs = network(teacher, batch["image"]) if teacher else None

        def objective(trained):
            ours = network(trained["network"], batch["image"])
            loss = losses.upsampled_cross_entropy(ours["logits"], batch["label"]).mean()
            state, metrics = carried, {"cross_entropy": loss}
            if distiller:
                maps = (ours, theirs, batch["label"])
                distilling, (state, values) = distiller(
                    trained["terms"], carried, *maps, step=number, steps=steps, key=key
                )
                loss, metrics = loss + distilling, metrics | values
            return loss, (state, metrics)

        gradients, (state, metrics) = jax.grad(objective, has_aux=True)(trained)
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradients)
        rate = RATE * (1 - number / steps)
        return jax.tree.map(lambda p, v: p - rate * v, trained, velocity), velocity, state, metrics

    for number, batch in zip(range(steps), batches(seed), strict=False):
        trained, velocity, carried, metrics = step(trained, velocity, carried, batch, number)
        if (number + 1) % max(1, steps // 4) == 0:
            print(f"  step {number + 1}:", ", ".join(f"{k} {v:.3f}" for k, v in metrics.items()))
    # The parameters of the terms are not deployed.
    return trained["network"]


def accuracy(params: Arrays) -> float:
    """Returns the share of correct pixels on images that no network was trained on."""

    @functools.partial(jax.jit, static_argnums=2)
    def right(params, batch, size):
        scores = losses.resize(network(params, batch["image"])["logits"], size)
        return jnp.mean(jnp.argmax(scores, -1) == batch["label"])

    unseen = zip(range(10), batches(1000), strict=False)
    return float(np.mean([right(params, batch, (SIZE, SIZE)) for _, batch in unseen]))


def main(steps: int = 200) -> None:
    """Trains a teacher, a plain student, and a distilled one."""
    print("teacher")
    teacher = train(init_network(jax.random.key(0), 32), steps, seed=0)
    student = init_network(jax.random.key(1), 4)
    images = jnp.zeros((2, SIZE, SIZE, 3))
    distiller = distillation.Distiller(
        {
            "scores": distillation.term("cwd", weight=0.3),
            # The student has 4 channels and the teacher 32, so the term learns an adapter.
            "maps": distillation.term("nfd", student="features", teacher="features", weight=0.3),
        },
        student=jax.eval_shape(network, student, images),
        teacher=jax.eval_shape(network, teacher, images),
        image_size=(SIZE, SIZE),
    )
    print("plain student")
    plain = train(student, steps, seed=1)
    print("distilled student:", "; ".join(distiller.describe()))
    distilled = train(student, steps, 1, distiller, teacher)
    for name, params in (("teacher", teacher), ("plain", plain), ("distilled", distilled)):
        print(f"{name}: {100 * accuracy(params):.1f} % of the pixels are right")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
