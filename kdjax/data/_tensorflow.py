"""TensorFlow as this room uses it: quiet, and without the accelerators that JAX needs."""

import os

# TensorFlow's C++ side reads both while it is imported. oneDNN announces itself on every start, and
# speeds up nothing that an input pipeline does.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import tensorflow as tf

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
