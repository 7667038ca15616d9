"""Runs ONNX and TensorFlow Lite files on NumPy arrays, on the CPU.

Both runtimes are optional, and are imported when a file is opened:
`pip install "kdjax[model-files]"` installs them.
"""

import hashlib
import importlib
import os
import pathlib
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from kdjax.utils import environment
from kdjax.utils.errors import UserError, first_line
from kdjax.utils.files import is_remote

INSTALL = 'pip install "kdjax[model-files]"'
_ONNX_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


class Tensor(NamedTuple):
    """An input or output of a file.

    Attributes:
      name: its name.
      shape: its axes, with None for those of any length.
      dtype: the type of its numbers; None for a type that images and scores never have.
      scale: for a quantized tensor, the step between two of its integers; else 1.
      zero_point: for a quantized tensor, the integer that stands for 0; else 0.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype | None
    scale: float = 1.0
    zero_point: int = 0

    def __str__(self) -> str:
        axes = ", ".join("any" if axis is None else str(axis) for axis in self.shape)
        return f'"{self.name}" {self.dtype or "of another type"} [{axes}]'

    @property
    def quantized(self) -> bool:
        """True if integers stand for other numbers."""
        return (self.scale, self.zero_point) != (1.0, 0)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Converts numbers to the type of the tensor. Integers are rounded and clipped."""
        dtype = np.dtype(self.dtype)
        if not np.issubdtype(dtype, np.integer):
            return values.astype(dtype)
        limits = np.iinfo(str(dtype))
        integers = np.round(values / self.scale + self.zero_point)
        return np.clip(integers, limits.min, limits.max).astype(dtype)

    def decode(self, values: np.ndarray) -> np.ndarray:
        """Converts the values of the tensor to float32."""
        values = values.astype(np.float32)
        return (values - self.zero_point) * np.float32(self.scale) if self.quantized else values


class ModelFile(Protocol):
    """A file opened by its runtime.

    Attributes:
      inputs: the inputs of the file.
      outputs: the outputs of the file.
      layout: the usual layout of images in such files.
    """

    inputs: list[Tensor]
    outputs: list[Tensor]
    layout: str

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Returns all outputs for the value of the only input."""
        ...


class OnnxFile:
    """A file opened by ONNX Runtime."""

    layout = "NCHW"

    def __init__(self, path: pathlib.Path):
        runtime = _import("onnxruntime", path)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = _threads()
        options.log_severity_level = 3  # errors
        self._session = runtime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [_onnx_tensor(found) for found in self._session.get_inputs()]
        self.outputs = [_onnx_tensor(found) for found in self._session.get_outputs()]

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Returns all outputs."""
        return self._session.run(None, {self.inputs[0].name: images})


def _onnx_tensor(found: Any) -> Tensor:
    # The name of a symbolic axis stands for any length.
    shape = tuple(axis if isinstance(axis, int) and axis > 0 else None for axis in found.shape)
    dtype = _ONNX_TYPES.get(found.type)
    return Tensor(found.name, shape, None if dtype is None else np.dtype(dtype))


