"""TensorFlow as this room uses it: imported when it is needed, quiet, and on the CPU."""

from typing import Any

from kdjax import tensorflow_environment
from kdjax.errors import UserError


def tensorflow() -> Any:
    """Imports TensorFlow.

    Raises:
      UserError: where it is not installed.
    """
    tensorflow_environment.set_up()
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
