"""Reads files of weights, and gives what is in them other names."""

import io
import json
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from kdjax.utils.classes import numbered_names
from kdjax.utils.errors import UserError

# PyTorch's data-parallel wrapper.
PARALLEL = "module."
# What distillers call the student that stands beside its teacher, connectors and losses in one
# file: mmrazor before 1.0, mmrazor, and mmsegmentation-distiller.
STUDENTS = ("architecture.model.", "architecture.", "student.")


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Returns each weight's own name by its name in the file; of a distiller, its student's."""
    own = {name: name.removeprefix(PARALLEL) for name in names}
    for prefix in STUDENTS:
        found = {
            name: rest.removeprefix(prefix) for name, rest in own.items() if rest.startswith(prefix)
        }
        if found:
            return found
    return own


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
    """Reads a `.safetensors`, `.pth`, or `.pt` file.

    PyTorch is needed only if a file holds more than plain arrays.

    Args:
      path: the file, or a folder that HuggingFace's `save_pretrained` wrote. The class names are
        those of the `config.json` in that folder.

    Raises:
      UserError: where there is no such file; where it is empty, cut, or of another kind; where its
        pickle asks for more than arrays and plain values; where it holds no weights, or some of a
        kind that is not read.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        held = [file for name in PRETRAINED if os.path.isfile(file := os.path.join(path, name))]
        if not held:
            raise UserError(f"{path}: the folder holds neither {' nor '.join(PRETRAINED)}")
        path = held[0]
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file")
    if not os.path.getsize(path):
        raise UserError(f"{path}: the file is empty")
    if path.endswith(".safetensors"):
        found = Checkpoint(_read_safetensors(path), {})
    elif path.endswith((".pth", ".pt", ".pth.tar", PRETRAINED[1])):
        found = _read_pickle(path)
    else:
        raise UserError(f"{path}: not a .pth, .pt or .safetensors file")
    folder, name = os.path.split(path)
    return found._replace(meta=_pretrained_meta(folder)) if name in PRETRAINED else found


# The files of weights that `save_pretrained` writes into a folder.
PRETRAINED = ("model.safetensors", "pytorch_model.bin")


