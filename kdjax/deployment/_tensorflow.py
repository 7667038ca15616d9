"""TensorFlow as this room uses it: imported when it is needed, quiet, and on the CPU."""

import os
from typing import Any

from kdjax.errors import UserError


def tensorflow() -> Any:
    """Imports TensorFlow.

    Raises:
      UserError: where it is not installed.
    """
    # Its C++ side reads both while it is imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import tensorflow as tf
    except ImportError as error:
        raise UserError(
            'the formats savedmodel and tflite need TensorFlow: pip install "kdjax[export]"'
        ) from error
    # JAX has the accelerators.
    tf.config.set_visible_devices([], "GPU")
    tf.config.set_visible_devices([], "TPU")
    return tf
