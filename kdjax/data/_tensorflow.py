"""TensorFlow as this room uses it: quiet, and without the accelerators that JAX needs."""

import os

# TensorFlow's C++ side reads both while it is imported. oneDNN announces itself on every start, and
# speeds up nothing that an input pipeline does.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import tensorflow as tf

tf.config.set_visible_devices([], "GPU")
tf.config.set_visible_devices([], "TPU")

__all__ = ["tf"]
