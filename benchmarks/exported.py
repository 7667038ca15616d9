"""An exported student, one image at a time, on the cores that it is given.

    taskset -c 0 python -m benchmarks.exported student/student.tflite --height 180 --width 240

Prints the file's size, and of the seconds of an image the median and the quartiles.
"""

import pathlib
import time

import numpy as np
from absl import app, flags

from kdjax.deployment import ExportedStudent

HEIGHT = flags.DEFINE_integer("height", 512, "Of the images, where any size will do.", 1)
WIDTH = flags.DEFINE_integer("width", 1024, "Likewise.", 1)
ROUNDS = flags.DEFINE_integer("rounds", 50, "Images, after three that are not counted.", 1)


def main(argv: list[str]) -> None:
    _, path = argv
    student = ExportedStudent.load(path)
    height, width = student.size.height or HEIGHT.value, student.size.width or WIDTH.value
    generator = np.random.default_rng(0)
    seconds = []
    for _ in range(ROUNDS.value + 3):
        image = generator.integers(0, 256, (1, height, width, 3), np.uint8)
        started = time.perf_counter()
        np.asarray(student.predict(image))
        seconds.append(time.perf_counter() - started)
    low, middle, high = 1e3 * np.percentile(seconds[3:], [25, 50, 75])
    file = pathlib.Path(path)
    size = sum(part.stat().st_size for part in (file, *file.rglob("*")) if part.is_file())
    print(
        f"{file.name}: {size / 1e6:.1f} MB; an image of {height} x {width} in {middle:.1f} ms "
        f"({low:.1f} to {high:.1f})"
    )


if __name__ == "__main__":
    app.run(main)