class TFLiteFile:
    """A file opened by LiteRT, or by TensorFlow if LiteRT is not installed."""

    layout = "NHWC"

    def __init__(self, path: pathlib.Path):
        self._interpreter = _interpreter(path)
        # Several devices may call the interpreter at once, and it has one set of buffers.
        self._lock = threading.Lock()
        self.inputs = [_tflite_tensor(found) for found in self._interpreter.get_input_details()]
        self.outputs = [_tflite_tensor(found) for found in self._interpreter.get_output_details()]
        self._taken: tuple[int, ...] = ()

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Returns all outputs."""
        interpreter = self._interpreter
        index = interpreter.get_input_details()[0]["index"]
        with self._lock:
            if images.shape != self._taken:
                interpreter.resize_tensor_input(index, images.shape)
                interpreter.allocate_tensors()
                self._taken = images.shape
            interpreter.set_tensor(index, images)
            interpreter.invoke()
            return [
                interpreter.get_tensor(found["index"]) for found in interpreter.get_output_details()
            ]


def _interpreter(path: pathlib.Path) -> Any:
    arguments = {"model_path": str(path), "num_threads": _threads()}
    try:
        return importlib.import_module("ai_edge_litert.interpreter").Interpreter(**arguments)
    except ModuleNotFoundError:
        with environment.importing_tensorflow():
            lite = _import("tensorflow", path).lite
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"[\s\S]*tf.lite.Interpreter is deprecated", UserWarning)
        return lite.Interpreter(**arguments)


def _tflite_tensor(found: Mapping[str, Any]) -> Tensor:
    # Files without open axes may have no signature of the shape.
    axes = found["shape_signature"] if len(found["shape_signature"]) else found["shape"]
    scale, zero_point = found["quantization"]
    quantization = (float(scale), int(zero_point)) if scale else (1.0, 0)
    shape = tuple(int(axis) if axis > 0 else None for axis in axes)
    return Tensor(found["name"], shape, np.dtype(found["dtype"]), *quantization)


_READERS: dict[str, tuple[str, Callable[[pathlib.Path], ModelFile]]] = {
    ".onnx": ("ONNX Runtime", OnnxFile),
    ".tflite": ("TensorFlow Lite", TFLiteFile),
}


def is_model_file(path: str | os.PathLike[str]) -> bool:
    """Returns True if a path has the suffix of a file that `open_model_file` reads."""
    return pathlib.PurePath(path).suffix.lower() in _READERS


def open_model_file(path: str | os.PathLike[str]) -> ModelFile:
    """Opens an ONNX or TensorFlow Lite file.

    Raises:
      UserError: if there is no such file, its runtime is not installed, or the runtime cannot load
        the file.
    """
    file = _existing(path)
    name, reader = _READERS[file.suffix.lower()]
    try:
        return reader(file)
    except UserError:
        raise
    # Each runtime has its own errors.
    except Exception as error:
        raise UserError(f"{file}: {name} cannot load this file: {first_line(error)}") from error


def run_batch(file: ModelFile, images: np.ndarray, layout: str, channels: str) -> list[np.ndarray]:
    """Returns all outputs of a file, in batches of the number of images that the file takes.

    Args:
      file: the file.
      images: values of the input, in RGB [B, H, W, 3].
      layout: axes of the input, "NCHW" or "NHWC".
      channels: order of the input's channels, "RGB" or "BGR".
    """
    if channels == "BGR":
        images = images[..., ::-1]
    if layout == "NCHW":
        images = images.transpose(0, 3, 1, 2)
    taken = file.inputs[0]
    values = np.ascontiguousarray(taken.encode(images))
    count = taken.shape[0] or len(values)
    parts = []
    for start in range(0, len(values), count):
        part = values[start : start + count]
        missing = count - len(part)
        padded = np.concatenate([part, np.repeat(part[-1:], missing, 0)]) if missing else part
        parts.append([found[: len(part)] for found in file.run(padded)])
    return [np.concatenate(found) for found in zip(*parts, strict=True)]


def channels_last(values: np.ndarray, layout: str) -> np.ndarray:
    """Returns an output as [B, h, w, C]."""
    if layout == "NHW":
        return values[..., None]
    return np.ascontiguousarray(values.transpose(0, 2, 3, 1)) if layout == "NCHW" else values


def digest(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a model file, and of the files beside it that hold its weights.

    Raises:
      UserError: if there is no such file.
    """
    file = _existing(path)
    content = file.read_bytes()
    found = hashlib.sha256(content)
    for other in sorted(file.parent.iterdir()):
        if _external_data(other.name) in content:
            found.update(other.read_bytes())
    return found.hexdigest()


def _external_data(name: str) -> bytes:
    """Returns how an ONNX file names a file beside it that holds weights: {"location": name}."""
    encoded = name.encode()
    return b"\n\x08location\x12" + bytes([min(len(encoded), 255)]) + encoded


def _existing(path: str | os.PathLike[str]) -> pathlib.Path:
    if is_remote(os.fspath(path)):
        raise UserError(f"{path}: ONNX and TensorFlow Lite files must be on a local disk")
    file = pathlib.Path(path)
    if not file.is_file():
        raise UserError(f"{file}: there is no such file")
    return file


def _import(module: str, path: pathlib.Path) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{path}: {module} is not installed, which reads it: {INSTALL}") from error


def _threads() -> int:
    """Returns the number of cores that this process may use, which only Linux reports."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
