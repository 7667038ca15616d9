"""The processes of a run: how they find each other, which one speaks, how they end together."""

import glob
import importlib.util
import itertools
import os
import sys
import threading
import time
from typing import Any, NamedTuple, NoReturn

import jax
from absl import flags
from jax._src import distributed
from jax.experimental import multihost_utils

from kdjax.errors import UserError

# "Try again": launchers start the command once more, and it continues.
AGAIN = os.EX_TEMPFAIL
# A process that was not heard of for so long is taken for dead.
HEARTBEAT_SECONDS = 25
# Between two questions which processes are alive.
WATCH_SECONDS = 3
# From a collective that failed to the answer that a process is dead.
VERDICT_SECONDS = HEARTBEAT_SECONDS + 3 * WATCH_SECONDS
# What the others have to say so too, before process 0 goes and JAX aborts who is still there.
LAST_WORDS_SECONDS = 5
# What a process has to come to the same end as one that failed.
GRACE_SECONDS = 10
# What the processes have to come to the end of their work, when one has: it may write a report.
END_SECONDS = 3600
# What one of them has for work that the others wait for.
WORK_SECONDS = 24 * 3600

_parting = threading.Event()
# A barrier's name is used once.
_waits = itertools.count()


class Flags(NamedTuple):
    """The flags that say which processes there are."""

    coordinator: flags.FlagHolder[Any]
    num_processes: flags.FlagHolder[Any]
    process_id: flags.FlagHolder[Any]


def define_flags() -> Flags:
    """Defines `--coordinator HOST:PORT --num_processes N --process_id I`."""
    return Flags(
        flags.DEFINE_string(
            "coordinator",
            None,
            "HOST:PORT of process 0, the same for all. Slurm, TPU slices and Kubernetes jobs (with "
            "JAX's k8s extra) are found without it.",
        ),
        flags.DEFINE_integer("num_processes", None, "How many processes train together."),
        flags.DEFINE_integer("process_id", None, "Which of them this is, from 0."),
    )


def join(asked: Flags) -> None:
    """Finds the other processes of the run, by the flags or from what started this one.

    Must be called before anything asks JAX for its devices.

    Raises:
      UserError: when the flags make no sense, or the others do not answer.
    """
    coordinator, count, index = (flag.value for flag in asked)
    given = [value is not None for value in (coordinator, count, index)]
    if any(given) and not all(given):
        raise UserError(
            "--coordinator, --num_processes and --process_id go together: give all or none"
        )
    if not any(given) and not _started_with_others():
        return
    if all(given) and not 0 <= index < count:
        raise UserError(f"--process_id is {index}; --num_processes {count} has 0 to {count - 1}")
    # What processes on CPUs exchange arrays with.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM away from kdjax.training.interruption.
    jax.config.update("jax_enable_preemption_service", False)
    # Else JAX itself aborts the processes that outlive another one, before they can say why.
    jax.config.update("jax_enable_recoverability", True)
    try:
        jax.distributed.initialize(
            coordinator, count, index, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes of the run do not find each other: {error}") from error
    threading.Thread(target=_watch, daemon=True).start()


def leads() -> bool:
    """Whether this process is the one that writes logs and reports."""
    # Without the others there is no need to ask JAX, which would take the devices.
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def say(line: str) -> None:
    """Prints a line, in the process that leads."""
    if leads():
        print(line, flush=True)


def wait_for_all(point: str) -> None:
    """Returns when every process has come to `point`."""
    multihost_utils.sync_global_devices(point)


def wait_for_work(point: str) -> None:
    """As `wait_for_all`, where one of them may be at work for hours, and collectives give up."""
    if jax.distributed.is_initialized():
        _service().wait_at_barrier(f"kdjax: {point} {next(_waits)}", 1000 * WORK_SECONDS)


def leave(status: int) -> NoReturn:
    """Ends this process, with the others where they come to their end too.

    Where they do not, because the error is this process's alone, they notice its absence.
    """
    if not jax.distributed.is_initialized() or _part(status):
        sys.exit(status)
    _end(status)


def _part(status: int) -> bool:
    """Leaves the run when all have come to this point; says whether they did in good time."""
    service = _service()
    seconds = END_SECONDS if status in (0, AGAIN) else GRACE_SECONDS
    try:
        service.wait_at_barrier("kdjax: all are here", 1000 * seconds)
        _parting.set()
        # Nobody goes before everybody knows that it is no news when others are gone.
        service.wait_at_barrier("kdjax: all part", 1000 * GRACE_SECONDS)
    except RuntimeError:
        return False
    # Process 0 goes last: the others could not part from a service that is gone.
    while leads() and len(service.get_live_nodes(_everyone())) > 1:
        time.sleep(0.1)
    jax.distributed.shutdown()
    return True


def wait_for_verdict() -> None:
    """After an error that may come of another process's end: ends this one, if it does."""
    if jax.distributed.is_initialized():
        time.sleep(VERDICT_SECONDS)


def _watch() -> None:
    """Ends this process when another one is dead. When process 0 is, JAX itself does."""
    service = _service()
    while not _parting.is_set():
        try:
            alive = service.get_live_nodes(_everyone())
        # The service is gone, with process 0.
        except RuntimeError:
            return
        dead = ", ".join(str(index) for index in _everyone() if index not in alive)
        if dead and not _parting.is_set():
            print(
                f"process {distributed.global_state.process_id} of {len(_everyone())} stops: "
                f"process {dead} ended; the same command continues from the last checkpoint",
                file=sys.stderr,
                flush=True,
            )
            if distributed.global_state.process_id == 0:
                time.sleep(LAST_WORDS_SECONDS)
            _end(AGAIN)
        time.sleep(WATCH_SECONDS)


def _service() -> Any:
    """The client of JAX's coordination service, which public functions do not ask for the dead."""
    return distributed.global_state.client


def _everyone() -> list[int]:
    return list(range(distributed.global_state.num_processes))


def _end(status: int) -> NoReturn:
    """Ends this process at once: a regular exit waits for collectives that others never enter."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _started_with_others() -> bool:
    """Whether a launcher that JAX can ask started this process.

    JAX itself would take an interactive shell of Slurm or of a cluster's pod for one, and wait.
    """
    environment = os.environ
    slurm = int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1
    kubernetes = {
        "KUBERNETES_SERVICE_HOST",
        "JOB_COMPLETION_INDEX",
    } <= environment.keys() and importlib.util.find_spec("kubernetes") is not None
    libtpu = importlib.util.find_spec("libtpu") is not None
    tpu = libtpu and bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))
    return slurm or kubernetes or tpu
