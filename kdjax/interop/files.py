"""Reads files of weights, and gives what is in them other names."""

import os
import pickle
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kdjax.errors import UserError


def renamed(name: str, rules: Sequence[tuple[str, str]], project: str) -> str:
    """Renames by the first rule whose pattern the name begins with.

    Raises:
      UserError: where there is none, naming the weight and the project.
    """
    for pattern, replacement in rules:
        found, count = re.subn(rf"^{pattern}", replacement, name)
        if count:
            return found
    raise UserError(f'the weights hold "{name}", which is no part of {project}')


def pooled_image_first(kernel: np.ndarray) -> np.ndarray:
    """Reorders the inputs of a pyramid's last kernel [O, 5C, h, w] that has the pooled image last.

    mmsegmentation's atrous pyramid begins with it.
    """
    return np.roll(kernel, kernel.shape[1] // 5, axis=1)


def reversed_stages(kernel: np.ndarray) -> np.ndarray:
    """Turns around the inputs of a kernel [O, 4C, h, w] that reads the last stage first."""
    return np.concatenate(np.array_split(kernel, 4, axis=1)[::-1], axis=1)


def without_bias(weights: Mapping[str, np.ndarray], conv: str, norm: str) -> dict[str, np.ndarray]:
    """Moves the bias of a convolution into the batch norm behind it.

    There a constant does nothing in training, and otherwise it only shifts the running mean.
    """
    weights = dict(weights)
    bias = weights.pop(f"{conv}.bias", None)
    if bias is not None and f"{norm}.running_mean" in weights:
        weights[f"{norm}.running_mean"] = weights[f"{norm}.running_mean"] - bias
    return weights


class Checkpoint(NamedTuple):
    """What a file holds.

    Attributes:
      weights: arrays by name, as the file names them, dense; what has fewer bits than float32 and
        a point becomes float32, quantized numbers what they stand for.
      meta: what the file says beside them, as mmsegmentation's class names; often empty.
    """

    weights: dict[str, np.ndarray]
    meta: Mapping[str, Any]


def read_weights(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a `.safetensors` file, or a `.pth` or `.pt` file (which needs PyTorch).

    Raises:
      UserError: where there is no such file; where it is empty, cut, or of another kind; where its
        pickle asks for more than arrays and plain values; where it holds no weights, or some of a
        kind that is not read.
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

    arrays = {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118  it is no mapping
                try:
                    arrays[name] = _full_precision(file.get_tensor(name))
                # NumPy has no such type.
                except (AttributeError, TypeError) as error:
                    kind = file.get_slice(name).get_dtype()
                    raise UserError(
                        f'{path}: "{name}" is of type {kind}, which is not read; save it as float32'
                    ) from error
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or no safetensors file: {error}") from error
    return arrays


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
    # A damaged file makes the reader raise whatever it meets.
    except Exception as error:
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
    for name in tensors:
        if not isinstance(name, str):
            raise UserError(
                f"{path}: an array in it is called {name!r}; the names of a network's weights are "
                "text, as those of its state_dict()"
            )
    arrays = {name: _array(path, name, tensor) for name, tensor in tensors.items()}
    meta = content.get("meta", {})
    return Checkpoint(arrays, meta if isinstance(meta, Mapping) else {})


def _array(path: str, name: str, tensor: Any) -> np.ndarray:
    try:
        # A parameter keeps what its gradient needs.
        tensor = tensor.detach()
        if tensor.is_quantized:
            tensor = tensor.dequantize()
        tensor = tensor.to_dense()
        # NumPy has no bfloat16 of its own.
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    except (NotImplementedError, RuntimeError, TypeError) as error:
        raise UserError(f'{path}: "{name}" holds no numbers: {_first_line(error)}') from error


def _full_precision(array: np.ndarray) -> np.ndarray:
    # NumPy calls bfloat16 neither a floating-point type nor an integer.
    half = array.dtype.itemsize == 2 and array.dtype.kind not in "iu"
    return array.astype(np.float32) if half else array


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "it ends too early"
