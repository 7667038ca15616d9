"""Runs of a comparison, one after the other or several at once, each on devices of its own.

As a program, `python -m kdjax.experiments.jobs`, it takes one run from its standard input: that is
how several are had at once, each in a process that sees its devices alone.
"""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import jax

from kdjax import config as configuration
from kdjax import processes
from kdjax.config import Config
from kdjax.errors import Preempted, UserError
from kdjax.experiments.run import train
from kdjax.experiments.workdir import Workdir
from kdjax.reporting.results import Role
from kdjax.training.loop import Diverged


@dataclasses.dataclass(frozen=True)
class Job:
    """One run, as `kdjax.experiments.run.train` takes it."""

    config: Config
    files: Workdir
    label: str
    method: str
    role: Role

    def run(self) -> None:
        """Trains it; a run that diverged is noted, and not begun again.

        Raises:
          UserError: as `train`.
          Preempted: likewise.
        """
        if self.files.diverged.exists():
            self.files.claim(self.config)
            processes.say(f"{self.label}: has diverged in {self.files.path}")
            return
        try:
            train(
                self.config,
                str(self.files.path),
                label=self.label,
                method=self.method,
                role=self.role,
            )
        except Diverged as error:
            if processes.leads():
                self.files.note_divergence(str(error))
            processes.say(f"{self.label}: {error}")
            processes.wait_for_all(f"end of {self.files.path}")

    def to_json(self) -> str:
        """All of it, for another process."""
        values = {"label": self.label, "method": self.method, "role": self.role}
        text = configuration.to_json(self.config)
        return json.dumps({**values, "config": text, "workdir": str(self.files.path)})

    @classmethod
    def from_json(cls, text: str) -> "Job":
        """The reverse of `to_json`."""
        values = json.loads(text)
        values["config"] = configuration.from_json(values["config"])
        values["files"] = Workdir(values.pop("workdir"))
        return cls(**values)


def run(jobs: Sequence[Job], parallel: int = 1) -> None:
    """Trains what is missing of them.

    Args:
      jobs: none needs what another one writes.
      parallel: how many at once, in processes that share the accelerators, or else the cores.

    Raises:
      UserError: as `train`; or when there are fewer devices than runs at once.
      Preempted: when the process was asked to stop; what was done is saved.
    """
    if parallel == 1:
        for job in jobs:
            job.run()
        return
    if jax.distributed.is_initialized():
        raise UserError("--parallel is for a single process; these train one run together")
    missing = [job for job in jobs if not job.files.result.exists()]
    for job in jobs:
        if job not in missing:
            job.run()  # only says so
    shares: SimpleQueue[Mapping[str, str]] = SimpleQueue()
    for share in _shares(parallel):
        shares.put(share)
    children: set[subprocess.Popen[str]] = set()

    stopped = threading.Event()

    def stop(signum: int, frame: Any) -> None:
        """Hands on what asks this process to stop: each run saves what it has."""
        del frame
        stopped.set()
        for child in list(children):
            child.send_signal(signum)

    def start(job: Job) -> int:
        share = shares.get()
        try:
            if stopped.is_set():
                return -signal.SIGTERM
            with subprocess.Popen(
                [sys.executable, "-m", "kdjax.experiments.jobs"],
                stdin=subprocess.PIPE,
                env={**os.environ, **share},
                text=True,
            ) as child:
                children.add(child)
                child.communicate(job.to_json())
                children.discard(child)
                return child.returncode
        finally:
            shares.put(share)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with ThreadPoolExecutor(parallel) as pool:
            statuses = list(pool.map(start, missing))
    finally:
        signal.signal(signal.SIGTERM, before)
    if stopped.is_set():
        raise Preempted("the runs under way have saved what they had done")
    failed = [job.label for job, status in zip(missing, statuses, strict=True) if status]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(missing)} runs did not end well: {', '.join(failed)}; see above"
        )


def _shares(parallel: int) -> list[dict[str, str]]:
    """What tells each of several processes its devices, as environment variables."""
    cores = sorted(os.sched_getaffinity(0))
    # Fewer cores than runs are shared by all of them.
    groups = [cores[i::parallel] if len(cores) >= parallel else cores for i in range(parallel)]
    shares = [{CORES: ",".join(map(str, group))} for group in groups]
    if gpus := _gpus():
        for i, share in enumerate(shares):
            share["CUDA_VISIBLE_DEVICES"] = ",".join(_part(gpus, i, parallel, "GPUs"))
    elif chips := _tpu_chips():
        for i, share in enumerate(shares):
            (share["TPU_VISIBLE_CHIPS"],) = _part(chips, i, parallel, "TPU chips")[:1]
            share["TPU_PROCESS_BOUNDS"] = share["TPU_CHIPS_PER_PROCESS_BOUNDS"] = "1,1,1"
    return shares


CORES = "KDJAX_CORES"
"""Which cores a run may use."""


def _part(devices: Sequence[str], index: int, parallel: int, kind: str) -> Sequence[str]:
    if len(devices) < parallel:
        raise UserError(f"--parallel is {parallel}, but there are {len(devices)} {kind}")
    each = len(devices) // parallel
    return devices[index * each : (index + 1) * each]


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return [str(i) for i, _ in enumerate(pathlib.Path("/dev").glob("nvidia[0-9]*"))]


def _tpu_chips() -> list[str]:
    chips = [*pathlib.Path("/dev").glob("accel[0-9]*"), *pathlib.Path("/dev").glob("vfio/[0-9]*")]
    return [str(i) for i, _ in enumerate(chips)]


def _main(argv: list[str]) -> None:
    from kdjax.experiments import environment

    del argv
    os.sched_setaffinity(0, map(int, os.environ[CORES].split(",")))
    environment.enable_compilation_cache()
    Job.from_json(sys.stdin.read()).run()


if __name__ == "__main__":
    from kdjax import command

    command.run(_main)
