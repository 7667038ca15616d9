"""Reads PyTorch's checkpoint files into NumPy arrays, without running anything that they hold."""

import os
import pickle
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from kdjax.errors import UserError


class Checkpoint(NamedTuple):
    """What a file holds.

    Attributes:
      weights: arrays by name, as the file names them; half precision is float32.
      meta: what the file says beside them, as mmsegmentation's class names; often empty.
    """

    weights: dict[str, np.ndarray]
    meta: Mapping[str, Any]


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a `.safetensors` file, or a `.pth` or `.pt` file (which needs PyTorch).

    Raises:
      UserError: where there is no such file; where it is empty, cut, or of another kind; where its
        pickle asks for more than arrays and plain values; where it holds no weights.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file")
    if not os.path.getsize(path):
        raise UserError(f"{path}: the file is empty")
    if path.endswith(".safetensors"):
        return Checkpoint(_read_safetensors(path), {})
    if path.endswith((".pth", ".pt", ".pth.tar")):
        return _read_pickle(path)
    raise UserError(f"{path}: not a .pth, .pt or .safetensors file")


def _read_safetensors(path: str) -> dict[str, np.ndarray]:
    import safetensors
    import safetensors.numpy

    try:
        arrays = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: damaged or no safetensors file: {error}") from error
    return {name: _full_precision(array) for name, array in arrays.items()}


def _read_pickle(path: str) -> Checkpoint:
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path}: reading it needs PyTorch: pip install torch") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked is None:
            raise UserError(f"{path}: damaged or no PyTorch file") from error
        raise UserError(
            f"{path}: refused: its pickle asks for {asked[1]}, and a pickle that asks for more "
            "than arrays can run anything; where you trust it, save its arrays again by "
            'torch.save({"state_dict": ...}, path)'
        ) from error
    except (EOFError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{path}: damaged or no PyTorch file: {_first_line(error)}") from error
    content = content if isinstance(content, Mapping) else {}
    inner = content.get("state_dict", content.get("model", content))
    tensors = {
        name: value
        for name, value in (inner.items() if isinstance(inner, Mapping) else ())
        if isinstance(value, torch.Tensor)
    }
    if not tensors:
        found = ", ".join(map(str, content)) or "nothing"
        raise UserError(f"{path}: no network weights in it (it holds: {found})")
    # NumPy has no bfloat16 of its own.
    arrays = {
        name: (value.float() if value.is_floating_point() else value).numpy()
        for name, value in tensors.items()
    }
    meta = content.get("meta", {})
    return Checkpoint(arrays, meta if isinstance(meta, Mapping) else {})


def _full_precision(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.itemsize == 2 else array


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "it ends too early"
