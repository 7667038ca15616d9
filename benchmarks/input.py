"""Input speed beside a PyTorch DataLoader, and where the time goes.

    pip install opencv-python-headless torch && python -m benchmarks.input

Streams made-up examples, sized as those of Cityscapes (2048 x 1024 PNG to crops of 512 x 1024) and
of ADE20K (JPEG to crops of 512 x 512), through kdjax and through the DataLoader of
`benchmarks.input_torch`, with the same number of threads and workers, in turn. Images per CPU
second count the processor time of all threads and workers, so that they hold on a busy machine too.
"""

import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import cv2  # pyright: ignore[reportMissingImports]
import numpy as np
import torch
from absl import app, flags

from benchmarks import input_torch, made_up
from kdjax.data._tensorflow import tf
from kdjax.data.loading import pipeline
from kdjax.data.loading.augment import augment, distort
from kdjax.data.loading.records import Records, decode_example, open_example, whole_window
from kdjax.data.loading.sampling import AugmentOptions, Draws, draw
from kdjax.data.loading.sources import InMemoryExamples

WORKERS = flags.DEFINE_integer("workers", 2, "Threads of kdjax, and workers of the DataLoader.", 1)
ROUNDS = flags.DEFINE_integer("rounds", 7, "Turns of each.", 1)
IMAGES = flags.DEFINE_integer("images", 64, "Images in a turn.", 1)
BATCH_SIZE = 4
CROPS = {"cityscapes": (512, 1024), "ade20k": (512, 512)}
# Examples of each kind; all of them fit the cache of the file system.
COUNT = 16


def main(argv: list[str]) -> None:
    del argv
    tf.config.threading.set_intra_op_parallelism_threads(1)
    print(
        f"TensorFlow {tf.__version__}, PyTorch {torch.__version__}, OpenCV {cv2.__version__}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}; {WORKERS.value} threads or workers"
    )
    with tempfile.TemporaryDirectory() as folder:
        for kind, crop_size in CROPS.items():
            directory = pathlib.Path(folder) / kind
            paths = made_up.write(directory, kind, COUNT)
            records = made_up.as_records(paths, directory / "examples.array_record")
            sources = {"kdjax": records}
            if kind == "cityscapes":
                tiled = directory / "tiles.array_record"
                sources["kdjax, --tiles"] = made_up.as_records(paths, tiled, tiled=True)
            options = AugmentOptions(crop_size)
            held = InMemoryExamples(records.decoded(range(len(records))))
            compare(kind, paths, sources | {"kdjax, cache host": held}, options)
            for name, source in sources.items():
                print(f"    milliseconds of processor time an image, {name}:")
                for stage, milliseconds in stages(source, options).items():
                    print(f"        {stage:32} {milliseconds:6.2f}")


def compare(
    kind: str,
    paths: list[made_up.Pair],
    sources: Mapping[str, InMemoryExamples | Records],
    options: AugmentOptions,
) -> None:
    """Prints the rates, and their ratios to PyTorch's of the same round."""
    settings: dict[str, Any] = {"batch_size": BATCH_SIZE, "seed": 0, "steps": range(10**9)}
    settings |= {"options": options, "num_threads": WORKERS.value}
    theirs = iter(input_torch.loader(paths, options.crop_size, BATCH_SIZE, WORKERS.value))
    workers = [worker.pid for worker in theirs._workers]  # type: ignore[attr-defined]
    turns: dict[str, tuple[Iterator[Any], Callable[[], float]]] = {
        "PyTorch": (theirs, lambda: processor_time(workers)),
    }
    for name, source in sources.items():
        turns[name] = (pipeline.train_batches(source, **settings), time.process_time)
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
    for _ in range(ROUNDS.value + 1):
        for name, (batches, clock) in turns.items():
            rates[name].append(rate(batches, clock))
    del theirs, turns
    reference = np.array(rates["PyTorch"][1:])
    print(f"{kind}: images per CPU second, ratio and its quartiles; images/s, ratio")
    for name, found in rates.items():
        per_core, wall = np.array(found[1:]).T
        low, middle, high = statistics.quantiles(per_core / reference[:, 0], n=4)
        print(
            f"    {name:20} {np.median(per_core):6.1f} {middle:5.2f} ({low:.2f} to {high:.2f})  "
            f"{np.median(wall):6.1f} {np.median(wall / reference[:, 1]):5.2f}"
        )


def rate(batches: Iterator[Any], clock: Callable[[], float]) -> tuple[float, float]:
    """Images per CPU second and per second of one turn.

    The first batches are those that were prepared while the other had its turn.
    """
    for _ in range(2 * WORKERS.value + 4):
        next(batches)
    processor, wall = clock(), time.perf_counter()
    for _ in range(IMAGES.value // BATCH_SIZE):
        next(batches)
    images = IMAGES.value // BATCH_SIZE * BATCH_SIZE
    return images / (clock() - processor), images / (time.perf_counter() - wall)


def processor_time(processes: list[int]) -> float:
    """Seconds of the workers and of this process, which collects from them."""
    total = time.process_time()
    for process in processes:
        fields = pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def stages(records: Records, options: AugmentOptions) -> dict[str, float]:
    """Processor time of each stage, in one thread, as mean over the examples."""
    indices = list(range(len(records)))
    numbers = draw(options, 0, indices)
    draws = [Draws(*(tf.constant(value[row]) for value in numbers)) for row in indices]
    plain = AugmentOptions(options.crop_size, photometric=False, max_class_share=1)
    varied = AugmentOptions(options.crop_size, photometric=False)

    def augmented(chosen: AugmentOptions) -> Callable[[Any, Draws], Any]:
        @tf.function(reduce_retracing=True)
        def run(example: Any, draws: Draws) -> Any:
            window = whole_window(example["image"])
            return augment(lambda begin, end: window, example["label"], draws, chosen)

        return run

    @tf.function(reduce_retracing=True)
    def decoded_crop(record: Any, draws: Draws) -> Any:
        _, label, read_window = open_example(record)
        return augment(read_window, label, draws, plain)

    serialized, reading = timed(lambda row: tf.constant(records.read_serialized([row])[0]), indices)
    _, decoding = timed(decoded_crop, serialized, draws)
    examples = [decode_example(record) for record in serialized]
    crops, geometry = timed(augmented(plain), examples, draws)
    _, choosing = timed(augmented(varied), examples, draws)
    images = [crop["image"] for crop in crops]
    _, colour = timed(tf.function(distort, reduce_retracing=True), images, draws)
    batched = [images[row : row + BATCH_SIZE] for row in range(0, len(images), BATCH_SIZE)]
    _, batching = timed(tf.stack, batched)
    return {
        "read": reading,
        "decode image and label": decoding - geometry,
        "scale, crop, flip and pad": geometry,
        "look for a crop of several classes": choosing - geometry,
        "colour": colour,
        "batch": batching / BATCH_SIZE,
    }


def timed(function: Callable[..., Any], *columns: Any) -> tuple[list[Any], float]:
    """Results, and milliseconds of a call; a first round is not counted."""
    for row in zip(*columns, strict=True):
        function(*row)
    started = time.process_time()
    results = [function(*row) for row in zip(*columns, strict=True)]
    return results, 1000 * (time.process_time() - started) / len(results)


if __name__ == "__main__":
    app.run(main)
