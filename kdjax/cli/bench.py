"""Measures the time and memory of an exported student on this machine.

python -m kdjax bench student/student.tflite

Runs one image at a time, on the cores of the process: `taskset -c 0 python -m kdjax bench
student/student.tflite` uses one core. `--torch` also times a PyTorch network. It names a function
without arguments that returns the network. The time includes the class numbers at image size.
"""

from absl import flags

from kdjax.deployment import measure, measure_torch
from kdjax.deployment.formats import LARGEST
from kdjax.utils.errors import UserError

_HEIGHT = flags.DEFINE_integer("height", 512, "Of images, if any size will do.", 1, LARGEST)
_WIDTH = flags.DEFINE_integer("width", 1024, "Of images, if any size will do.", 1, LARGEST)
_ROUNDS = flags.DEFINE_integer("rounds", 50, "Number of timed images, after three others.", 1)
_TORCH = flags.DEFINE_string(
    "torch", None, "A PyTorch network to time too, as package.module:function."
)


def main(argv: list[str]) -> None:
    """Prints the size, time, and memory of the file, and of the PyTorch network."""
    if len(argv) != 2:
        raise UserError("name one file that kdjax.export wrote, as student/student.tflite")
    found = measure(argv[1], size=(_HEIGHT.value, _WIDTH.value), rounds=_ROUNDS.value)
    print(found, flush=True)
    if _TORCH.value is not None:
        print(measure_torch(_TORCH.value, size=found.size, rounds=_ROUNDS.value))
