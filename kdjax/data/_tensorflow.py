"""Imports TensorFlow without its log lines and without the accelerators that JAX needs."""

import os
import re

from kdjax.utils import environment

with environment.importing_tensorflow():
    import tensorflow as tf

tf.config.set_visible_devices([], "GPU")
tf.config.set_visible_devices([], "TPU")


def _take_no_flags() -> None:
    """Compiles something while XLA_FLAGS is not set.

    TensorFlow's copy of XLA reads this variable once, at its first compilation, and ends the
    process at a flag that only JAX's copy knows.
    """
    flags = os.environ.pop("XLA_FLAGS", None)
    if flags is None:
        return
    try:
        tf.function(lambda: tf.zeros([1]) + 1, autograph=False, jit_compile=True)()
    finally:
        os.environ["XLA_FLAGS"] = flags


_take_no_flags()

# A decorator for functions that tf.data maps. AutoGraph would rewrite all functions they call,
# needlessly, and take longer than tracing.
traced_as_written = tf.autograph.experimental.do_not_convert

# The node and the operation that TensorFlow adds to the text of an error.
_PLACE = re.compile(r"\{\{.*?\}\} ?| \[Op:.*")


def reason(error: BaseException) -> str:
    """Returns the first line of an error, without TensorFlow's place in a graph."""
    text = _PLACE.sub("", str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__


__all__ = ["reason", "tf", "traced_as_written"]
