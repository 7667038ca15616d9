"""Runs one side of `benchmarks.train_step` alone: time to the first step, and memory.

    python -m benchmarks.alone pytorch|compiled_pytorch|kdjax WORK STEPS

WORK is `Work.to_json()`. Prints one line of JSON: the clock after the first step, and the peak of
memory in bytes, of the arrays on a GPU or of the whole process on a CPU.
"""

import json
import pathlib
import sys
import time
from typing import Any

from benchmarks.work import Work

STATUS = pathlib.Path("/proc/self/status")


def main() -> None:
    name, text, steps = sys.argv[1:]
    work = Work.from_json(text)
    batch = work.batch(0)
    side = make_side(name, work)
    side.step(batch)
    side.wait()
    first_step = time.time()
    for _ in range(int(steps)):
        side.step(batch)
    side.wait()
    peak = side.device_peak() if side.on_gpu else resident_peak()
    print(json.dumps({"first_step": first_step, "peak": peak}))


def make_side(name: str, work: Work) -> Any:
    """Returns a side; imports it alone, so that the other's library takes no memory."""
    if name == "kdjax":
        from kdjax.utils import environment

        environment.set_up_jax()
        from benchmarks.kdjax_side import Side

        return Side(work)
    from benchmarks.torch.side import best_side

    return best_side(work, compiled=name == "compiled_pytorch")


def resident_peak() -> int:
    """Returns the peak of resident memory in bytes.

    `getrusage` would include the peak of the parent process.
    """
    for line in STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{STATUS} holds no VmHWM")


if __name__ == "__main__":
    main()
