"""Measures batches from the device's memory, and their share of a training step.

    python -m benchmarks.input_device

Generated examples of VOC 2012's size (500 x 375) are on the device. Crops are scaled, flipped, and
distorted there, alone and before the forward and backward pass of a plain student. Needs neither
TensorFlow nor files.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx

from benchmarks import rounds
from kdjax import models
from kdjax.data.loading.device_augment import augment_batch
from kdjax.data.loading.sampling import AugmentOptions, index_batches
from kdjax.data.loading.sources import InMemoryExamples
from kdjax.losses import upsampled_cross_entropy
from kdjax.models.outputs import IMAGENET
from kdjax.training.sharding import Placement

EXAMPLES = flags.DEFINE_integer("examples", 512, "Examples on the device.", 1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Images of all devices together.", 1)
CROP = flags.DEFINE_integer("crop", 512, "Height and width of a crop.", 1)
NETWORK = flags.DEFINE_string("network", "pspnet_r18", "The student.")
DTYPE = flags.DEFINE_string("dtype", "bfloat16", "The type of the student's arithmetic.")
ROUNDS = flags.DEFINE_integer("rounds", 20, "Rounds after the first, which compiles.", 2)
STEPS = 5  # in a turn


def main(argv: list[str]) -> None:
    del argv
    options = AugmentOptions((CROP.value, CROP.value))
    placement = Placement()
    held = placement.replicate(made_up().padded())
    batches = index_batches(
        (EXAMPLES.value,),
        (1,),
        batch_size=BATCH_SIZE.value,
        seed=0,
        steps=range(10**9),
        options=options,
    )
    network = models.create(NETWORK.value, num_classes=21, dtype=DTYPE.value, rngs=nnx.Rngs(0))
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)
    params, rest = jax.device_put((params, rest), placement.replicated)

    @jax.jit
    def gradients(params: Any, rest: Any, batch: dict[str, Any]) -> Any:
        def loss(params: Any) -> Any:
            net = nnx.merge(graphdef, params, rest, copy=True)
            output = net(IMAGENET(batch["image"]), train=True, rngs=nnx.Rngs(dropout=0))
            return jnp.mean(upsampled_cross_entropy(output.logits, batch["label"]))

        return jax.grad(loss)(params)

    augmented = jax.jit(functools.partial(augment_batch, options=options))

    def crops() -> dict[str, Any]:
        batch = placement.put_batch(next(batches))
        return augmented(held, batch["indices"], batch["draws"])

    fixed = crops()
    calls: dict[str, Callable[[], Any]] = {
        "step on one batch": lambda: gradients(params, rest, fixed),
        "augmentation": crops,
        "augmentation and step": lambda: gradients(params, rest, crops()),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS.value + 1):
        for name, call in calls.items():
            seconds[name].append(turn(call))
    seconds = {name: found[1:] for name, found in seconds.items()}
    print(f"{rounds.table(seconds, BATCH_SIZE.value)}\n")
    pairs = zip(seconds["augmentation and step"], seconds["step on one batch"], strict=True)
    share = statistics.median((both - alone) / both for both, alone in pairs)
    print(f"Share of the augmentation in both: {100 * share:.1f} %.\n\n{rounds.machine()}")


def made_up() -> InMemoryExamples:
    """Returns images of noise, and labels of patches."""
    rng = np.random.default_rng(0)
    examples = []
    for number in range(EXAMPLES.value):
        size = (375, 500) if number % 2 else (500, 375)
        label = np.kron(rng.integers(0, 21, (5, 5), np.uint8), np.ones((100, 100), np.uint8))
        examples.append(
            {
                "image": rng.integers(0, 256, (*size, 3), np.uint8),
                "label": label[: size[0], : size[1]],
            }
        )
    return InMemoryExamples(examples)


def turn(call: Callable[[], Any]) -> float:
    """Returns the seconds of a call, from several calls in a row."""
    started = time.perf_counter()
    results = [call() for _ in range(STEPS)]
    jax.block_until_ready(results)
    return (time.perf_counter() - started) / STEPS


if __name__ == "__main__":
    app.run(main)
