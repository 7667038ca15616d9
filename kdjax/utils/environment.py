"""The software and hardware of a run, and the settings that make them fast."""

import contextlib
import ctypes
import importlib
import importlib.metadata
import os
import pathlib
import platform
import sys
from collections.abc import Iterator

import jax

import kdjax

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-cpu")
_ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def set_up_jax() -> None:
    """Keeps compiled programs between processes, and freed memory in the process.

    Every command calls this before it computes. JAX_COMPILATION_CACHE_DIR sets another directory
    for the programs.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "kdjax" / "jax"))
    _keep_freed_memory()
    _add_a_thread()


def _keep_freed_memory() -> None:
    """Stops glibc from returning freed memory to the system.

    An XLA program on the CPU allocates its temporaries in every step, in any thread. The system
    fills each new page with zeros. docs/results/speed.md says what that costs. All threads share
    one arena, because only the first arena keeps all its memory. With an accelerator there is no
    gain, and threads that read images would wait for the arena. The user's own settings of the
    allocator, and other C libraries, are left alone.
    """
    configured = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if platform.libc_ver()[0] != "glibc" or configured or gpus() or tpu_chips():
        return
    library = ctypes.CDLL(None)
    library.mallopt(_M_MMAP_MAX, 0)
    library.mallopt(_M_TRIM_THRESHOLD, -1)
    library.mallopt(_M_ARENA_MAX, 1)


def _add_a_thread() -> None:
    """Gives XLA's client for CPUs more threads than it has devices.

    XLA copies the arguments of a callback with the threads that run the programs of the devices.
    With one thread for each device, a device that calls a teacher on the host waits for the copy,
    the other devices wait for the teacher, and no thread is left to copy. XLA takes the number of
    threads from NPROC, by default the number of processors that this process may use.
    """
    devices = max(jax.config.values["jax_num_cpu_devices"], 1)
    if _processors() <= devices:
        os.environ.setdefault("NPROC", str(devices + 1))


def _processors() -> int:
    # Only Linux says which processors a process may use.
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def compiler_options(platform: str) -> dict[str, str]:
    """Returns the options with which XLA compiles whole networks for a platform.

    By default, XLA for CPUs computes cheap values again for each reader. In a frozen network of
    residual blocks, it would compute the sum of all earlier blocks in each block.
    docs/results/speed.md says what the preset gains.
    """
    return {"xla_cpu_opt_preset": "CPU_OPT_PRESET_FAST_COMPILE"} if platform == "cpu" else {}


def gpus() -> list[str]:
    """Returns the numbers of the GPUs that this process may use, without initializing them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return [str(i) for i, _ in enumerate(pathlib.Path("/dev").glob("nvidia[0-9]*"))]


def tpu_chips() -> list[str]:
    """Returns the numbers of the TPU chips of this machine, without initializing them."""
    chips = [*pathlib.Path("/dev").glob("accel[0-9]*"), *pathlib.Path("/dev").glob("vfio/[0-9]*")]
    return [str(i) for i, _ in enumerate(chips)]


def cache_folder() -> pathlib.Path:
    """Returns the directory for files that programs of this user can make again."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")


def describe() -> dict[str, str]:
    """Returns the versions of kdjax, of Python and of the libraries, and the devices."""
    found = versions(*PACKAGES) | {"python": platform.python_version()}
    device = jax.devices()[0]
    found["devices"] = f"{jax.device_count()} x {device.device_kind} ({device.platform})"
    found["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    return found


def versions(*packages: str) -> dict[str, str]:
    """Returns the versions of kdjax and of those packages that are installed."""
    found = {"kdjax": kdjax.__version__}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


@contextlib.contextmanager
def importing_tensorflow() -> Iterator[None]:
    """Switches off oneDNN for the import of TensorFlow inside this context.

    oneDNN prints a notice at every start, rounds differently, and speeds up no input pipeline.
    TensorFlow reads the variable when it is imported, so that it is removed afterwards. JAX sets
    the variable that keeps TensorFlow's log quiet.

    Triton, which comes with PyTorch for GPUs, is imported first if it is installed. Triton and
    TensorFlow both contain LLVM, and TensorFlow exports its symbols, so that the process crashes if
    Triton is loaded second.
    """
    if "tensorflow" not in sys.modules:
        # A broken Triton does not matter to TensorFlow.
        with contextlib.suppress(Exception):
            importlib.import_module("triton")
    if _ONEDNN in os.environ:
        yield
        return
    os.environ[_ONEDNN] = "0"
    try:
        yield
    finally:
        del os.environ[_ONEDNN]
