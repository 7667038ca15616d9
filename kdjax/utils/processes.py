"""The processes of a run: how they find each other, and how they end together."""

import errno
import importlib.util
import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
from absl import flags
from jax._src import distributed

from kdjax.utils import interrupt
from kdjax.utils.environment import tpu_chips
from kdjax.utils.errors import Transient, UserError
from kdjax.utils.files import may_pass

# The exit status for a mistake of the user, or a failed disk. Launchers then stop.
MISTAKE = 2
# The exit status for "try again". Launchers then start the command again, and it continues.
AGAIN = os.EX_TEMPFAIL
# A process that sends no heartbeat for this long counts as dead.
HEARTBEAT_SECONDS = 25
# A process that waits this long for the others to start prints a line.
PATIENCE_SECONDS = 15
# The time between two checks that the other processes are alive.
WATCH_SECONDS = 3
# The longest time between a failed collective and the report that another process is dead.
VERDICT_SECONDS = HEARTBEAT_SECONDS + 3 * WATCH_SECONDS
# Process 0 ends this long after the others. JAX aborts processes that outlive process 0.
LAST_WORDS_SECONDS = WATCH_SECONDS + 3
# The time that the others have to reach the same end as a process that failed.
GRACE_SECONDS = 10
# The time that the others have to reach the end of their work. One of them may write a report.
END_SECONDS = 3600
# The longest work of process 0 for which the others wait.
WORK_SECONDS = 24 * 3600

LIFELINE = "KDJAX_LIFELINE"
"""The environment variable with the number of a pipe's reading end: see `end_with_parent`."""

# Set when `join` has started to watch the other processes.
_watching = threading.Event()
# Set when all processes have reached their end.
_parting = threading.Event()
# Held by the thread that ends this process.
_ending = threading.Lock()
# JAX's key-value store accepts each key once.
_works = itertools.count()
# The prefix of the keys under which a process that fails alone reports its reason.
_FAILURES = "kdjax/failures/"


class Flags(NamedTuple):
    """The flags that describe the processes of a run."""

    coordinator: flags.FlagHolder[Any]
    num_processes: flags.FlagHolder[Any]
    process_id: flags.FlagHolder[Any]


def define_flags() -> Flags:
    """Defines `--coordinator HOST:PORT --num_processes N --process_id I`."""
    return Flags(
        flags.DEFINE_string(
            "coordinator",
            None,
            "HOST:PORT of process 0. Slurm, TPU slices, and Kubernetes need no such flag.",
        ),
        flags.DEFINE_integer("num_processes", None, "The number of processes of the run."),
        flags.DEFINE_integer("process_id", None, "The number of this process, from 0."),
    )


def join(asked: Flags) -> None:
    """Connects the processes of a run, by the flags or by what the launcher tells JAX.

    Must be called before JAX is asked for its devices.

    Raises:
      UserError: if the flags are wrong, or JAX cannot connect the processes.
      Transient: if the other processes do not start in time.
    """
    coordinator, count, index = (flag.value for flag in asked)
    given = [value is not None for value in (coordinator, count, index)]
    if any(given) and not all(given):
        raise UserError(
            "--coordinator, --num_processes and --process_id go together: give all or none"
        )
    if all(given):
        _check_flags(coordinator, count, index)
    elif not _started_by_launcher():
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX's service would replace the SIGTERM handler of kdjax.training.loop.
    jax.config.update("jax_enable_preemption_service", False)
    # Otherwise JAX aborts the processes that outlive another one, before they can report why.
    jax.config.update("jax_enable_recoverability", True)
    place = f" at {coordinator}" if coordinator else ""
    line = f"Waiting for the other processes of the run{place}"
    notice = threading.Timer(PATIENCE_SECONDS, _say, [line])
    notice.daemon = True
    notice.start()
    try:
        jax.distributed.initialize(
            coordinator, count, index, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
        )
    except (RuntimeError, ValueError) as error:
        # A process may be late, for instance because its machine is being replaced.
        kind = Transient if may_pass(error) else UserError
        raise kind(f"the processes of the run do not find each other: {error}") from error
    finally:
        notice.cancel()
    _watching.set()
    threading.Thread(target=_watch, daemon=True).start()


