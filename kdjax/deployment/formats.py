"""The export formats, and the function from images to predictions that each file contains."""

import hashlib
import importlib
import logging
import os
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
from jax import export
from jax.extend import core
from jax.interpreters import partial_eval
from jaxtyping import Array, Float, Int, Shaped

from kdjax.evaluation.evaluator import Predictor
from kdjax.models import Network, Preprocessing, Variables
from kdjax.utils import environment
from kdjax.utils.bands import RGB, Bands
from kdjax.utils.errors import UserError, first_line

# JAX arrays while a function is traced, NumPy arrays for a loaded file.
Images = Shaped[Array, "B H W C"] | Shaped[np.ndarray, "B H W C"]
Labels = Int[Array, "B H W"] | Int[np.ndarray, "B H W"]
Scores = Float[Array, "B H W K"] | Float[np.ndarray, "B H W K"]
# What a file returns: class ids, class scores (logits), or their softmax.
Returned = Literal["labels", "scores", "probabilities"]
RETURNED: tuple[str, ...] = get_args(Returned)
PredictFn = Callable[[Images], Any]  # to `Labels`, or to `Scores`


class Size(NamedTuple):
    """Height and width of the images; both are None for any size."""

    height: int | None
    width: int | None

    @property
    def fixed(self) -> bool:
        """True if images must have this size."""
        return self.height is not None

    def symbolic(self, channels: int) -> str:
        """Returns the input's shape in JAX's notation, with an open batch."""
        sides = f"{self.height}, {self.width}" if self.fixed else "h, w"
        return f"(b, {sides}, {channels})"

    def or_else(self, default: tuple[int, int]) -> tuple[int, int]:
        """Returns height and width, or `default` for any size."""
        return self.height or default[0], self.width or default[1]


ANY = Size(None, None)
LARGEST = 8192  # pixels, of the height and width of images
PLATFORMS = ("cpu", "cuda", "tpu")
DESCRIPTION = "export.json"  # in the folder of the files


def make_predict_fn(
    network: Network,
    variables: Variables,
    preprocessing: Preprocessing,
    returned: Returned = "labels",
) -> PredictFn:
    """Returns a function with the result of `Predictor`, which contains the weights it needs.

    Args:
      network: the network.
      variables: the variables of the network.
      preprocessing: turns pixels into the network's input.
      returned: what the function returns, at the size of the images.
    """
    predictor = Predictor(network, preprocessing)

    def probabilities(variables: Variables, images: Images) -> Scores:
        return jax.nn.softmax(predictor.scores(variables, images))

    function: Callable[..., Any] = {
        "labels": predictor,
        "scores": predictor.scores,
        "probabilities": probabilities,
    }[returned]

    def predict_fn(images: Images) -> Any:
        shape = jax.ShapeDtypeStruct(images.shape, images.dtype)
        program = jax.make_jaxpr(function)(variables, shape)
        # Removes the auxiliary head and everything else that the result does not depend on.
        needed, used = partial_eval.dce_jaxpr(program.jaxpr, [True])
        given = (*jax.tree.leaves(variables), images)
        read = [value for value, needs in zip(given, used, strict=True) if needs]
        return core.jaxpr_as_fun(core.ClosedJaxpr(needed, program.consts))(*read)[0]

    return predict_fn


def labels_of(predict_fn: PredictFn, returned: Returned) -> PredictFn:
    """Returns a function of a loaded file to class ids."""
    if returned == "labels":
        return predict_fn
    return lambda images: np.asarray(predict_fn(images)).argmax(-1).astype(np.int32)


def _input(size: Size, bands: Bands) -> jax.ShapeDtypeStruct:
    shape = export.symbolic_shape(size.symbolic(bands.channels))
    return jax.ShapeDtypeStruct(shape, bands.dtype)


def takes_any_size(predict_fn: PredictFn, bands: Bands = RGB) -> bool:
    """Returns True if JAX can trace the function without knowing the height and width.

    Adaptive pooling (PSPNet, UPerNet) and window attention (Swin) compute array sizes from the
    image's size in Python.
    """
    try:
        jax.eval_shape(predict_fn, _input(ANY, bands))
    # `range` and NumPy raise the first if they get a symbol, comparisons the second.
    except (TypeError, jax.errors.InconclusiveDimensionOperation):
        return False
    return True


