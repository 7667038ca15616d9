"""Runs one training of two processes through 100 faults, and compares it with an untouched run.

python -m benchmarks.interruption --root DIR --csv FILE [--minutes 50]

Needs root on Linux, mkfs.ext4, and e2fsck: the workdir is on its own ext4 disk image, so that the
disk can fill up, fail, or lose its power. The same command continues after the faults in the CSV
file. The network is that of the tests.
"""

import argparse
import contextlib
import csv
import dataclasses
import json
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))

import tiny_run

from kdjax.data import sets
from kdjax.models import NETWORKS, serialization

NETWORKS["tiny"] = "tiny:create"

STEPS, EVAL_EVERY, CHECKPOINT_EVERY = 3000, 100, 5
PAUSE = 0.02  # seconds between two batches, so that there are moments to interrupt
MORE_STEPS = 12  # at most, from one fault to the next
DISK_MIB = 64
LIMIT = 170  # seconds without an end or a step after which a run counts as hung

# Fault -> (times, moments it may come at).
FAULTS = {
    "kill one process": (28, ("starting", "stepping", "saving", "stepping")),
    "kill both processes": (12, ("starting", "stepping", "saving")),
    "SIGTERM to one process": (12, ("starting", "stepping", "saving")),
    "SIGINT to one process": (4, ("stepping",)),
    "SIGSTOP for 5 s": (4, ("stepping", "saving")),
    "SIGSTOP for good": (4, ("stepping", "saving")),
    "disk full": (7, ("saving", "stepping")),
    "disk turns read-only": (5, ("saving", "stepping")),
    "clock jumps by an hour": (4, ("stepping",)),
    "checkpoint damaged": (10, ("stepping",)),
    "power cut": (10, ("stepping", "saving")),
    "second launcher": (4, ("stepping",)),
}


@dataclasses.dataclass
class Row:
    """The result of one fault.

    Attributes:
      number: the number of the fault, from 1.
      fault: the fault, as in `FAULTS`.
      moment: "starting", "stepping" or "saving".
      process: the process that the fault affected, -1 for both.
      statuses: the exit statuses of both processes.
      seconds_to_end: time from the fault to the end of both processes.
      seconds_to_continue: time from the next start to its first step.
      steps_again: the number of logged steps that were repeated.
      line: the last line that each process printed on stderr, if it printed one.
    """

    number: int
    fault: str
    moment: str
    process: int
    statuses: str
    seconds_to_end: float
    seconds_to_continue: float
    steps_again: int
    line: str


class Disk:
    """An ext4 file system in a file."""

    def __init__(self, root: pathlib.Path):
        self.image, self.path = root / "disk.img", root / "disk"
        self.path.mkdir(exist_ok=True)
        if not self.image.exists():
            with self.image.open("wb") as file:
                file.truncate(DISK_MIB * 2**20)
            _run("mkfs.ext4", "-q", self.image)
        self.mount()

    def mount(self) -> None:
        if not self.path.is_mount():
            # Replays the journal; 1 means that it corrected something.
            _run("e2fsck", "-p", self.image, allowed=(0, 1))
            _run("mount", "-o", "loop", self.image, self.path)

    def unmount(self) -> None:
        _run("umount", self.path)

    @contextlib.contextmanager
    def full(self):
        """Fills the disk, and fills freed space again."""
        stopped, filler = threading.Event(), self.path / "filler"

        def fill() -> None:
            with filler.open("ab", buffering=0) as file:
                while not stopped.is_set():
                    for size in (2**16, 1):
                        with contextlib.suppress(OSError):
                            while True:
                                file.write(bytes(size))
                    time.sleep(0.01)

        thread = threading.Thread(target=fill)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()
            filler.unlink()

    @contextlib.contextmanager
    def read_only(self):
        """Makes ext4 abort its journal, so that nothing is written any more, even to open files."""
        _run("mount", "-o", "remount,abort", self.path)
        try:
            yield
        finally:
            self.unmount()
            self.mount()

    def copy(self) -> pathlib.Path:
        """Returns a copy of the data on the device, as a power cut would leave it now."""
        return pathlib.Path(shutil.copy(self.image, self.image.with_name("cut.img")))

    def replace(self, image: pathlib.Path) -> None:
        self.unmount()
        image.replace(self.image)
        self.mount()