def leads() -> bool:
    """Returns True in the process that writes logs and reports."""
    # A single process must not ask JAX for its index, because that would initialize the devices.
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def lead(work: Callable[[], object]) -> None:
    """Calls `work` in process 0. The other processes wait for its end.

    Raises:
      UserError: in every process, if `work` raises it or cannot write.
      Transient: in every process, if `work` raises it or the disk may work again later.
    """
    if not jax.distributed.is_initialized():
        work()
        return
    service, key = _service(), f"kdjax: work {next(_works)}"
    if not leads():
        status, _, reason = service.blocking_key_value_get(key, 1000 * WORK_SECONDS).partition(" ")
        if int(status):
            raise (UserError if int(status) == MISTAKE else Transient)(reason)
        return
    try:
        work()
    except (UserError, Transient, OSError) as error:
        again = isinstance(error, Transient) or (isinstance(error, OSError) and may_pass(error))
        service.key_value_set(key, f"{AGAIN if again else MISTAKE} {error}")
        raise
    service.key_value_set(key, "0")


def leave(status: int) -> NoReturn:
    """Ends this process when the others have reached their end, too."""
    _ignore_sigterm()
    seconds = END_SECONDS if status in (0, AGAIN) else GRACE_SECONDS
    if not jax.distributed.is_initialized() or _part(seconds):
        sys.exit(status)
    _end(status)


def fail(status: int, *lines: str) -> NoReturn:
    """Ends this process after an error, together with the others.

    If the others fail too, each prints its own lines. If this process fails alone by a mistake or
    by its disk, it tells the others, and they end with its status. Any other error may be the
    consequence of the death of another process, which JAX notices later. Then that death is
    reported, and not this error.

    Args:
      status: the exit status.
      *lines: the reason, for stderr.
    """
    _ignore_sigterm()
    _ending.acquire()
    if not jax.distributed.is_initialized():
        sys.stderr.writelines(lines)
        sys.exit(status)
    if _part(GRACE_SECONDS):
        sys.stderr.writelines(lines)
        _end(status)
    if status == MISTAKE:
        _tell_the_others(status, "".join(lines))
    else:
        time.sleep(VERDICT_SECONDS)
    sys.stderr.writelines(lines)
    # A regular exit would wait for threads that wait for the other processes.
    _end_after_the_others(status)


def fail_from_thread(error: UserError | Transient) -> None:
    """Ends all processes, although the main thread may be waiting for another process.

    Does nothing if `join` connected no processes.

    Args:
      error: the reason. The status is 2 for a `UserError` and 75 for a `Transient`.
    """
    if not _watching.is_set():
        return
    status = MISTAKE if isinstance(error, UserError) else AGAIN
    if status == AGAIN:
        # As in `fail`, the death of another process is reported instead.
        time.sleep(VERDICT_SECONDS)
    _ending.acquire()
    line = f"kdjax: error: {error}"
    _tell_the_others(status, line)
    _say(line)
    _end_after_the_others(status)


def end_at_once(reason: str) -> NoReturn:
    """Ends this process from any thread with the status for "try again"."""
    _say(reason)
    _end(AGAIN)


def end_when_asked(name: str) -> None:
    """Lets SIGTERM end this process with the status for "try again", and Ctrl-C with its own.

    `kdjax.training.loop` handles both signals while there is something to save.

    Args:
      name: the command's name, with which the printed line begins.
    """
    line = f"{name}: stopped as asked: the same command continues\n".encode()
    numbers, notice = os.pipe()
    os.set_blocking(notice, False)
    once = threading.Lock()

    def end(*_: object) -> None:
        if once.acquire(blocking=False):
            # Not print, because the signal may arrive inside another print.
            os.write(2, line)
            os._exit(AGAIN)

    def watch() -> None:
        while number := os.read(numbers, 1):
            if number[0] == signal.SIGTERM:
                end()
            if number[0] == signal.SIGINT:
                interrupt.end()

    signal.signal(signal.SIGTERM, end)
    # Python runs a handler only when the main thread returns to Python, for instance from the
    # compiler. A thread that reads the wakeup descriptor reacts at once.
    signal.set_wakeup_fd(notice, warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True).start()


