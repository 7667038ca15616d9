"""Memory of this process while a set of 2 GB streams.

    pip install opencv-python-headless && python -m benchmarks.input_memory

Writes records of made-up Cityscapes-sized images, streams batches of crops from them, and prints
the resident size as it goes on, without the pages of files. The records are removed at the end.
"""

import pathlib
import tempfile

from absl import app, flags

from benchmarks import made_up
from kdjax.data.loading import pipeline
from kdjax.data.loading.sampling import AugmentOptions

GIGABYTES = flags.DEFINE_float("gigabytes", 2.0, "Size of the records.", 0.1)
BATCHES = flags.DEFINE_integer("batches", 300, "How many are read.", 1)
COUNT = 8


def main(argv: list[str]) -> None:
    del argv
    with tempfile.TemporaryDirectory() as folder:
        directory = pathlib.Path(folder)
        paths = made_up.write(directory, "cityscapes", COUNT)
        size = sum(file.stat().st_size for pair in paths for file in pair)
        repeats = int(GIGABYTES.value * 1e9 / size) + 1
        file = directory / "examples.array_record"
        records = made_up.as_records(paths, file, repeats)
        print(f"{len(records)} examples in {file.stat().st_size / 1e9:.2f} GB")
        batches = pipeline.train_batches(
            records,
            batch_size=4,
            seed=0,
            steps=range(BATCHES.value),
            options=AugmentOptions((512, 1024)),
            num_threads=2,
        )
        for number, _ in enumerate(batches, 1):
            if number % max(BATCHES.value // 10, 1) == 0:
                print(f"after {4 * number:5} images: {resident():5.0f} MB")


def resident() -> float:
    """Resident anonymous memory of this process in MB."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1000
    raise OSError("/proc/self/status holds no RssAnon")


if __name__ == "__main__":
    app.run(main)
