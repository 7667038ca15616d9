"""`kdjax.evaluate`, and the images for the calibration of an export."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array

from kdjax.config import RunOptions
from kdjax.data.interface import SegmentationSet
from kdjax.data.run_data import RunData
from kdjax.deployment import ExportedStudent
from kdjax.evaluation import evaluator
from kdjax.evaluation.boundaries import BoundaryScores
from kdjax.evaluation.evaluator import Predictor, TrainedNetwork, order_by_name
from kdjax.evaluation.image_scores import ImageScores
from kdjax.evaluation.inference import Inference, make_inference, padding
from kdjax.experiment.scores import Evaluation, SplitScores
from kdjax.experiment.scoring import inspect, observed_by
from kdjax.experiment.workdir import Workdir
from kdjax.models import Variables
from kdjax.models.options import TeacherOptions
from kdjax.reporting.pictures import rgb_png, side_by_side
from kdjax.reporting.results import Inspected
from kdjax.teachers.loading import comparable, ordered_teacher, reading_bands
from kdjax.training.sharding import MeshOptions, Placement
from kdjax.utils import processes
from kdjax.utils.errors import UserError
from kdjax.utils.files import write_atomically
from kdjax.utils.log import logger

# The option that matches classes by their numbers, for messages.
_ACCEPT = "any_class_names (--any_class_names)"


def evaluate(  # noqa: PLR0913
    workdir: epath.PathLike,
    *,
    split: str | None = None,
    checkpoint: epath.PathLike | None = None,
    exported: str | os.PathLike[str] | None = None,
    data: SegmentationSet | None = None,
    data_dir: str | None = None,
    mode: str = "whole",
    window: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    pad_to: int | None = None,
    any_class_names: bool = False,
    options: Mapping[str, Any] | None = None,
    boundaries: bool = False,
    pictures: str | os.PathLike[str] | None = None,
) -> Evaluation:
    """Evaluates the student of a finished run, or another network on the same data.

    If the run's mesh does not fit the present devices, images are split over all of them. The
    student and the run's teacher compute in their dtypes of the config, and other networks in
    float32.

        kdjax.evaluate("runs/first", split="test", scales=(0.75, 1.0, 1.25), flip=True).miou

    Args:
      workdir: the directory of a run, whose data set is used.
      split: the split; None for the validation split.
      checkpoint: another network to evaluate, such as the teacher.
      exported: a file of `kdjax.export` to evaluate instead, on whole images of its input size.
      data: the data set if the run had an object, or another one with the same classes.
      data_dir: the directory of the run's data set, if it has moved.
      mode: "whole" images, or "slide" for overlapping sliding windows.
      window: height and width of a window; None for the run's crop.
      stride: the distance between windows; None for two thirds of a window.
      scales: the scales of each image, whose probabilities are averaged.
      flip: add the mirror image at each scale.
      pad_to: pads images to multiples of this, so that fewer shapes are compiled. Exact with
        sliding windows, where None means 64. By default, whole images are padded as in the run.
      any_class_names: match classes by their numbers, whatever their names. By default, class
        scores in another order are reordered.
      options: how to read a checkpoint that is a model file, as `config.teacher.options` takes
        them. By default, the run's teacher is read as in the run.
      boundaries: also measure Boundary IoU and boundary F1.
      pictures: a folder for pictures of the images with the lowest mIoU, and, if the run has a
        teacher, of those where student and teacher agree against the label. The result names them.

    Raises:
      UserError: if there is no run or no network, if an option is wrong, or if the network has
        other classes or another input size.
    """
    if exported is not None and (checkpoint or mode != "whole" or flip or tuple(scales) != (1.0,)):
        raise UserError(
            f"{os.fspath(exported)} is evaluated as it is: leave out a checkpoint, windows, scales "
            "and mirror images"
        )
    files = Workdir(workdir)
    run = files.read_options()
    chosen = split or run.data.val_split
    if chosen == run.data.test_split:
        data_dir = data_dir or run.data.test_data_dir
    # Another set may have only the split that is evaluated.
    splits = {"train_split": chosen, "val_split": chosen, "test_split": ""} if data_dir else {}
    placement = _placement(run.mesh)
    shards = placement.batch_shards
    examples = dataclasses.replace(
        run.data,
        data_dir=data_dir or run.data.data_dir,
        test_data_dir="",
        **splits,
        # Blank images fill the last batch and do not count.
        eval_batch_size=-(-run.data.eval_batch_size // shards) * shards,
    )
    images = RunData(examples, data, where=f"{files.config}: config.data")
    inference = make_inference(mode, window, stride, scales, flip, crop_size=examples.crop_size)
    if exported is None:
        network = TrainedNetwork.load(
            str(checkpoint or workdir),
            dtype=_dtype(run, checkpoint),
            inference=inference,
            options=_file_options(run, checkpoint) if options is None else options,
        )
        network.info.require_scores(str(checkpoint or workdir))
        wanted = run.teacher if _is_teacher(run, checkpoint) else TeacherOptions()
        network = reading_bands(network, wanted, images.bands, str(checkpoint or workdir))
        network = network.in_order_of(
            images.class_names,
            where=str(checkpoint or workdir),
            accept=_ACCEPT,
            any_names=any_class_names,
            log=logger.info,
        )
        predictor, variables = network.predictor, network.variables
        num_classes = network.info.num_classes
    else:
        student = ExportedStudent.load(exported)
        names = student.class_names if any_class_names else images.class_names
        predictor, variables = _Exported(student, exported, names), {}
        num_classes = len(student.class_names)
    if num_classes != images.num_classes:
        raise UserError(
            f"the network scores {num_classes} classes, the data set has {images.num_classes}"
        )
    inspected = None
    reference = None
    if pictures is not None:
        inspected = ImageScores(images.num_classes)
        reference = _teacher(run, images, inference, placement)
    outlines = BoundaryScores(images.num_classes) if boundaries else None
    scores = evaluator.evaluate(
        predictor,
        placement.put_state(variables),
        images.eval_batches(
            chosen,
            pad_to=padding(mode, pad_to, whole=examples.eval_pad_to),
            exact_below=inference.exact_below,
        ),
        images.num_classes,
        placement.put_batch,
        reference=reference,
        observe=observed_by(placement, inspected, outlines),
    )
    found = dataclasses.replace(scores, boundaries=outlines)
    evaluation = Evaluation(
        **vars(SplitScores.of(found.as_dict(), images.class_names)),
        split=chosen,
        shapes=len(predictor.shapes),
    )
    if inspected is None or pictures is None:
        return evaluation
    shown = inspect(inspected, images, chosen)
    processes.lead(lambda: _write_pictures(pictures, shown, images.palette))
    worst, disputed = ([image.describe() for image in kind] for kind in shown)
    return dataclasses.replace(evaluation, worst=worst, disputed=disputed)


def _teacher(
    run: RunOptions, images: RunData, inference: Inference, placement: Placement
) -> tuple[Predictor, Variables] | None:
    """Returns the run's teacher and its variables, if the run has one that scores the classes."""
    if not run.teacher.checkpoint:
        return None
    teacher = TrainedNetwork.load(
        run.teacher.checkpoint,
        dtype=run.teacher.dtype,
        inference=inference,
        options=run.teacher.options,
    )
    teacher = reading_bands(teacher, run.teacher, images.bands, run.teacher.checkpoint)
    teacher = comparable(ordered_teacher(teacher, run.teacher, images.class_names), images)
    return teacher and (teacher.predictor, placement.put_state(teacher.variables))


