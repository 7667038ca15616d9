"""Paths that may lie in an object store."""

from etils import epath


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is one of an object store, as `gs://bucket/run`."""
    return "://" in str(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """Returns a path that no longer depends on the working directory."""
    path = epath.Path(path)
    # epath resolves "gs://bucket" to a folder "gs:" of the working directory.
    return path if is_remote(path) else path.resolve()