def write_stablehlo(
    predict_fn: PredictFn,
    size: Size,
    path: pathlib.Path,
    *,
    bands: Bands = RGB,
    returned: Returned = "labels",
) -> None:
    """Writes the serialized function, whose result has no name."""
    del returned
    images = _input(size, bands)
    path.write_bytes(export.export(jax.jit(predict_fn), platforms=PLATFORMS)(images).serialize())


def read_stablehlo(path: pathlib.Path) -> PredictFn:
    """Loads a file of `write_stablehlo`."""
    return jax.jit(export.deserialize(bytearray(path.read_bytes())).call)


def import_tensorflow() -> Any:
    """Imports TensorFlow without accelerators, which JAX uses.

    Raises:
      UserError: if TensorFlow is not installed.
    """
    try:
        with environment.importing_tensorflow():
            import tensorflow as tf
    except ImportError as error:
        raise UserError(
            'the formats savedmodel and tflite need TensorFlow: pip install "kdjax[export]"'
        ) from error
    # TensorFlow's own interpreter saves a dependency on its successor, ai-edge-litert.
    warnings.filterwarnings("ignore", r"[\s\S]*tf.lite.Interpreter is deprecated", UserWarning)
    tf.config.set_visible_devices([], "GPU")
    tf.config.set_visible_devices([], "TPU")
    return tf


def write_savedmodel(
    predict_fn: PredictFn,
    size: Size,
    path: pathlib.Path,
    *,
    batch: int | None = None,
    platforms: Sequence[str] = PLATFORMS,
    bands: Bands = RGB,
    returned: Returned = "labels",
) -> None:
    """Writes a folder with one signature, which takes `images` and has one result.

    Args:
      predict_fn: the function.
      size: the size of the images.
      path: the folder.
      batch: the number of images; None for any number.
      platforms: the platforms that the function can run on.
      bands: the bands of the images.
      returned: the name of the result.
    """
    tf = import_tensorflow()
    from jax.experimental import jax2tf

    converted = jax2tf.convert(
        predict_fn,
        polymorphic_shapes=[size.symbolic(bands.channels)] if batch is None else None,
        with_gradient=False,
        native_serialization_platforms=platforms,
    )

    def predict(images: Any) -> dict[str, Any]:
        return {returned: converted(images)}

    images = tf.TensorSpec([batch, *size, bands.channels], bands.dtype, name="images")
    # autograph would rewrite Python code that JAX traces.
    function = tf.function(predict, input_signature=[images], autograph=False)
    try:
        tf.saved_model.save(tf.Module(), str(path), signatures={"serving_default": function})
    # Also raised on a full disk: "PATH; the system's message [Op:SaveV2]".
    except tf.errors.OpError as error:
        raise OSError(error.message.rpartition("; ")[2].partition(" [Op:")[0]) from error


def read_savedmodel(path: pathlib.Path) -> PredictFn:
    """Loads a folder of `write_savedmodel`."""
    tf = import_tensorflow()
    # The model must live as long as its signature.
    model = tf.saved_model.load(str(path))
    run = model.signatures["serving_default"]
    return lambda images: _only(run(images=tf.constant(images))).numpy()


def write_tflite(
    predict_fn: PredictFn,
    size: Size,
    path: pathlib.Path,
    *,
    calibration: Iterable[np.ndarray] | None = None,
    bands: Bands = RGB,
    returned: Returned = "labels",
) -> None:
    """Writes a file for one image of a fixed size at a time.

    The file computes in float32, or in int8 with ranges from calibration images [H, W, C].

    Raises:
      UserError: if TensorFlow Lite has no operation that the network needs.
    """
    tf = import_tensorflow()
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        # The converter needs StableHLO for one platform and known shapes.
        folder = pathlib.Path(scratch)
        write_savedmodel(
            predict_fn,
            size,
            folder,
            batch=1,
            platforms=("cpu",),
            bands=bands,
            returned=returned,
        )
        converter = tf.lite.TFLiteConverter.from_saved_model(scratch)
        # Excludes TensorFlow's own operations, which a plain runtime lacks.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if calibration is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.representative_dataset = lambda: (
                {"images": image[None]} for image in calibration
            )
        try:
            content = converter.convert()
        except Exception as error:  # the converter's error class is not public
            raise UserError(
                f"tflite: this network cannot be converted: {first_line(error)}"
            ) from error
    path.write_bytes(content)


