"""The formats of exported students, and the function from images to labels that each holds."""

import hashlib
import importlib
import json
import logging
import os
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.extend import core
from jax.interpreters import partial_eval
from jaxtyping import Array, Int, UInt8

from kdjax.evaluation.evaluator import Predictor
from kdjax.models import Network, Preprocessing, Variables
from kdjax.utils import environment
from kdjax.utils.errors import UserError


def import_tensorflow() -> Any:
    """Imports TensorFlow.

    Raises:
      UserError: where it is not installed.
    """
    environment.set_up_tensorflow()
    try:
        import tensorflow as tf
    except ImportError as error:
        raise UserError(
            'the formats savedmodel and tflite need TensorFlow: pip install "kdjax[export]"'
        ) from error
    # It moves to a package of its own, ai-edge-litert; this one is at hand.
    warnings.filterwarnings("ignore", r"[\s\S]*tf.lite.Interpreter is deprecated", UserWarning)
    # JAX has the accelerators.
    tf.config.set_visible_devices([], "GPU")
    tf.config.set_visible_devices([], "TPU")
    return tf


# JAX traces it; what is loaded from a file takes and returns NumPy arrays.
Images = UInt8[Array, "B H W 3"] | UInt8[np.ndarray, "B H W 3"]
Labels = Int[Array, "B H W"] | Int[np.ndarray, "B H W"]
PredictFn = Callable[[Images], Labels]


class Size(NamedTuple):
    """Height and width of the images, or None twice where any size will do."""

    height: int | None
    width: int | None

    @property
    def fixed(self) -> bool:
        """Whether images must have this size."""
        return self.height is not None

    @property
    def symbolic(self) -> str:
        """The input's shape as JAX writes it, with the batch open."""
        return f"(b, {self.height}, {self.width}, 3)" if self.fixed else "(b, h, w, 3)"


ANY = Size(None, None)
LARGEST = 8192  # pixels, of the height and width of images


def make_predict_fn(
    network: Network, variables: Variables, preprocessing: Preprocessing
) -> PredictFn:
    """Returns what `Predictor` computes, with those weights inside that it needs.

    Args:
      network: the network.
      variables: its arrays.
      preprocessing: how pixels become its input.
    """
    predictor = Predictor(network, preprocessing)

    def predict_fn(images: Images) -> Labels:
        shape = jax.ShapeDtypeStruct(images.shape, images.dtype)
        program = jax.make_jaxpr(predictor)(variables, shape)
        # What predicting does not need, as an auxiliary head, is not to be written.
        needed, used = partial_eval.dce_jaxpr(program.jaxpr, [True])
        given = (*jax.tree.leaves(variables), images)
        read = [value for value, needs in zip(given, used, strict=True) if needs]
        return core.jaxpr_as_fun(core.ClosedJaxpr(needed, program.consts))(*read)[0]

    return predict_fn


def takes_any_size(predict_fn: PredictFn) -> bool:
    """Whether JAX can trace the function without knowing the height and width.

    Adaptive pooling (PSPNet, UPerNet) and window attention (Swin) build arrays whose sizes are
    computed from the image's, in Python.
    """
    shape = export.symbolic_shape(ANY.symbolic)
    try:
        jax.eval_shape(predict_fn, jax.ShapeDtypeStruct(shape, jnp.uint8))
    # What asks for a number where there is a symbol: `range` and NumPy raise the first, comparisons
    # the second.
    except (TypeError, jax.errors.InconclusiveDimensionOperation):
        return False
    return True


PLATFORMS = ("cpu", "cuda", "tpu")


def write_stablehlo(predict_fn: PredictFn, size: Size, path: pathlib.Path) -> None:
    """Writes the serialised function."""
    images = jax.ShapeDtypeStruct(export.symbolic_shape(size.symbolic), jnp.uint8)
    path.write_bytes(export.export(jax.jit(predict_fn), platforms=PLATFORMS)(images).serialize())


def read_stablehlo(path: pathlib.Path) -> PredictFn:
    """Loads it."""
    return jax.jit(export.deserialize(bytearray(path.read_bytes())).call)