def end_with_parent() -> None:
    """Sends SIGTERM to this process when its parent ends, if the parent has set `LIFELINE`.

    The parent holds the writing end of a pipe. The system closes it, however the parent ends.
    """
    pipe = os.environ.pop(LIFELINE, None)
    if pipe is None:
        return

    def wait() -> None:
        while os.read(int(pipe), 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def _part(seconds: float) -> bool:
    """Leaves the run when all processes have come to this point.

    Returns:
      False if the others did not come in that time.
    """
    service = _service()
    try:
        service.wait_at_barrier("kdjax: all are here", int(1000 * seconds))
        _parting.set()
        # Waits until every process has set `_parting`, so that a process that exits first is not
        # reported as dead.
        service.wait_at_barrier("kdjax: all part", 1000 * GRACE_SECONDS)
    except RuntimeError:
        return False
    # Process 0 leaves last, because it runs the service.
    while leads() and len(service.get_live_nodes(_everyone())) > 1:
        time.sleep(0.1)
    jax.distributed.shutdown()
    return True


def _watch() -> None:
    """Ends this process if another one failed or died. JAX does so if process 0 died."""
    service = _service()
    while not _parting.is_set():
        try:
            failures = dict(service.key_value_dir_get(_FAILURES))
            alive = service.get_live_nodes(_everyone())
        except RuntimeError:  # the service ended with process 0
            return
        failures.pop(f"{_FAILURES}{_index()}", None)
        dead = ", ".join(str(index) for index in _everyone() if index not in alive)
        if _parting.is_set():
            return
        for key, failure in failures.items():
            status, _, reason = failure.partition(" ")
            _stop(f"process {key.removeprefix(_FAILURES)} failed: {reason}", int(status))
        if dead:
            _stop(
                f"process {dead} ended; the same command continues from the last checkpoint", AGAIN
            )
        time.sleep(WATCH_SECONDS)


def _stop(reason: str, status: int) -> NoReturn:
    _say(f"process {_index()} of {len(_everyone())} stops: {reason}")
    _end_after_the_others(status)


def _tell_the_others(status: int, line: str) -> None:
    text = f"{status} {' '.join(line.split())}"
    _service().key_value_set(f"{_FAILURES}{_index()}", text)


def _end_after_the_others(status: int) -> NoReturn:
    if _index() == 0:
        time.sleep(LAST_WORDS_SECONDS)
    _end(status)


def _end(status: int) -> NoReturn:
    """Ends this process at once. A regular exit would wait for unfinished collectives."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _ignore_sigterm() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _service() -> Any:
    """Returns the client of JAX's coordination service. Public JAX does not list live processes."""
    return distributed.global_state.client


def _index() -> int:
    return distributed.global_state.process_id


def _everyone() -> list[int]:
    return list(range(distributed.global_state.num_processes))


def _check_flags(coordinator: str, count: int, index: int) -> None:
    if count < 1:
        raise UserError(f"--num_processes is {count}; give 1 or more")
    if not 0 <= index < count:
        raise UserError(f"--process_id is {index}; --num_processes {count} has 0 to {count - 1}")
    _, _, port = coordinator.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator is {coordinator}; give HOST:PORT, as localhost:8476")
    if index > 0:
        return
    # JAX would share the port with another run and mix their processes, or wait for a minute if
    # another program listens.
    try:
        socket.create_server(("", int(port))).close()
    except OSError as error:
        reason = error.strerror
        if error.errno == errno.EADDRINUSE:
            reason = f"port {port} is taken by another run, or another program; choose another"
        raise UserError(f"--coordinator is {coordinator}: {reason}") from error


def _started_by_launcher() -> bool:
    """Returns True if a launcher that JAX knows started several processes.

    JAX itself would take an interactive shell of Slurm or of a pod for such a process, and wait.
    """
    slurm = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1
    pod = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= os.environ.keys()
    kubernetes = pod and importlib.util.find_spec("kubernetes") is not None
    tpu = bool(tpu_chips()) and importlib.util.find_spec("libtpu") is not None
    return slurm or kubernetes or tpu
