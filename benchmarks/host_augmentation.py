"""Whether the augmentation of the devices could serve the host, too: TensorFlow's beside JAX's.

    python -m benchmarks.host_augmentation [--csv host_augmentation.csv]

Both draw the same crops of the same examples in host memory, of the sizes of Cityscapes and ADE20K,
and give the same pixels, a level more or less. In turn, so that a busy machine slows both; images
per second of processor time count all threads.
"""

import csv
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import app, flags

from kdjax.data._tensorflow import tf
from kdjax.data.loading import pipeline, sampling
from kdjax.data.loading.device_augment import augment_batch
from kdjax.data.loading.sampling import AugmentOptions
from kdjax.data.loading.sources import InMemoryExamples

ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each.", 1)
BATCHES = flags.DEFINE_integer("batches", 3, "Batches in a turn.", 1)
CSV = flags.DEFINE_string("csv", None, "Where the rate of every turn is written.")
BATCH_SIZE = 4
# Size of the images, and of the crops.
SIZES = {
    "cityscapes": ((1024, 2048), (512, 1024)),
    "ade20k": ((512, 683), (512, 512)),
}
COUNT = 8  # examples of each kind


def main(argv: list[str]) -> None:
    del argv
    tf.config.threading.set_intra_op_parallelism_threads(1)
    print(
        f"TensorFlow {tf.__version__}, JAX {jax.__version__}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.0f}"
    )
    rows = []
    for kind, (size, crop_size) in SIZES.items():
        examples = InMemoryExamples(_made_up(size))
        options = AugmentOptions(crop_size)
        sides = {"TensorFlow": _tensorflow(examples, options), "JAX": _jax(examples, options)}
        first, second = (next(batches) for batches in sides.values())
        for key, pixels in first.items():
            # Colours are rounded from floats, which compilers add up in orders of their own.
            np.testing.assert_allclose(second[key].astype(int), pixels, atol=1)
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(ROUNDS.value + 1):
            for name, batches in sides.items():
                rate = _rate(batches)
                if turn:  # the first warms up
                    rates[name].append(rate)
                    rows.append({"kind": kind, "side": name, "turn": turn, "rate": f"{rate:.3f}"})
        pairs = zip(rates["JAX"], rates["TensorFlow"], strict=True)
        ratios = [jax_rate / tensorflow_rate for jax_rate, tensorflow_rate in pairs]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"{kind}: images per second of processor time: "
            f"TensorFlow {statistics.median(rates['TensorFlow']):.1f}, "
            f"JAX {statistics.median(rates['JAX']):.1f}; "
            f"JAX / TensorFlow {middle:.2f} ({low:.2f} to {high:.2f})"
        )
    if CSV.value:
        with open(CSV.value, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)


def _made_up(size: tuple[int, int]) -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    for _ in range(COUNT):
        label = np.kron(rng.integers(0, 19, (size[0] // 64, size[1] // 64 + 1)), np.ones((64, 64)))
        yield {
            "image": rng.integers(0, 256, (*size, 3), np.uint8),
            "label": label[:, : size[1]].astype(np.uint8),
        }


def _tensorflow(examples: InMemoryExamples, options: AugmentOptions) -> Iterator[dict[str, Any]]:
    batches = pipeline.train_batches(
        examples, batch_size=BATCH_SIZE, seed=0, steps=range(10**9), options=options
    )
    return ({key: batch[key] for key in ("image", "label")} for batch in batches)


def _jax(examples: InMemoryExamples, options: AugmentOptions) -> Iterator[dict[str, Any]]:
    arrays = jax.device_put(examples.padded())
    crops: Callable[..., Any] = jax.jit(
        lambda arrays, indices, draws: augment_batch(arrays, indices, draws, options)
    )
    for batch in sampling.index_batches(
        examples.lengths,
        examples.weights,
        batch_size=BATCH_SIZE,
        seed=0,
        steps=range(10**9),
        options=options,
    ):
        found = crops(arrays, batch["indices"], batch["draws"])
        yield {key: np.asarray(found[key]) for key in ("image", "label")}


def _rate(batches: Iterator[Any]) -> float:
    # What was prepared while the other side had its turn.
    for _ in range(2):
        next(batches)
    began = time.process_time()
    for _ in range(BATCHES.value):
        next(batches)
    return BATCHES.value * BATCH_SIZE / (time.process_time() - began)


if __name__ == "__main__":
    app.run(main)