def _write_pictures(folder: str | os.PathLike[str], shown: Inspected, palette: np.ndarray) -> None:
    """Writes image, label, and predictions of each image side by side, as PNG files."""
    for kind, images in shown._asdict().items():
        for number, image in enumerate(images, start=1):
            example = image.example
            picture = side_by_side(example.image, example.label, example.predictions, palette)
            path = epath.Path(folder) / f"{kind}_{number}.png"
            write_atomically(path, rgb_png(picture))


def _placement(mesh: MeshOptions) -> Placement:
    """Returns the run's mesh, or all devices as the data axis if the mesh does not fit them."""
    try:
        return Placement(mesh)
    except UserError as error:
        placement = Placement()
        logger.info(f"{error}; this evaluation uses {placement.describe()}")
        return placement


def _dtype(options: RunOptions, checkpoint: epath.PathLike | None) -> str:
    """Returns the dtype that a network computes in: that of the run, if it belongs to the run."""
    if checkpoint is None:
        return options.student.dtype
    return options.teacher.dtype if _is_teacher(options, checkpoint) else "float32"


def _file_options(options: RunOptions, checkpoint: epath.PathLike | None) -> Mapping[str, Any]:
    """Returns how a model file is read: as in the run, if it is the run's teacher."""
    return options.teacher.options if _is_teacher(options, checkpoint) else {}


def _is_teacher(options: RunOptions, checkpoint: epath.PathLike | None) -> bool:
    return checkpoint is not None and os.fspath(checkpoint) == options.teacher.checkpoint


def calibration_images(
    workdir: epath.PathLike, *, data_dir: str | None = None, count: int = 100
) -> list[np.ndarray]:
    """Returns evenly spread images [H, W, C] of a run's training split, for `kdjax.export`.

    Args:
      workdir: the directory of a run.
      data_dir: the directory of the run's data set, if it has moved.
      count: the largest number of images.

    Raises:
      UserError: if there is no run, or its data set is missing.
    """
    files = Workdir(workdir)
    options = files.read_options().data
    options = dataclasses.replace(options, data_dir=data_dir or options.data_dir)
    images = RunData(options, where=f"{files.config}: config.data")
    return [example["image"] for example in images.spread_examples(options.train_split, count)]


class _Exported:
    """An exported student, called as a `Predictor`.

    Args:
      student: the student.
      path: the path of its file, for messages.
      class_names: the class names of the data, whose order the predictions get.

    Raises:
      UserError: if it predicts as many classes with other names.
    """

    def __init__(
        self, student: ExportedStudent, path: str | os.PathLike[str], class_names: Sequence[str]
    ):
        self._student, self._path = student, os.fspath(path)
        order = None
        if len(student.class_names) == len(class_names):
            order = order_by_name(
                student.class_names, class_names, where=self._path, accept=_ACCEPT, log=logger.info
            )
        # Maps a class number of the file to one of the data.
        self._numbers = order and np.argsort(order)
        self.shapes: set[tuple[int, ...]] = set()

    def __call__(self, variables: Variables, images: Array, sizes: Array) -> Array:
        del variables, sizes
        size, taken = images.shape[1:3], self._student.size
        if images.shape[3] != self._student.channels:
            raise UserError(
                f"{self._path} takes {self._student.channels} bands, and the data set has "
                f"{images.shape[3]}"
            )
        if taken.fixed and size != (taken.height, taken.width):
            raise UserError(
                f"{self._path} takes images of {taken.height} x {taken.width}, and the data set "
                f"has {size[0]} x {size[1]}: export it with --height {size[0]} --width {size[1]}"
            )
        self.shapes.add(images.shape)
        # Through the host, so that images may be on any number of devices.
        pixels = np.asarray(images).astype(self._student.dtype)
        labels = np.asarray(self._student.predict(pixels))
        return jnp.asarray(labels if self._numbers is None else self._numbers[labels])