class Run:
    """A training of two processes, and its observed state."""

    def __init__(self, root: pathlib.Path, workdir: pathlib.Path, *, jump: int = -1):
        self.workdir, port = workdir, tiny_run.free_port()
        self.started = time.monotonic()
        self.children = [
            tiny_run.start(
                root / "data",
                workdir,
                f"--config.steps={STEPS}",
                f"--config.eval_every={EVAL_EVERY}",
                f"--config.checkpoint_every={CHECKPOINT_EVERY}",
                f"--coordinator=localhost:{port}",
                "--num_processes=2",
                f"--process_id={index}",
                pause=PAUSE,
                clock_jump=3600 if index == jump else 0,
            )
            for index in range(2)
        ]

    def wait(self, until: Callable[[], bool]) -> None:
        """Waits for a condition, or the end of the run.

        Raises:
          SystemExit: if neither comes in time; with the stacks of both processes.
        """
        started = time.monotonic()
        while not until() and not self.has_ended():
            if time.monotonic() - started > LIMIT:
                self.report_hang()
            time.sleep(0.002)

    def has_ended(self) -> bool:
        return all(child.poll() is not None for child in self.children)

    def end(self) -> list[tuple[int, str, str]]:
        self.wait(lambda: False)
        return tiny_run.finish(self.children)

    def report_hang(self) -> None:
        for child in self.children:
            child.send_signal(signal.SIGUSR1)  # prints stacks, see tiny_run
        time.sleep(3)
        for child in self.children:
            child.send_signal(signal.SIGKILL)
        for index, (status, _, errors) in enumerate(tiny_run.finish(self.children)):
            print(f"process {index}, status {status}:\n{errors}", file=sys.stderr)
        sys.exit(f"nothing happened for {LIMIT} s")


