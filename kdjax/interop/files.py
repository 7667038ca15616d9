"""Reads the weights in a PyTorch or safetensors file, without PyTorch.

A PyTorch file is a pickle, and a pickle can run any code. The reader here gives a pickle access to
arrays and plain values only, and refuses the file if the pickle asks for anything else.
"""

import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from kdjax.utils.classes import numbered_names
from kdjax.utils.errors import UserError

# The files of weights that HuggingFace's `save_pretrained` writes into a directory.
PRETRAINED = ("model.safetensors", "pytorch_model.bin")


class Checkpoint(NamedTuple):
    """The content of a file.

    Attributes:
      weights: arrays by their names in the file. Floating-point types below float32 become float32.
      meta: other information in the file, such as mmsegmentation's class names; often empty.
    """

    weights: dict[str, np.ndarray]
    meta: Mapping[str, Any]


def read_weights(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a `.safetensors`, `.pth`, or `.pt` file.

    Args:
      path: the file, or a directory that HuggingFace's `save_pretrained` wrote. The class names are
        those of the directory's `config.json`.

    Raises:
      UserError: if the file is missing, damaged, of another kind, or without weights, or if its
        pickle asks for more than arrays and plain values.
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
        found = _read_pytorch(path)
    else:
        raise UserError(f"{path}: not a .pth, .pt or .safetensors file")
    folder, name = os.path.split(path)
    return found._replace(meta=_pretrained_meta(folder)) if name in PRETRAINED else found


def _pretrained_meta(folder: str) -> dict[str, Any]:
    """Returns the class names in a `config.json`, or nothing if it names none."""
    try:
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            labels = json.load(file)["id2label"]
        names = [labels[str(index)] for index in range(len(labels))]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    # HuggingFace's default names tell only the number of classes.
    if names == [f"LABEL_{index}" for index in range(len(names))]:
        names = [*numbered_names(len(names))]
    return {"classes": names}


def _read_safetensors(path: str) -> dict[str, np.ndarray]:
    import safetensors

    arrays = {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118  not a mapping
                try:
                    array = file.get_tensor(name)
                except (AttributeError, TypeError) as error:
                    kind = file.get_slice(name).get_dtype()
                    raise UserError(
                        f'{path}: NumPy cannot read "{name}" of type {kind}; save it as float32'
                    ) from error
                # NumPy's bfloat16 is neither a floating-point type nor an integer.
                half = array.dtype.itemsize == 2 and array.dtype.kind not in "iu"
                arrays[name] = array.astype(np.float32) if half else array
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or no safetensors file: {error}") from error
    return arrays


class _Refused(Exception):
    """A pickle asks for more than arrays and plain values; the message names the request."""


class _Storage(NamedTuple):
    """The elements that tensors are views of, by their key in the file."""

    key: str
    dtype: np.dtype


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides are in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    requires_grad: bool
    hooks: Any

    def array(self, stored: Mapping[str, bytes]) -> np.ndarray:
        """Returns a copy of the values. NumPy checks that they lie within the storage."""
        dtype = self.storage.dtype
        strides = tuple(stride * dtype.itemsize for stride in self.strides)
        offset = self.offset * dtype.itemsize
        view = np.ndarray(self.shape, dtype, stored[self.storage.key], offset, strides)
        kind = np.float32 if jnp.issubdtype(dtype, np.floating) else dtype
        with np.errstate(over="ignore"):  # infinite values are reported where they are used
            return np.array(view, kind, order="C")


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
# Everything that a pickle may name. No Python class is among them, because a pickle can set the
# attributes of a class.
_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "Counter"): lambda *items: dict(*items),  # of some learning rate schedules
    ("torch", "Size"): tuple,
    ("torch", "device"): lambda *arguments: arguments,
    ("torch._utils", "_rebuild_tensor_v2"): lambda *parts: _Tensor(*parts),
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    **{("torch", name): np.dtype(dtype) for name, dtype in _DTYPES.items()},
}
# The first values in a file of PyTorch before 1.6.
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001


class _Unpickler(pickle.Unpickler):
    """Reads tensors and plain values.

    Raises:
      _Refused: if the pickle names anything else.
    """

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.dtypes: dict[str, np.dtype] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise _Refused(f"{module}.{name}")
        return _NAMES[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple):
            raise pickle.UnpicklingError("unknown header")
        _, dtype, key, _, _, *view = pid
        if any(view):
            raise _Refused("a view of a storage")
        self.dtypes[key] = dtype
        return _Storage(key, dtype)


def _read_pytorch(path: str) -> Checkpoint:
    try:
        with open(path, "rb") as file:
            read = _read_zip if zipfile.is_zipfile(file) else _read_legacy
            file.seek(0)
            content, stored = read(file)
        content = content if isinstance(content, Mapping) else {}
        inner = content.get("state_dict", content.get("model", content))
        items = inner.items() if isinstance(inner, Mapping) else ()
        weights = {name: x.array(stored) for name, x in items if isinstance(x, _Tensor)}
    except _Refused as asked:
        raise UserError(
            f"{path}: refused: its pickle asks for {asked}, and kdjax reads only dense arrays and "
            "plain values, because a pickle can run code; if you trust the file, load it with "
            'PyTorch and save its arrays: torch.save({"state_dict": ...}, path)'
        ) from asked
    # A damaged file can raise any error in the reader.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "it ends too early")
        raise UserError(f"{path}: damaged or no PyTorch file: {reason}") from error
    if not weights:
        found = ", ".join(map(str, content)) or "nothing"
        raise UserError(f"{path}: no network weights in it (it holds: {found})")
    if unnamed := [name for name in weights if not isinstance(name, str)]:
        raise UserError(
            f"{path}: an array in it is called {unnamed[0]!r}; the names of weights must be text, "
            "as in a state_dict()"
        )
    meta = content.get("meta", {})
    return Checkpoint(weights, meta if isinstance(meta, Mapping) else {})


def _read_zip(file: BinaryIO) -> tuple[Any, dict[str, bytes]]:
    """Returns the content of a file of PyTorch 1.6 or later, and its storages by key."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        folder = next(name for name in names if name.endswith("/data.pkl")).removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in names and archive.read(order) != b"little":
            raise _Refused("big-endian numbers")
        content = _Unpickler(io.BytesIO(archive.read(f"{folder}data.pkl"))).load()
        start = f"{folder}data/"
        return content, {
            name.removeprefix(start): archive.read(name) for name in names if name.startswith(start)
        }


def _read_legacy(file: BinaryIO) -> tuple[Any, dict[str, bytes]]:
    """Returns the content of a file of PyTorch before 1.6, and its storages by key."""
    magic, version, system = (_Unpickler(file).load() for _ in range(3))
    if (magic, version) != (_MAGIC, _VERSION):
        raise ValueError("unknown header")
    if not system["little_endian"]:
        raise _Refused("big-endian numbers")
    unpickler = _Unpickler(file)
    content, stored = unpickler.load(), {}
    for key in _Unpickler(file).load():
        count = int.from_bytes(file.read(8), "little")
        stored[key] = file.read(size := count * unpickler.dtypes[key].itemsize)
        if len(stored[key]) < size:
            raise EOFError("it ends too early")
    return content, stored
