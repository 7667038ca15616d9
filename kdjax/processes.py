"""The processes of a run: how they find each other, which one speaks, how they end together."""

import glob
import importlib.util
import os
import sys
import time
from typing import Any, NamedTuple, NoReturn

import jax
from absl import flags
from jax.experimental import multihost_utils

from kdjax.errors import UserError

# A process that was not heard of for so long is taken for dead, and JAX ends the others.
HEARTBEAT_SECONDS = 25
# From a failed collective to that verdict.
VERDICT_SECONDS = HEARTBEAT_SECONDS + 10


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
    try:
        jax.distributed.initialize(
            coordinator, count, index, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes of the run do not find each other: {error}") from error


def leads() -> bool:
    """Whether this process is the one that writes logs and reports."""
    return jax.process_index() == 0


def say(line: str) -> None:
    """Prints a line, in the process that leads."""
    if leads():
        print(line, flush=True)


def wait_for_all(point: str) -> None:
    """Returns when every process has come to `point`."""
    multihost_utils.sync_global_devices(point)


def leave(status: int, *, maybe_lost: bool = False) -> NoReturn:
    """Ends this process after an error.

    Among several it ends at once, so that JAX misses its heartbeat and ends the others, naming it;
    a regular exit would wait for them.

    Args:
      status: its exit status.
      maybe_lost: the error may come of another process that ended. JAX then says which, and ends
        this one; it is given the time for that.
    """
    if not jax.distributed.is_initialized():
        sys.exit(status)
    if maybe_lost:
        print(
            f"process {jax.process_index()} of {jax.process_count()} cannot go on; if another one "
            f"ended, JAX names it within {VERDICT_SECONDS} seconds, from 0, as a task",
            file=sys.stderr,
            flush=True,
        )
        time.sleep(VERDICT_SECONDS)
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
