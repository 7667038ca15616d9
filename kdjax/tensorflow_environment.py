"""What TensorFlow's C++ side reads of the environment while it is imported."""

import os


def set_up() -> None:
    """Makes TensorFlow quiet, and its numbers those of an import without oneDNN.

    To be called before whatever imports TensorFlow first. oneDNN announces itself on every start,
    rounds otherwise, and speeds up nothing that an input pipeline does.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