def write_savedmodel(
    predict_fn: PredictFn,
    size: Size,
    path: pathlib.Path,
    *,
    batch: int | None = None,
    platforms: Sequence[str] = PLATFORMS,
) -> None:
    """Writes the folder; its one signature takes `images` and returns `labels`.

    Args:
      predict_fn: what is written.
      size: of the images.
      path: the folder.
      batch: how many images it takes at once; None leaves it open.
      platforms: where it can run.
    """
    tf = import_tensorflow()
    from jax.experimental import jax2tf

    converted = jax2tf.convert(
        predict_fn,
        polymorphic_shapes=[size.symbolic] if batch is None else None,
        with_gradient=False,
        native_serialization_platforms=platforms,
    )

    def labels(images: Any) -> dict[str, Any]:
        return {"labels": converted(images)}

    images = tf.TensorSpec([batch, *size, 3], tf.uint8, name="images")
    # autograph would rewrite Python that JAX has to trace as it is.
    function = tf.function(labels, input_signature=[images], autograph=False)
    try:
        tf.saved_model.save(tf.Module(), str(path), signatures={"serving_default": function})
    # TensorFlow's own, also where a disk is full: "PATH; what the system says [Op:SaveV2]".
    except tf.errors.OpError as error:
        raise OSError(error.message.rpartition("; ")[2].partition(" [Op:")[0]) from error


def read_savedmodel(path: pathlib.Path) -> PredictFn:
    """Loads it."""
    tf = import_tensorflow()
    # The signature lives no longer than the model that it comes from.
    model = tf.saved_model.load(str(path))
    return lambda images: model.signatures["serving_default"](images=tf.constant(images))[
        "labels"
    ].numpy()


def write_tflite(
    predict_fn: PredictFn,
    size: Size,
    path: pathlib.Path,
    *,
    calibration: Iterable[np.ndarray] | None = None,
) -> None:
    """Writes the file, for one image of the fixed size at a time.

    It computes in float32, or in int8 where images [H, W, 3] for calibration give the ranges.

    Raises:
      UserError: where the network needs an operation that TensorFlow Lite does not have.
    """
    tf = import_tensorflow()
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        # The converter takes StableHLO for one platform and of known shapes only.
        write_savedmodel(predict_fn, size, pathlib.Path(scratch), batch=1, platforms=("cpu",))
        converter = tf.lite.TFLiteConverter.from_saved_model(scratch)
        # Without TensorFlow's own operations, which a runtime would have to bring.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if calibration is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.representative_dataset = lambda: (
                {"images": image[None]} for image in calibration
            )
        try:
            content = converter.convert()
        except Exception as error:  # its own class is not public
            raise UserError(
                f"tflite: this network cannot be converted: {_reason(error)}"
            ) from error
    path.write_bytes(content)


def read_tflite(path: pathlib.Path) -> PredictFn:
    """Loads it; a batch is run image by image."""
    tf = import_tensorflow()
    interpreter = tf.lite.Interpreter(model_path=str(path))
    run = interpreter.get_signature_runner()
    return lambda images: np.concatenate([run(images=image[None])["labels"] for image in images])


def write_onnx(predict_fn: PredictFn, size: Size, path: pathlib.Path) -> None:
    """Writes the file.

    Raises:
      UserError: where jax2onnx is missing, or cannot convert the network.
    """
    images = jax.ShapeDtypeStruct(export.symbolic_shape(size.symbolic), jnp.uint8)
    # The converter replaces Flax's layers while it traces, and fails on dropout: it sees none.
    program = jax.make_jaxpr(predict_fn)(images)
    to_onnx = _import("jax2onnx").to_onnx
    # It warns of all that it imports, as of its own examples.
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = to_onnx(
                lambda images: core.jaxpr_as_fun(program)(images)[0],
                [images],
                model_name="student",
                input_names=["images"],
                output_names=["labels"],
            )
    except Exception as error:  # it may say in any way what it has no rule for
        wish = "" if size.fixed else " for images of any size (give --height and --width)"
        raise UserError(
            f"onnx: this network cannot be converted{wish}: {_reason(error)}"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    path.write_bytes(model.SerializeToString())


def read_onnx(path: pathlib.Path) -> PredictFn:
    """Loads it, for the CPU."""
    runtime = _import("onnxruntime")
    options = runtime.SessionOptions()
    # More threads than the process may use cores wait for each other; Linux alone knows.
    if hasattr(os, "sched_getaffinity"):
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["labels"], {"images": np.asarray(images)})[0]


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{module} is not installed, which the format onnx needs: "
            'pip install "kdjax[onnx]" && pip install --no-deps jax2onnx==0.17.1'
        ) from error


