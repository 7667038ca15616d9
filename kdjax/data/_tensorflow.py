"""TensorFlow as this room uses it: quiet, and without the accelerators that JAX needs."""

import os
import re

from kdjax.utils import environment

environment.set_up_tensorflow()

import tensorflow as tf  # noqa: E402  reads the environment

tf.config.set_visible_devices([], "GPU")
tf.config.set_visible_devices([], "TPU")


def _take_no_flags() -> None:
    """Compiles something while XLA_FLAGS is not set.

    TensorFlow has an XLA of its own, which reads that variable once, at its first compilation, and
    ends the process at a flag that only JAX's knows.
    """
    flags = os.environ.pop("XLA_FLAGS", None)
    if flags is None:
        return
    try:
        tf.function(lambda: tf.zeros([1]) + 1, autograph=False, jit_compile=True)()
    finally:
        os.environ["XLA_FLAGS"] = flags


_take_no_flags()

# For what tf.data maps: AutoGraph would rewrite all that is called, in vain, in more time than
# tracing takes.
traced_as_written = tf.autograph.experimental.do_not_convert

# What TensorFlow writes around the words of an error: the node and the operation, on one device.
_PLACE = re.compile(r"\{\{.*?\}\} ?| \[Op:.*")


def reason(error: BaseException) -> str:
    """What an error says, in one line: of TensorFlow, without where in a graph it happened."""
    text = _PLACE.sub("", str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__


__all__ = ["reason", "tf", "traced_as_written"]
