"""Measures the time and memory of an exported student on this machine.

python -m kdjax bench student/student.tflite

Runs one image at a time, on the cores of the process: `taskset -c 0 python -m kdjax bench
student/student.tflite` uses one core.
"""

from absl import flags

from kdjax.deployment import measure
from kdjax.deployment.formats import LARGEST
from kdjax.utils.errors import UserError

_HEIGHT = flags.DEFINE_integer("height", 512, "Of images, if any size will do.", 1, LARGEST)
_WIDTH = flags.DEFINE_integer("width", 1024, "Of images, if any size will do.", 1, LARGEST)
_ROUNDS = flags.DEFINE_integer("rounds", 50, "Number of timed images, after three others.", 1)


def main(argv: list[str]) -> None:
    """Prints the size, time, and memory of the file."""
    if len(argv) != 2:
        raise UserError("name one file that kdjax export wrote, such as student/student.tflite")
    print(measure(argv[1], size=(_HEIGHT.value, _WIDTH.value), rounds=_ROUNDS.value))
