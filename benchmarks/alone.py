"""One side of `benchmarks.train_step` in a process of its own: time to the first step, memory.

    python -m benchmarks.alone pytorch|kdjax WORK STEPS

WORK is `Work.to_json()`. Prints one line of JSON: the clock after the first step, and the peak of
memory in bytes, on a GPU of the arrays, else of the resident process: `peak` of all and `stepping`
once everything is compiled.
"""

import importlib
import json
import pathlib
import sys
import time

from benchmarks.work import Work

SIDES = {"pytorch": "benchmarks.torch.side", "kdjax": "benchmarks.kdjax_side"}
STATUS = pathlib.Path("/proc/self/status")


def main() -> None:
    name, text, steps = sys.argv[1:]
    work = Work.from_json(text)
    batch = work.batch(0)
    # Only here, so that the other side's library takes no memory.
    side = importlib.import_module(SIDES[name]).Side(work)
    side.step(batch)
    side.wait()
    first_step, peak = time.time(), resident_peak()
    forget_peak()
    for _ in range(int(steps)):
        side.step(batch)
    side.wait()
    stepping = resident_peak()
    if side.on_gpu:
        peak = stepping = side.device_peak()
    found = {"first_step": first_step, "peak": max(peak, stepping), "stepping": stepping}
    print(json.dumps(found))


def forget_peak() -> None:
    """Lets Linux count the peak of resident memory from now on."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def resident_peak() -> int:
    """Peak of resident memory since `forget_peak`, in bytes."""
    for line in STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{STATUS} holds no VmHWM")


if __name__ == "__main__":
    main()
