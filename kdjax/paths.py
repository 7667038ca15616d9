"""Paths that may lie in an object store."""

from etils import epath

from kdjax import tensorflow_environment
from kdjax.errors import UserError


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is one of an object store, as `gs://bucket/run`."""
    return "://" in str(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """Returns a path that no longer depends on the working directory."""
    path = epath.Path(path)
    # epath resolves "gs://bucket" to a folder "gs:" of the working directory.
    return path if is_remote(path) else path.resolve()


def reachable(path: epath.PathLike) -> epath.Path:
    """Returns a path that can be asked whether something is there.

    Raises:
      UserError: when its store does not answer.
    """
    path = epath.Path(path)
    if is_remote(path):
        # Whose files epath opens with TensorFlow, where that is installed.
        tensorflow_environment.set_up()
        try:
            path.exists()
        # Every client of a store has errors of its own.
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{path}: the store does not answer: {reason}") from error
    return path