def main() -> None:
    """Prints a line for every fault, and ends with an error if the students differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=pathlib.Path, required=True)
    parser.add_argument("--csv", type=pathlib.Path, required=True)
    parser.add_argument("--minutes", type=float, default=50)
    options = parser.parse_args()
    root = options.root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    if not (root / "data").exists():
        tiny_run.write_images(root / "source")
        sets.prepare("folder", root / "data", source=root / "source")
    untouched = root / "untouched"
    if not (untouched / "result.json").exists():
        _finish(Run(root, untouched))
    disk = Disk(root)
    workdir = disk.path / "run"
    rows = _read(options.csv)
    deadline = time.monotonic() + 60 * options.minutes
    for number, (fault, moment) in enumerate(plan(), start=1):
        if number <= len(rows):
            continue
        if time.monotonic() > deadline:
            sys.exit(f"{len(rows)} faults; the same command continues")
        row = interrupt(root, disk, workdir, number, fault, moment)
        if rows:
            rows[-1].seconds_to_continue = row.seconds_to_continue
        row.seconds_to_continue = 0.0
        rows.append(row)
        _write(options.csv, rows)
        print(row, flush=True)
    last = Run(root, workdir)
    before = _logged(workdir)
    last.wait(lambda: _logged(workdir) != before)
    rows[-1].seconds_to_continue = round(time.monotonic() - last.started, 1)
    _write(options.csv, rows)
    _finish(last)
    if not all(map(np.array_equal, _student(workdir), _student(untouched))):
        sys.exit("the student differs from that of the untouched run")
    if tiny_run.records(workdir)[1] != tiny_run.records(untouched)[1]:
        sys.exit("the scores differ from those of the untouched run")
    print(table(rows))
    print(f"{len(rows)} faults; the student and its scores equal the untouched run's bit for bit")


def table(rows: Sequence[Row]) -> str:
    """Returns a Markdown table with a row for each fault."""
    lines = [
        "| fault | times | during a save | statuses | seconds to the end of both | "
        "seconds from the next start to its first step | steps done again, at most |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for fault in FAULTS:
        found = [row for row in rows if row.fault == fault]
        if not found:
            continue
        statuses = sorted({row.statuses for row in found})
        ends = [row.seconds_to_end for row in found]
        # 0 if the next fault came before a step.
        starts = [row.seconds_to_continue for row in found if row.seconds_to_continue] or [0.0]
        lines.append(
            f"| {fault} | {len(found)} | {sum(row.moment == 'saving' for row in found)} | "
            f"{', '.join(statuses)} | {statistics.median(ends):.1f} (at most {max(ends):.1f}) | "
            f"{statistics.median(starts):.1f} (at most {max(starts):.1f}) | "
            f"{max(row.steps_again for row in found)} |"
        )
    return "\n".join(lines)


def plan() -> list[tuple[str, str]]:
    """Returns the faults and their moments in the order in which they come."""
    faults = [
        (fault, moments[index % len(moments)])
        for fault, (times, moments) in FAULTS.items()
        for index in range(times)
    ]
    random.Random(0).shuffle(faults)
    # Damage needs an earlier checkpoint, and a fault at the start needs one to lose.
    faults.sort(key=lambda fault: fault[0] != "SIGTERM to one process" or fault[1] != "stepping")
    return faults


def interrupt(
    root: pathlib.Path, disk: Disk, workdir: pathlib.Path, number: int, fault: str, moment: str
) -> Row:
    """Starts the run, waits for the moment, does the fault, and waits for the end.

    `seconds_to_continue` in the row is of this start.
    """
    generator = random.Random(number)
    index = generator.randrange(2)
    run = Run(root, workdir, jump=index if fault.startswith("clock") else -1)
    before = (0, _logged(workdir), _newest(workdir))
    continued = 0.0
    if moment == "starting":
        time.sleep(generator.uniform(0, 12))
    else:
        run.wait(lambda: _logged(workdir) not in before)
        continued = time.monotonic() - run.started
        target = _newest(workdir) + generator.randint(CHECKPOINT_EVERY, MORE_STEPS)
        run.wait(lambda: _logged(workdir) >= target)
        if moment == "saving":
            run.wait(lambda: any((workdir / "checkpoints").glob("*tmp*")))
        else:
            time.sleep(generator.uniform(0, 5 * PAUSE))
    if run.has_ended():
        ended = run.end()
        sys.exit(f"the run ended before fault {number}: {ended}")
    begun, logged = time.monotonic(), _logged(workdir)
    ended = _do(fault, run, index, disk, root)
    seconds = time.monotonic() - begun
    statuses = [status for status, _, _ in ended]
    _check(fault, moment, index, statuses, ended)
    if fault == "checkpoint damaged":
        _damage(workdir / "checkpoints" / str(_newest(workdir)), generator)
    # Without the lines of JAX's own libraries.
    spoken = [
        [line for line in errors.splitlines() if line.startswith(("kdjax", "process "))]
        for _, _, errors in ended
    ]
    lines = [(own or [""])[-1] for own in spoken]
    return Row(
        number=number,
        fault=fault,
        moment=moment,
        process=-1 if fault in ("kill both processes", "power cut") else index,
        statuses=" ".join(map(str, statuses)),
        seconds_to_end=round(seconds, 1),
        seconds_to_continue=round(continued, 1),
        steps_again=max(0, logged - _newest(workdir)),
        line=" | ".join(lines).replace(str(root), ""),
    )


def _do(fault: str, run: Run, index: int, disk: Disk, root: pathlib.Path):
    """Does the fault, and returns how both processes ended."""
    one, other = run.children[index], run.children[1 - index]
    if fault == "kill both processes":
        one.kill()
        other.kill()
    elif fault == "power cut":
        image = disk.copy()
        one.kill()
        other.kill()
        ended = run.end()
        disk.replace(image)
        return ended
    elif fault in ("kill one process", "checkpoint damaged"):
        one.kill()
    elif fault == "SIGTERM to one process":
        one.send_signal(signal.SIGTERM)
    elif fault == "SIGINT to one process":
        one.send_signal(signal.SIGINT)
    elif fault == "SIGSTOP for 5 s":
        one.send_signal(signal.SIGSTOP)
        time.sleep(5)
        one.send_signal(signal.SIGCONT)
        step = _logged(run.workdir)
        run.wait(lambda: _logged(run.workdir) > step)
        one.send_signal(signal.SIGTERM)
    elif fault == "SIGSTOP for good":
        one.send_signal(signal.SIGSTOP)
        run.wait(lambda: other.poll() is not None)
        one.kill()
    elif fault == "disk full":
        with disk.full():
            return run.end()
    elif fault == "disk turns read-only":
        with disk.read_only():
            return run.end()
    elif fault == "second launcher":
        second = Run(root, run.workdir)
        statuses = [status for status, _, _ in second.end()]
        if statuses != [2, 2]:
            sys.exit(f"a second launcher ended with {statuses}")
        step = _logged(run.workdir)
        run.wait(lambda: _logged(run.workdir) > step)
        one.send_signal(signal.SIGTERM)
    # The clock jumps by itself; see tiny_run.
    return run.end()


def _check(fault: str, moment: str, index: int, statuses: Sequence[int], ended) -> None:
    """Ends with an error if a process did not end as documented."""
    killed, aborted, again = -signal.SIGKILL, -signal.SIGABRT, 75
    mine, others = {
        "kill both processes": ({killed}, {killed}),
        "power cut": ({killed}, {killed}),
        # JAX aborts process 1 if process 0 is killed.
        "kill one process": ({killed}, {again, aborted}),
        "checkpoint damaged": ({killed}, {again, aborted}),
        "SIGTERM to one process": ({again}, {again, aborted}),
        "SIGINT to one process": ({again}, {again}),
        "SIGSTOP for 5 s": ({again}, {again}),
        "SIGSTOP for good": ({killed}, {again, aborted}),
        "disk full": ({2}, {2}),
        "disk turns read-only": ({2}, {2}),
        "clock jumps by an hour": ({again}, {again}),
        "second launcher": ({again}, {again}),
    }[fault]
    if statuses[index] not in mine or statuses[1 - index] not in others:
        for status, _, errors in ended:
            print(f"status {status}:\n{errors}", file=sys.stderr)
        sys.exit(f"{fault} while {moment}, to process {index}: statuses {statuses}")


def _damage(checkpoint: pathlib.Path, generator: random.Random) -> None:
    kind = generator.choice(("flip a bit", "cut", "empty", "remove"))
    files = [path for path in checkpoint.rglob("d/*") if path.is_file()]
    for path in files:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        if kind == "remove":
            path.unlink()
        else:
            path.write_bytes(
                {"flip a bit": bytes(data), "cut": bytes(data[: len(data) // 2]), "empty": b""}[
                    kind
                ]
            )


def _finish(run: Run) -> None:
    ended = [(child, child.communicate(timeout=1200)) for child in run.children]
    for child, (_, errors) in ended:
        if child.returncode != 0:
            sys.exit(f"a start that was left alone ended with {child.returncode}:\n{errors}")


def _logged(workdir: pathlib.Path) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = (workdir / "metrics.jsonl").read_text().split("\n")[:-1]
        return json.loads(lines[-1])["step"]
    return 0


def _newest(workdir: pathlib.Path) -> int:
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _student(workdir: pathlib.Path) -> list[np.ndarray]:
    _, variables, _ = serialization.load(workdir)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(variables)]


def _read(path: pathlib.Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        kinds = {field.name: field.type for field in dataclasses.fields(Row)}
        return [
            Row(**{key: kinds[key](value) for key, value in row.items()})  # type: ignore[operator]
            for row in csv.DictReader(file)
        ]


def _write(path: pathlib.Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in dataclasses.fields(Row)])
        writer.writerows(dataclasses.astuple(row) for row in rows)


def _run(*command: object, allowed: Sequence[int] = (0,)) -> None:
    status = subprocess.run([str(word) for word in command], capture_output=True).returncode
    if status not in allowed:
        sys.exit(f"{' '.join(map(str, command))}: status {status}")


if __name__ == "__main__":
    main()