def read_tflite(path: pathlib.Path) -> PredictFn:
    """Loads a file of `write_tflite`, and runs a batch image by image."""
    tf = import_tensorflow()
    interpreter = tf.lite.Interpreter(model_path=str(path))
    run = interpreter.get_signature_runner()
    return lambda images: np.concatenate([_only(run(images=image[None])) for image in images])


def _only(results: Mapping[str, Any]) -> Any:
    """Returns the only result of a signature, whatever its name."""
    (result,) = results.values()
    return result


def write_onnx(
    predict_fn: PredictFn,
    size: Size,
    path: pathlib.Path,
    *,
    bands: Bands = RGB,
    returned: Returned = "labels",
) -> None:
    """Writes an ONNX file.

    Raises:
      UserError: if jax2onnx is not installed, or cannot convert the network.
    """
    images = _input(size, bands)
    # Traced first, because the converter replaces Flax's layers and fails on dropout.
    program = jax.make_jaxpr(predict_fn)(images)
    to_onnx = _import("jax2onnx").to_onnx
    # The converter imports and warns of many modules, including its own examples.
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = to_onnx(
                lambda images: core.jaxpr_as_fun(program)(images)[0],
                [images],
                model_name="student",
                input_names=["images"],
                output_names=[returned],
            )
    except Exception as error:  # the converter has no error class for missing rules
        wish = "" if size.fixed else " for images of any size (give --height and --width)"
        raise UserError(
            f"onnx: this network cannot be converted{wish}: {first_line(error)}"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    path.write_bytes(model.SerializeToString())


def read_onnx(path: pathlib.Path) -> PredictFn:
    """Loads a file of `write_onnx`, on the CPU."""
    runtime = _import("onnxruntime")
    options = runtime.SessionOptions()
    # One thread per core that this process may use, which only Linux reports.
    if hasattr(os, "sched_getaffinity"):
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": np.asarray(images)})[0]


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{module} is not installed, which the format onnx needs: "
            'pip install "kdjax[onnx]" && pip install --no-deps jax2onnx==0.17.1'
        ) from error


class Format(NamedTuple):
    """Writes and loads one export format.

    Attributes:
      file: the file's name in the output directory.
      write: writes a function for images of a size.
      read: loads the function, which then takes NumPy arrays.
      flexible: True if the file takes batches of any number and, if the network allows it, size.
      plain: True to write only operations that runtimes other than XLA know.
      keeps_size: True to use a given size even if the network allows any.
      calibrated: True if `write` takes calibration images.
    """

    file: str
    write: Callable[..., None]
    read: Callable[[pathlib.Path], PredictFn]
    flexible: bool = True
    plain: bool = False
    keeps_size: bool = False
    calibrated: bool = False

    def input_shape(self, size: Size, channels: int = 3) -> list[int | None]:
        """Returns the shape of the images, with None for open sides."""
        return [None if self.flexible else 1, *size, channels]


FORMATS = {
    "stablehlo": Format("student.stablehlo", write_stablehlo, read_stablehlo),
    "savedmodel": Format("savedmodel", write_savedmodel, read_savedmodel),
    "tflite": Format("student.tflite", write_tflite, read_tflite, flexible=False, plain=True),
    "tflite_int8": Format(
        "student_int8.tflite", write_tflite, read_tflite, False, plain=True, calibrated=True
    ),
    "onnx": Format("student.onnx", write_onnx, read_onnx, plain=True, keeps_size=True),
}


def files_of(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns an exported file itself, or the files in the folder of a SavedModel."""
    return [file for file in sorted((path, *path.rglob("*"))) if file.is_file()]


def digest(path: pathlib.Path) -> str:
    """Returns the SHA-256 of an exported file, or of the names and files of a SavedModel."""
    found = hashlib.sha256()
    for file in files_of(path):
        found.update(f"{file.relative_to(path)}\n{file.stat().st_size}\n".encode())
        found.update(file.read_bytes())
    return found.hexdigest()
