"""The software and hardware that a run runs on."""

import contextlib
import ctypes
import importlib
import importlib.metadata
import os
import pathlib
import platform
import sys

import jax

import kdjax

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-cpu")


# Of `mallopt` in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def set_up_jax() -> None:
    """What every command does before it computes: compiled programs and freed memory are kept."""
    _keep_compiled_programs()
    _keep_freed_memory()


def _keep_compiled_programs() -> None:
    """Keeps them between processes, unless JAX_COMPILATION_CACHE_DIR says where."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "kdjax" / "jax"))


def _keep_freed_memory() -> None:
    """Has glibc keep freed memory for whoever asks next, and not give it back to the system.

    A program of XLA for the CPU takes its temporaries anew at every step, in any thread. From the
    system they come page by page, each filled with zeros first: docs/results/speed.md has what that
    costs. One arena for all threads, since only that of the first keeps all; with an accelerator,
    where nothing is gained, reading images in many threads would wait for it. Variables that set up
    glibc, and other C libraries, are left alone.
    """
    theirs = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if platform.libc_ver()[0] != "glibc" or theirs or gpus() or tpu_chips():
        return
    library = ctypes.CDLL(None)
    library.mallopt(_M_MMAP_MAX, 0)
    library.mallopt(_M_TRIM_THRESHOLD, -1)
    library.mallopt(_M_ARENA_MAX, 1)


def compiler_options(platform: str) -> dict[str, str]:
    """Options with which XLA compiles whole networks for devices of this platform.

    For a CPU its default is to compute what several operations read anew in each of them, where
    that seems cheap: in a network of residual blocks that is not trained, as a teacher, the sum of
    all blocks before it in every block. docs/results/speed.md has what the preset gives.
    """
    return {"xla_cpu_opt_preset": "CPU_OPT_PRESET_FAST_COMPILE"} if platform == "cpu" else {}


def gpus() -> list[str]:
    """The numbers of the GPUs that this process may use; JAX, if it were asked, would take them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return [str(i) for i, _ in enumerate(pathlib.Path("/dev").glob("nvidia[0-9]*"))]


def tpu_chips() -> list[str]:
    """Likewise of the TPU chips of this machine."""
    chips = [*pathlib.Path("/dev").glob("accel[0-9]*"), *pathlib.Path("/dev").glob("vfio/[0-9]*")]
    return [str(i) for i, _ in enumerate(chips)]


def cache_folder() -> pathlib.Path:
    """Where programs of this user keep what they can do without."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")


def describe() -> dict[str, str]:
    """Versions of kdjax, of Python, of what it stands on, and the devices."""
    found = versions(*PACKAGES) | {"python": platform.python_version()}
    device = jax.devices()[0]
    found["devices"] = f"{jax.device_count()} x {device.device_kind} ({device.platform})"
    found["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    return found


def versions(*packages: str) -> dict[str, str]:
    """The versions of kdjax and of some packages, as far as they are installed."""
    found = {"kdjax": kdjax.__version__}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def set_up_tensorflow() -> None:
    """Makes TensorFlow quiet, and its numbers those of an import without oneDNN.

    To be called before whatever imports TensorFlow first. oneDNN announces itself on every start,
    rounds otherwise, and speeds up nothing that an input pipeline does.

    Imports Triton, which PyTorch's builds for GPUs bring and load late, if it is installed: both
    libraries contain LLVM, and TensorFlow 2.20 and later make theirs visible to all, so that the
    process crashes where Triton is loaded second.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    if "tensorflow" not in sys.modules:
        # An installation of Triton that is broken is no concern of TensorFlow's.
        with contextlib.suppress(Exception):
            importlib.import_module("triton")
