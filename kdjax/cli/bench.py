"""Times an exported student on this machine, and measures its memory.

python -m kdjax bench student/student.tflite

One image at a time, on the cores that the process is given: `taskset -c 0 python -m kdjax bench
student/student.tflite` takes one. `--torch` names a function of no arguments that returns the
network in PyTorch, which is timed beside it, class numbers of the image's size included.
"""

from absl import flags

from kdjax.deployment import measure, measure_torch
from kdjax.deployment.formats import LARGEST
from kdjax.utils.errors import UserError

_HEIGHT = flags.DEFINE_integer("height", 512, "Of the images, if any size will do.", 1, LARGEST)
_WIDTH = flags.DEFINE_integer("width", 1024, "Of the images, if any size will do.", 1, LARGEST)
_ROUNDS = flags.DEFINE_integer("rounds", 50, "Images, after three that are not counted.", 1)
_TORCH = flags.DEFINE_string(
    "torch", None, "A PyTorch network to time beside it, as package.module:function."
)


def main(argv: list[str]) -> None:
    """Prints a line of size, time and memory of the file, and one of the PyTorch network."""
    if len(argv) != 2:
        raise UserError("name one file that kdjax.export wrote, as student/student.tflite")
    found = measure(argv[1], size=(_HEIGHT.value, _WIDTH.value), rounds=_ROUNDS.value)
    print(found, flush=True)
    if _TORCH.value is not None:
        print(measure_torch(_TORCH.value, size=found.size, rounds=_ROUNDS.value))
