"""TensorFlow Lite, now LiteRT: a flat file of built-in operations, for phones and small boards."""

import pathlib
import tempfile
import warnings

import numpy as np

from kdjax.deployment import savedmodel
from kdjax.deployment._tensorflow import tensorflow
from kdjax.deployment.labelling import Label, Size
from kdjax.errors import UserError


def write(label: Label, size: Size, path: pathlib.Path) -> None:
    """Writes the file, for one image of the fixed size at a time.

    Raises:
      UserError: where the network needs an operation that TensorFlow Lite does not have.
    """
    tf = tensorflow()
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        # The converter takes StableHLO for one platform and of known shapes only.
        savedmodel.write(label, size, pathlib.Path(scratch), batch=1, platforms=("cpu",))
        converter = tf.lite.TFLiteConverter.from_saved_model(scratch)
        # Without TensorFlow's own operations, which a runtime would have to bring.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        try:
            content = converter.convert()
        # Its own class of errors is not public.
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"tflite: this network cannot be converted: {reason}") from error
    path.write_bytes(content)


def read(path: pathlib.Path) -> Label:
    """Loads it; a batch is run image by image."""
    tf = tensorflow()
    with warnings.catch_warnings():
        # The interpreter moves to a package of its own, ai-edge-litert; this one is at hand.
        warnings.filterwarnings("ignore", r"[\s\S]*tf.lite.Interpreter is deprecated", UserWarning)
        interpreter = tf.lite.Interpreter(model_path=str(path))
    run = interpreter.get_signature_runner()
    return lambda images: np.concatenate([run(images=image[None])["labels"] for image in images])
