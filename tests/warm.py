"""Processes that begin with the libraries imported: forks of one that imports them once.

Importing JAX, TensorFlow, Orbax and matplotlib takes half of the processor time of a small run in a
process of its own. Everything of kdjax is imported by each process itself, and signals, exit
statuses and output are those of any process. Only strings have the same hashes in all of them: what
may not depend on these is for a test that starts its processes anew.
"""

import atexit
import logging
import multiprocessing
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence

import jax

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "jax",
        "flax.linen",
        "flax.nnx",
        "optax",
        "orbax.checkpoint",
        "ml_collections.config_flags",
        "tensorflow",
        "tensorflow_datasets",
        "matplotlib.backends.backend_agg",
        "matplotlib.backends.backend_svg",
        "matplotlib.figure",
        "scipy.special",
        "PIL.Image",
        "jinja2",
        "tensorboardX",
    ]
)
# For the import of TensorFlow in the process that the others are forks of.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


class Process:
    """What tests use of `subprocess.Popen`, of a Python process.

    Args:
      words: behind `python`: `-m module`, `-c code` or a path, and arguments.
      cwd: the working directory.
      env: all variables of the environment. Of JAX's own, only the number of devices may differ
        from those of the tests.
    """

    def __init__(
        self, words: Sequence[object], *, env: Mapping[str, str], cwd: pathlib.Path = _ROOT
    ):
        self.args = [str(word) for word in words]
        self._files = [tempfile.NamedTemporaryFile("r") for _ in range(2)]  # noqa: SIM115
        self._process = _CONTEXT.Process(
            target=_run,
            args=(self.args, str(cwd), dict(env), [file.name for file in self._files]),
            daemon=True,
        )
        self._process.start()
        self.pid = self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        """The exit status, or the signal's number below zero."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit status, None as long as it runs."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal to a process that runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Sends SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def output(self) -> str:
        """What was written to stdout up to now."""
        return pathlib.Path(self._files[0].name).read_text()

    def errors(self) -> str:
        """What was written to stderr up to now."""
        return pathlib.Path(self._files[1].name).read_text()

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Waits for the end, and returns what was written to stdout and stderr."""
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        output, errors = (pathlib.Path(file.name).read_text() for file in self._files)
        return output, errors


def run(
    *words: object, cwd: pathlib.Path = _ROOT, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a process to its end; see `Process`. Without `env` it has the variables of the tests."""
    process = Process(words, cwd=cwd, env=os.environ if env is None else env)
    output, errors = process.communicate(timeout=240)
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def _run(words: list[str], cwd: str, env: dict[str, str], files: list[str]) -> None:
    """Does what `python` with these words does."""
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    # Asked for no TPU, libtpu cannot say on stderr that there is none.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", int(env.get("JAX_NUM_CPU_DEVICES", 1)))
    # Tests compare what kdjax prints, and a plugin for CUDA complains if there is no GPU.
    logging.getLogger("jax._src.xla_bridge").addFilter(
        lambda record: "plugin configuration error" not in record.getMessage()
    )
    kind, *rest = words
    # The folder that a new interpreter looks into first, and what it finds besides.
    first = {"-c": "", "-m": cwd}.get(kind, os.path.dirname(kind))
    given = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [first, *given, *(path for path in sys.path if not _is_ours(path))]
    try:
        if kind == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.argv = ["-c", *rest[1:]]
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(rest[0], vars(main))
        else:
            sys.argv = words
            runpy.run_path(kind, run_name="__main__")
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()


def _is_ours(path: str) -> bool:
    """Whether the tests put a folder on the path."""
    folder = pathlib.Path(path)
    return folder == _ROOT or folder == _ROOT / "tests" or _ROOT / "tests" in folder.parents