def _pretrained_meta(folder: str) -> dict[str, Any]:
    """Returns the class names of a `config.json`, or nothing if it names none."""
    try:
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            labels = json.load(file)["id2label"]
        names = [labels[str(index)] for index in range(len(labels))]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    # HuggingFace's default names say no more than the number of classes.
    if names == [f"LABEL_{index}" for index in range(len(names))]:
        names = [*numbered_names(len(names))]
    return {"classes": names}


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
        content, tensor, to_array = _read_plain(path)
    except _NotPlain as asked:
        content, tensor, to_array = _read_by_torch(path, asked)
    # A damaged file makes the reader raise whatever it meets.
    except Exception as error:
        raise UserError(f"{path}: damaged or no PyTorch file: {_first_line(error)}") from error
    content = content if isinstance(content, Mapping) else {}
    inner = content.get("state_dict", content.get("model", content))
    tensors = {
        name: value
        for name, value in (inner.items() if isinstance(inner, Mapping) else ())
        if isinstance(value, tensor)
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
    arrays = {}
    for name, value in tensors.items():
        try:
            arrays[name] = to_array(value)
        # Of another device, or of a part of its storage that is none.
        except Exception as error:
            raise UserError(f'{path}: "{name}" holds no numbers: {_first_line(error)}') from error
    meta = content.get("meta", {})
    return Checkpoint(arrays, meta if isinstance(meta, Mapping) else {})


class _Opened(NamedTuple):
    """What a PyTorch file holds, the type of the tensors in it, and what makes arrays of them."""

    content: Any
    tensor: type
    to_array: Callable[[Any], np.ndarray]


class _NotPlain(Exception):
    """A file holds more than arrays and plain values: what it asks for."""


class _Storage(NamedTuple):
    """The elements that tensors are parts of, by their name in the file."""

    key: str
    dtype: np.dtype


class _Tensor(NamedTuple):
    """A part of a storage; offset and strides are in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    requires_grad: bool
    hooks: Any


_DTYPES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# All that a pickle of plain arrays may name; nothing else of Python is within its reach.
_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    **{("torch", name): np.dtype(dtype) for name, dtype in _DTYPES.items()},
}
# What files of PyTorch before 1.6 begin with, and the version of their form.
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001


class _Unpickler(pickle.Unpickler):
    """Reads tensors and plain values.

    Raises:
      _NotPlain: where the pickle names anything else.
    """

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.dtypes: dict[str, np.dtype] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise _NotPlain(f"{module}.{name}")
        return _NAMES[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, _, _, *view = pid
        if any(view):
            raise _NotPlain("a view of a storage")
        self.dtypes[key] = dtype
        return _Storage(key, dtype)


def _read_plain(path: str) -> _Opened:
    """Reads a PyTorch file of arrays and plain values, as nearly all are, without PyTorch.

    Raises:
      _NotPlain: where it holds more.
      Exception: of any kind, where it is damaged.
    """
    with open(path, "rb") as file:
        read = _zipped if zipfile.is_zipfile(file) else _in_a_row
        file.seek(0)
        content, stored = read(file)

    def to_array(tensor: _Tensor) -> np.ndarray:
        dtype = tensor.storage.dtype
        # NumPy checks that all of it lies within the storage.
        view = np.ndarray(
            tensor.shape,
            dtype,
            stored[tensor.storage.key],
            tensor.offset * dtype.itemsize,
            tuple(stride * dtype.itemsize for stride in tensor.strides),
        )
        kind = np.float32 if jnp.issubdtype(dtype, np.floating) else dtype
        with np.errstate(over="ignore"):  # infinite then, which is found where it is used
            return np.array(view, kind, order="C")

    return _Opened(content, _Tensor, to_array)


def _zipped(file: BinaryIO) -> tuple[Any, dict[str, bytes]]:
    """The content of a file as PyTorch writes it since 1.6, and its storages by name."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        pickled = next((name for name in names if name.endswith("/data.pkl")), "/data.pkl")
        folder = pickled.removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in names and archive.read(order) != b"little":
            raise _NotPlain("another order of bytes")
        content = _Unpickler(io.BytesIO(archive.read(pickled))).load()
        start = f"{folder}data/"
        return content, {
            name.removeprefix(start): archive.read(name) for name in names if name.startswith(start)
        }


def _in_a_row(file: BinaryIO) -> tuple[Any, dict[str, bytes]]:
    """The content of a file as PyTorch wrote it before 1.6, and its storages by name."""
    magic, version, system = (_Unpickler(file).load() for _ in range(3))
    if (magic, version) != (_MAGIC, _VERSION):
        raise ValueError("it begins with something else")
    if not system["little_endian"]:
        raise _NotPlain("another order of bytes")
    unpickler = _Unpickler(file)
    content, stored = unpickler.load(), {}
    for key in _Unpickler(file).load():
        count = int.from_bytes(file.read(8), "little")
        stored[key] = file.read(size := count * unpickler.dtypes[key].itemsize)
        if len(stored[key]) < size:
            raise EOFError("it ends too early")
    return content, stored


def _read_by_torch(path: str, asked: _NotPlain) -> _Opened:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path}: its pickle asks for {asked}, and not for plain arrays alone; reading that "
            "needs PyTorch: pip install torch"
        ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None:
            raise UserError(f"{path}: damaged or no PyTorch file") from error
        raise UserError(
            f"{path}: refused: its pickle asks for {found[1]}, and a pickle that asks for more "
            "than arrays can run anything; where you trust it, save its arrays again by "
            'torch.save({"state_dict": ...}, path)'
        ) from error
    # A damaged file makes the reader raise whatever it meets.
    except Exception as error:
        raise UserError(f"{path}: damaged or no PyTorch file: {_first_line(error)}") from error

    def to_array(tensor: Any) -> np.ndarray:
        # A parameter keeps what its gradient needs.
        tensor = tensor.detach()
        if tensor.is_quantized:
            tensor = tensor.dequantize()
        tensor = tensor.to_dense()
        # NumPy has no bfloat16 of its own.
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()

    return _Opened(content, torch.Tensor, to_array)


def _full_precision(array: np.ndarray) -> np.ndarray:
    # NumPy calls bfloat16 neither a floating-point type nor an integer.
    half = array.dtype.itemsize == 2 and array.dtype.kind not in "iu"
    return array.astype(np.float32) if half else array


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "it ends too early"
