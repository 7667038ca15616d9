"""Trains the runs of a comparison, one after the other or several at once."""

import collections
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import jax

from kdjax import config as configuration
from kdjax.data.interface import SegmentationSet
from kdjax.experiment.run import Run, train_run
from kdjax.experiment.workdir import Workdir
from kdjax.training.loop import Diverged, Interruption
from kdjax.utils import environment, processes
from kdjax.utils.errors import Transient, UserError
from kdjax.utils.log import RunLogger

CORES = "KDJAX_CORES"
"""The environment variable with the cores that a run may use."""

# A killed comparison may leave a run behind that is still saving its last checkpoint.
_PATIENCE = 300.0
_POLL_SECONDS = 0.1


def train_one(run: Run, data: SegmentationSet | None = None) -> None:
    """Trains a run. If it diverges, notes why, and never starts it again.

    Args:
      run: the run.
      data: as for `kdjax.train`.
    """
    files, log = run.files, RunLogger(run.name)
    if files.diverged.exists():
        files.claim(run.options)
        log.warning(f"the run in {files.path} has diverged")
        return
    try:
        train_run(run, data=data, patience=_PATIENCE)
    except Diverged as error:
        reason = str(error)
        processes.lead(lambda: files.note_divergence(reason))
        log.warning(reason)


def to_json(run: Run) -> str:
    """Returns a run as text for another process."""
    return json.dumps([run.options.stored, str(run.files.path), run.name, run.method, run.role])


def from_json(text: str) -> Run:
    """Returns the run of `to_json`."""
    stored, path, name, method, role = json.loads(text)
    options = configuration.read(configuration.from_json(stored), tuning=True)
    return Run(options, Workdir(path), name, method, role)


def train_all(runs: Sequence[Run], parallel: int = 1, data: SegmentationSet | None = None) -> None:
    """Trains the runs that are not finished.

    Args:
      runs: no run needs the result of another one.
      parallel: the number of processes, which share the accelerators or else the cores.
      data: as for `kdjax.train`, if `parallel` is 1.

    Raises:
      UserError: if a run failed, or there are fewer devices than processes.
      Preempted: if the process was asked to stop. The progress is saved.
      Transient: if every run that failed may succeed at the next try.
    """
    if parallel == 1:
        for run in runs:
            train_one(run, data)
        return
    if jax.distributed.is_initialized():
        raise UserError("--parallel cannot be used with several processes that train one run")
    unfinished = [run for run in runs if not run.files.is_finished()]
    for run in runs:
        if run not in unfinished:
            train_one(run)  # checks its config
    _train_at_once(unfinished, _device_shares(parallel))


def _train_at_once(runs: Sequence[Run], shares: Sequence[Mapping[str, str]]) -> None:
    """Trains each run in its own process, as many at once as there are shares of the devices."""
    waiting, free = collections.deque(runs), collections.deque(shares)
    running: dict[subprocess.Popen[bytes], tuple[Run, Mapping[str, str]]] = {}
    failed: dict[str, int] = {}
    # The system closes the pipe when this process ends for any reason, and the children notice.
    lifeline, write_end = os.pipe()
    try:
        with Interruption() as interruption:
            asked_to_stop = False
            while running or (waiting and not interruption.reached()):
                while waiting and free and not interruption.reached():
                    run, share = waiting.popleft(), free.popleft()
                    running[_start(run, share, lifeline)] = run, share
                if interruption.reached() and not asked_to_stop:
                    asked_to_stop = True
                    for child in running:
                        child.terminate()
                time.sleep(_POLL_SECONDS)
                for child in [child for child in running if child.poll() is not None]:
                    run, share = running.pop(child)
                    free.append(share)
                    if child.returncode:
                        failed[run.name] = child.returncode
            interruption.check("the unfinished runs have saved their progress")
    finally:
        # Children are left after an error or a second Ctrl-C.
        for child in running:
            child.kill()
            child.wait()
        os.close(write_end)
        os.close(lifeline)
    if failed:
        error = Transient if set(failed.values()) == {processes.AGAIN} else UserError
        raise error(
            f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}. See their messages "
            "above."
        )


def _start(run: Run, share: Mapping[str, str], lifeline: int) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-m", "kdjax.cli.worker"],
        stdin=subprocess.PIPE,
        env={**os.environ, **share, processes.LIFELINE: str(lifeline)},
        pass_fds=(lifeline,),
        # Ctrl-C in a terminal then reaches only this process, which asks the children to stop.
        process_group=0,
    )
    assert child.stdin
    # The status of a child that ended at once says what is wrong.
    with contextlib.suppress(BrokenPipeError), child.stdin as pipe:
        pipe.write(to_json(run).encode())
    return child


def _device_shares(parallel: int) -> list[dict[str, str]]:
    """Returns the devices of each process as environment variables."""
    cores = sorted(os.sched_getaffinity(0))
    # If there are fewer cores than processes, all processes share them.
    groups = [cores[i::parallel] if len(cores) >= parallel else cores for i in range(parallel)]
    shares = [{CORES: ",".join(map(str, group))} for group in groups]
    gpus, chips = environment.gpus(), environment.tpu_chips()
    devices = gpus or chips
    if devices and len(devices) < parallel:
        kind = "GPUs" if gpus else "TPU chips"
        raise UserError(f"--parallel is {parallel}, but there are {len(devices)} {kind}")
    each = len(devices) // parallel
    for i, share in enumerate(shares):
        if gpus:
            share["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[i * each : (i + 1) * each])
        elif chips:
            share["TPU_VISIBLE_CHIPS"] = chips[i * each]
            share["TPU_PROCESS_BOUNDS"] = share["TPU_CHIPS_PER_PROCESS_BOUNDS"] = "1,1,1"
    return shares
