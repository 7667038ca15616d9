"""Runs of a comparison, one after the other or several at once, each on devices of its own.

As a program, `python -m kdjax.comparison.scheduler`, it takes one run from its standard input: that
is how several are had at once, each in a process that sees its devices alone.
"""

import collections
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import jax

from kdjax import config as configuration
from kdjax.data.interface import SegmentationSet
from kdjax.experiment.run import Run, train
from kdjax.experiment.workdir import Workdir
from kdjax.reporting.results import Example
from kdjax.training.loop import Diverged, Interruption
from kdjax.utils import environment, processes
from kdjax.utils.errors import Transient, UserError
from kdjax.utils.log import RunLogger

# What a run whose comparison was killed has to save what it has done.
ENDING_SECONDS = 300.0
POLL_SECONDS = 0.1


@dataclasses.dataclass(frozen=True)
class Job(Run):
    """A run of a comparison."""

    def run(self, data: SegmentationSet | None = None) -> list[Example]:
        """Trains it; a run that diverged is noted, and not begun again.

        Args:
          data: as `train` takes it.

        Returns:
          A few examples with its predictions; none where it was done before, or diverged.

        Raises:
          UserError: as `train`.
          Preempted: likewise.
        """
        if self.files.diverged.exists():
            self.files.claim(self.options)
            RunLogger(self.name).warning(f"has diverged in {self.files.path}")
            return []
        try:
            trained = train(self, data=data, patience=ENDING_SECONDS)
        except Diverged as error:
            reason = str(error)
            processes.lead(lambda: self.files.note_divergence(reason))
            RunLogger(self.name).warning(reason)
            return []
        # Not its images, with which the examples of every run would stay in memory.
        return trained.examples if trained else []

    def to_json(self) -> str:
        """All of it, for another process."""
        values = {"name": self.name, "method": self.method, "role": self.role}
        stored = {"options": self.options.stored, "files": str(self.files.path)}
        return json.dumps({**values, **stored})

    @classmethod
    def from_json(cls, text: str) -> "Job":
        """The reverse of `to_json`."""
        values = json.loads(text)
        config = configuration.from_json(values["options"])
        values["options"] = configuration.read(config, tuning=True)
        values["files"] = Workdir(values["files"])
        return cls(**values)


def run(
    jobs: Sequence[Job], parallel: int = 1, data: SegmentationSet | None = None
) -> dict[str, list[Example]]:
    """Trains what is missing of them.

    Args:
      jobs: none needs what another one writes.
      parallel: how many at once, in processes that share the accelerators, or else the cores.
      data: as `train` takes it, for one at a time.

    Returns:
      By name, a few predicted examples of each run that this process itself trained.

    Raises:
      UserError: as `train`; or when there are fewer devices than runs at once.
      Preempted: when the process was asked to stop; what was done is saved.
      Transient: when all that did not end well may be tried again.
    """
    if parallel == 1:
        return {job.name: examples for job in jobs if (examples := job.run(data))}
    if jax.distributed.is_initialized():
        raise UserError("--parallel is for a single process; these train one run together")
    missing = [job for job in jobs if not job.files.is_finished()]
    for job in jobs:
        if job not in missing:
            job.run()  # only says so
    _run_at_once(missing, _slots(parallel))
    return {}


def _run_at_once(jobs: Sequence[Job], slots: Sequence[Mapping[str, str]]) -> None:
    """Trains each in a process of its own, as many at once as there are slots."""
    waiting, free = collections.deque(jobs), collections.deque(slots)
    running: list[tuple[Job, Mapping[str, str], subprocess.Popen[str]]] = []
    failed: dict[str, int] = {}
    # The system closes it when this process ends, however it does, and the children notice.
    lifeline, write_end = os.pipe()
    try:
        with Interruption() as interruption:
            handed_on = False
            while running or (waiting and not interruption.reached()):
                while waiting and free and not interruption.reached():
                    job, slot = waiting.popleft(), free.popleft()
                    running.append((job, slot, _start(job, slot, lifeline)))
                if interruption.reached() and not handed_on:
                    handed_on = True
                    for _, _, child in running:
                        child.terminate()
                time.sleep(POLL_SECONDS)
                for ended in [entry for entry in running if entry[2].poll() is not None]:
                    running.remove(ended)
                    job, slot, child = ended
                    free.append(slot)
                    if child.returncode:
                        failed[job.name] = child.returncode
            interruption.check("the runs under way have saved what they had done")
    finally:
        # After an error, or a second Ctrl-C.
        for _, _, child in running:
            child.kill()
            child.wait()
        os.close(write_end)
        os.close(lifeline)
    if failed:
        error = Transient if set(failed.values()) == {processes.AGAIN} else UserError
        raise error(
            f"{len(failed)} of {len(jobs)} runs did not end well: {', '.join(failed)}; see above"
        )


def _start(job: Job, slot: Mapping[str, str], lifeline: int) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-m", "kdjax.cli.worker"],
        stdin=subprocess.PIPE,
        env={**os.environ, **slot, processes.LIFELINE: str(lifeline)},
        text=True,
        pass_fds=(lifeline,),
        # Ctrl-C in a terminal reaches this process alone, which hands it on.
        process_group=0,
    )
    assert child.stdin
    # One that ended at once has a status that says so.
    with contextlib.suppress(BrokenPipeError), child.stdin as pipe:
        pipe.write(job.to_json())
    return child


def _slots(parallel: int) -> list[dict[str, str]]:
    """The devices of each of several processes, as environment variables."""
    cores = sorted(os.sched_getaffinity(0))
    # Fewer cores than runs are shared by all of them.
    groups = [cores[i::parallel] if len(cores) >= parallel else cores for i in range(parallel)]
    slots = [{CORES: ",".join(map(str, group))} for group in groups]
    if gpus := environment.gpus():
        for i, slot in enumerate(slots):
            slot["CUDA_VISIBLE_DEVICES"] = ",".join(_part(gpus, i, parallel, "GPUs"))
    elif chips := environment.tpu_chips():
        for i, slot in enumerate(slots):
            (slot["TPU_VISIBLE_CHIPS"],) = _part(chips, i, parallel, "TPU chips")[:1]
            slot["TPU_PROCESS_BOUNDS"] = slot["TPU_CHIPS_PER_PROCESS_BOUNDS"] = "1,1,1"
    return slots


CORES = "KDJAX_CORES"
"""Which cores a run may use."""


def _part(devices: Sequence[str], index: int, parallel: int, kind: str) -> Sequence[str]:
    if len(devices) < parallel:
        raise UserError(f"--parallel is {parallel}, but there are {len(devices)} {kind}")
    each = len(devices) // parallel
    return devices[index * each : (index + 1) * each]