class Format(NamedTuple):
    """How a function is written and loaded again.

    Attributes:
      file: what it is called in the output directory.
      write: writes a function for images of a size.
      read: loads it, as a function of NumPy arrays.
      flexible: whether batch and, where the network allows it, image size stay open.
      plain: whether it is written in operations that other runtimes than XLA know.
      keeps_size: whether images must have a size that is given, where any would do.
      calibrated: whether writing takes images for calibration.
    """

    file: str
    write: Callable[..., None]
    read: Callable[[pathlib.Path], PredictFn]
    flexible: bool = True
    plain: bool = False
    keeps_size: bool = False
    calibrated: bool = False

    def input_shape(self, size: Size) -> list[int | None]:
        """The shape of the images, with None for what is open."""
        return [None if self.flexible else 1, *size, 3]


FORMATS = {
    "stablehlo": Format("student.stablehlo", write_stablehlo, read_stablehlo),
    "savedmodel": Format("savedmodel", write_savedmodel, read_savedmodel),
    "tflite": Format("student.tflite", write_tflite, read_tflite, flexible=False, plain=True),
    "tflite_int8": Format(
        "student_int8.tflite", write_tflite, read_tflite, False, plain=True, calibrated=True
    ),
    "onnx": Format("student.onnx", write_onnx, read_onnx, plain=True, keeps_size=True),
}

# Beside the files; what a program that runs one has to know.
DESCRIPTION = "export.json"


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


class ExportedStudent(NamedTuple):
    """A file that `kdjax.export` wrote, as other programs run it.

    Attributes:
      predict: from 8-bit RGB images to class ids.
      size: of the images that it takes.
      class_names: a name per class.
    """

    predict: PredictFn
    size: Size
    class_names: tuple[str, ...]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ExportedStudent":
        """Loads a file by its name and the description beside it.

        A runtime may crash on a damaged file, so the file's digest is compared first.

        Raises:
          UserError: when there is no such file, the description is missing or wrong, the file is
            not the one that was exported, or its runtime cannot load it.
        """
        file = pathlib.Path(path)
        found = {chosen.file: name for name, chosen in FORMATS.items()}
        if file.name not in found or not file.exists():
            raise UserError(
                f"{file}: no exported student; name one of the files {', '.join(found)} that "
                "kdjax.export wrote"
            )
        name, beside = found[file.name], file.with_name(DESCRIPTION)
        try:
            description = json.loads(beside.read_text(encoding="utf-8"))
            written, class_names = description["exports"][name], description["class_names"]
            *_, height, width, _ = written["input_shape"]
            sizes = () if height is width is None else (height, width)
            if not all(type(size) is int and 0 < size <= LARGEST for size in sizes):
                raise ValueError("a size out of its range")
            if not class_names or not all(isinstance(name, str) for name in class_names):
                raise ValueError("no class names")
            same = written["sha256"] == digest(file)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{beside}: it must lie beside {file.name}, as kdjax.export wrote both"
            ) from error
        if not same:
            raise UserError(
                f"{file}: this is not the file that {beside} describes; export the student again"
            )
        try:
            run = FORMATS[name].read(file)
        except UserError:
            raise
        # Each runtime raises errors of its own, for example on a file of another version.
        except Exception as error:
            raise UserError(f"{file}: this file cannot be loaded: {_reason(error)}") from error

        def predict(images: Images) -> Labels:
            try:
                return run(images)
            except Exception as error:
                shape = list(images.shape)
                raise UserError(f"{file}: it fails on images {shape}: {_reason(error)}") from error

        return cls(predict, Size(height, width), tuple(class_names))


def _reason(error: Exception) -> str:
    """Returns the first line of what a library raised."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
