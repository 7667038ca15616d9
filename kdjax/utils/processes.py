"""The processes of a run: how they find each other, which one speaks, how they end together."""

import errno
import glob
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
from kdjax.utils.errors import Transient, UserError
from kdjax.utils.files import may_pass

# A mistake of the user, or of the disk: launchers stop.
_MISTAKE = 2
# "Try again": launchers start the command once more, and it continues.
AGAIN = os.EX_TEMPFAIL
# A process that was not heard of for so long is taken for dead.
HEARTBEAT_SECONDS = 25
# After so long a process says that it waits for the others to start.
PATIENCE_SECONDS = 15
# Between two questions which processes are alive.
WATCH_SECONDS = 3
# From a collective that failed to the answer that a process is dead.
VERDICT_SECONDS = HEARTBEAT_SECONDS + 3 * WATCH_SECONDS
# What the others have to end too, before process 0 goes and JAX aborts those that are left.
LAST_WORDS_SECONDS = WATCH_SECONDS + 3
# What a process has to come to the same end as one that failed.
GRACE_SECONDS = 10
# What the processes have to come to the end of their work, when one has: it may write a report.
END_SECONDS = 3600
# What one of them has for work that the others wait for.
WORK_SECONDS = 24 * 3600

LIFELINE = "KDJAX_LIFELINE"
"""The number of a file, the reading end of a pipe: see `end_with_parent`."""

_watching = threading.Event()
_parting = threading.Event()
# Held by the thread that ends this process.
_ending = threading.Lock()
# A key of JAX's service is used once.
_works = itertools.count()
_ENDS = {"again": Transient, "mistake": UserError}
# Where a process that fails alone tells the others why, by its index.
_FAILURES = "kdjax/failures/"


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
            "HOST:PORT of process 0. Slurm, TPU slices, and Kubernetes need no such flag.",
        ),
        flags.DEFINE_integer("num_processes", None, "How many processes train together."),
        flags.DEFINE_integer("process_id", None, "Which of them this is, from 0."),
    )


def join(asked: Flags) -> None:
    """Finds the other processes of the run, by the flags or from what started this one.

    Must be called before anything asks JAX for its devices.

    Raises:
      UserError: when the flags make no sense, or JAX cannot join them.
      Transient: when the others do not come in time.
    """
    coordinator, count, index = (flag.value for flag in asked)
    given = [value is not None for value in (coordinator, count, index)]
    if any(given) and not all(given):
        raise UserError(
            "--coordinator, --num_processes and --process_id go together: give all or none"
        )
    if not any(given) and not _started_with_others():
        return
    if all(given):
        _check_flags(coordinator, count, index)
    # What processes on CPUs exchange arrays with.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM away from kdjax.training.loop.
    jax.config.update("jax_enable_preemption_service", False)
    # Else JAX itself aborts the processes that outlive another one, before they can say why.
    jax.config.update("jax_enable_recoverability", True)
    waits = threading.Timer(
        PATIENCE_SECONDS,
        lambda: print(
            "waits for the other processes of the run"
            + (f" at {coordinator}" if coordinator else ""),
            file=sys.stderr,
            flush=True,
        ),
    )
    waits.daemon = True
    waits.start()
    try:
        jax.distributed.initialize(
            coordinator, count, index, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
        )
    except (RuntimeError, ValueError) as error:
        # One of them may come too late, as that of a machine which is being replaced.
        kind = Transient if may_pass(error) else UserError
        raise kind(f"the processes of the run do not find each other: {error}") from error
    finally:
        waits.cancel()
    _watching.set()
    threading.Thread(target=_watch, daemon=True).start()


def leads() -> bool:
    """Whether this process is the one that writes logs and reports."""
    # Without the others there is no need to ask JAX, which would take the devices.
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def lead(work: Callable[[], object]) -> None:
    """Does work in the process that leads, for which the others wait, if need be for hours.

    Raises:
      UserError: in every process, where the work raises it or cannot write.
      Transient: likewise, where that may pass.
    """
    if not jax.distributed.is_initialized():
        work()
        return
    service, key = _service(), f"kdjax: work {next(_works)}"
    if not leads():
        end, _, reason = service.blocking_key_value_get(key, 1000 * WORK_SECONDS).partition(" ")
        if end in _ENDS:
            raise _ENDS[end](reason)
        return
    try:
        work()
    except (UserError, Transient, OSError) as error:
        passing = isinstance(error, Transient) or (isinstance(error, OSError) and may_pass(error))
        service.key_value_set(key, f"{'again' if passing else 'mistake'} {error}")
        raise
    service.key_value_set(key, "done")


def leave(status: int) -> NoReturn:
    """Ends this process, with the others where they come to their end too."""
    _work_is_over()
    seconds = END_SECONDS if status in (0, AGAIN) else GRACE_SECONDS
    if not jax.distributed.is_initialized() or _part(seconds):
        sys.exit(status)
    _end(status)


