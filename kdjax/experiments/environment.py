"""The software and hardware that a run runs on."""

import os
import pathlib
import platform

import jax

from kdjax.versions import versions

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-cpu")


def enable_compilation_cache() -> None:
    """Keeps compiled programs between processes, unless JAX_COMPILATION_CACHE_DIR says where."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "kdjax" / "jax"))


def describe() -> dict[str, str]:
    """Versions of kdjax, of Python, of what it stands on, and the devices."""
    found = versions(*PACKAGES) | {"python": platform.python_version()}
    device = jax.devices()[0]
    found["devices"] = f"{jax.device_count()} x {device.device_kind} ({device.platform})"
    found["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    return found
