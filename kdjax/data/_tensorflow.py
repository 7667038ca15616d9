"""TensorFlow as this room uses it: quiet, and without the accelerators that JAX needs."""

import os

from kdjax import tensorflow_environment

tensorflow_environment.set_up()

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

__all__ = ["tf", "traced_as_written"]