def fail(status: int, *lines: str) -> NoReturn:
    """Ends this process after an error, together with the others.

    If the others fail too, each prints its own lines. If this process fails alone by a mistake or
    by its disk, it tells the others, and they end with its status. Any other error may be the
    consequence of the death of another process, which takes a while to be noticed. Then that death
    is reported, and not this error.

    Args:
      status: of the process.
      *lines: why, for stderr.
    """
    _work_is_over()
    _ending.acquire()
    if not jax.distributed.is_initialized():
        sys.stderr.writelines(lines)
        sys.exit(status)
    alone = not _part(GRACE_SECONDS)
    if alone and status == _MISTAKE:
        _tell_the_others(status, "".join(lines))
    elif alone:
        time.sleep(VERDICT_SECONDS)
    sys.stderr.writelines(lines)
    if alone and _index() == 0:
        time.sleep(LAST_WORDS_SECONDS)
    # A regular exit waits for threads that wait for the other processes.
    _end(status)


def fail_from_thread(error: UserError | Transient) -> None:
    """Ends this process and the others, while the main thread may wait for them.

    Does nothing if `join` found no others.

    Args:
      error: why. The status is 2 for a `UserError` and 75 for a `Transient`.
    """
    if not _watching.is_set():
        return
    status = _MISTAKE if isinstance(error, UserError) else AGAIN
    if status == AGAIN:
        # As in `fail`: the death of another process is reported in its place.
        time.sleep(VERDICT_SECONDS)
    _ending.acquire()
    line = f"kdjax: error: {error}"
    _tell_the_others(status, line)
    print(line, file=sys.stderr, flush=True)
    _end_after_the_others(status)


def _tell_the_others(status: int, line: str) -> None:
    text = f"{status} {' '.join(line.split())}"
    _service().key_value_set(f"{_FAILURES}{_index()}", text)


def _work_is_over() -> None:
    """What is asked from now on changes nothing."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def end_at_once(reason: str) -> NoReturn:
    """Ends this process from any thread, in the midst of what it does, to be started again."""
    print(reason, file=sys.stderr, flush=True)
    _end(AGAIN)


def end_when_asked(name: str) -> None:
    """From now on SIGTERM ends this process with the status that says: start it again.

    Ctrl-C ends it too. `kdjax.training.loop` takes both while there is something to save.

    Args:
      name: of the command, which the line about it begins with.
    """
    line = f"{name}: stopped as asked: the same command continues\n".encode()
    numbers, notice = os.pipe()
    os.set_blocking(notice, False)
    once = threading.Lock()

    def end(*_: object) -> None:
        if once.acquire(blocking=False):
            # Whatever it came in the midst of, as a print.
            os.write(2, line)
            os._exit(AGAIN)

    def watch() -> None:
        while number := os.read(numbers, 1):
            if number[0] == signal.SIGTERM:
                end()
            if number[0] == signal.SIGINT:
                interrupt.end()

    signal.signal(signal.SIGTERM, end)
    # Python itself calls a handler when the main thread comes back from what it waits for, as the
    # compiler or another process.
    signal.set_wakeup_fd(notice, warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True).start()


def end_with_parent() -> None:
    """Asks this process to stop when the one that started it is gone, if that wants it.

    It then holds the other end of a pipe, which the system closes however it ended.
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
    """Leaves the run when all have come to this point; says whether they did in that time."""
    service = _service()
    try:
        service.wait_at_barrier("kdjax: all are here", int(1000 * seconds))
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


def _watch() -> None:
    """Ends this process if another one failed or is dead. If process 0 is dead, JAX does it."""
    service = _service()
    while not _parting.is_set():
        try:
            failures = dict(service.key_value_dir_get(_FAILURES))
            alive = service.get_live_nodes(_everyone())
        # The service ended with process 0.
        except RuntimeError:
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
    print(f"process {_index()} of {len(_everyone())} stops: {reason}", file=sys.stderr, flush=True)
    _end_after_the_others(status)


def _end_after_the_others(status: int) -> NoReturn:
    """Ends this process, process 0 last: JAX aborts the others with pages of stacks otherwise."""
    if _index() == 0:
        time.sleep(LAST_WORDS_SECONDS)
    _end(status)


def _index() -> int:
    return distributed.global_state.process_id


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
    # JAX's service would share the port of another one without a word, and be joined by its
    # processes; and wait for a minute where another program listens.
    try:
        socket.create_server(("", int(port))).close()
    except OSError as error:
        reason = error.strerror
        if error.errno == errno.EADDRINUSE:
            reason = f"port {port} is taken by another run, or another program; choose another"
        raise UserError(f"--coordinator is {coordinator}: {reason}") from error


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
