"""`kdjax.evaluate` and `kdjax.predict`, and what they return."""

import dataclasses
import html
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array

from kdjax.config import RunOptions, read
from kdjax.data.images import Images
from kdjax.data.interface import SegmentationSet
from kdjax.data.preparing.classes import original_labels
from kdjax.deployment import ExportedStudent
from kdjax.evaluation import evaluator
from kdjax.evaluation.evaluator import TrainedNetwork, order_by_name
from kdjax.evaluation.inference import make_inference, padding
from kdjax.evaluation.predict_files import Timing, find_images, predict_files
from kdjax.experiment.workdir import Workdir
from kdjax.models import Variables
from kdjax.training.sharding import MeshOptions, Placement
from kdjax.utils import schema
from kdjax.utils.classes import of_one_class
from kdjax.utils.errors import UserError
from kdjax.utils.log import logger

# The setting that takes classes by number, for messages.
_ACCEPT = "any_class_names (--any_class_names)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitScores:
    """What a network scored on a split: shares of one, 0 to 1, NaN where nothing is to be scored.

    Attributes:
      miou: mean of the IoU over the classes that occur.
      pixel_accuracy: share of the labelled pixels that are right.
      iou: intersection over union by class name.
      agreement: share of the labelled pixels on which student and teacher agree; None without a
        teacher.
    """

    miou: float
    pixel_accuracy: float
    iou: Mapping[str, float]
    agreement: float | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any], class_names: Sequence[str]) -> "SplitScores":
        """From what `kdjax.evaluation.evaluator.Scores.as_dict` returns, as a workdir holds it."""
        known = [math.nan if iou is None else iou for iou in values["iou"]]
        miou, accuracy = (
            math.nan if values[key] is None else values[key] for key in ("miou", "pixel_accuracy")
        )
        return cls(
            miou=miou,
            pixel_accuracy=accuracy,
            iou=dict(zip(class_names, known, strict=True)),
            agreement=values["agreement"],
        )

    def to_dict(self) -> dict[str, Any]:
        """The scores by name, as JSON holds them: None stands for NaN."""
        return {
            "miou": _known(self.miou),
            "pixel_accuracy": _known(self.pixel_accuracy),
            "agreement": self.agreement,
            "iou": {name: _known(iou) for name, iou in self.iou.items()},
        }


def _known(share: float) -> float | None:
    return None if math.isnan(share) else share


def percent(share: float | None) -> str:
    """A share of one in percent; a dash where it is not known."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.2f}"


def html_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table as notebooks show it, the first cell of each row as its name."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    lines = []
    for first, *others in rows:
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in others)
        lines.append(f"<tr><th>{html.escape(first)}</th>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(SplitScores):
    """The scores of a network on a split, as a table in a notebook and when printed.

    Attributes:
      split: which one.
      shapes: for how many shapes of images the network was compiled.
    """

    split: str
    shapes: int

    def to_dict(self) -> dict[str, Any]:
        """The split and the scores by name, as JSON holds them: None stands for NaN."""
        return {"split": self.split, **super().to_dict()}

    def __str__(self) -> str:
        width = max(map(len, self.iou))
        lines = [f"{name:{width}}  {100 * iou:6.2f} %" for name, iou in self.iou.items()]
        total = f"mIoU {100 * self.miou:.2f} %{of_one_class([*self.iou.values()])}"
        accuracy = f"pixel accuracy {100 * self.pixel_accuracy:.2f} %"
        return "\n".join([*lines, f"{self.split}: {total}, {accuracy}"])

    def _repr_html_(self) -> str:
        remark = of_one_class([*self.iou.values()])
        rows = [
            (f"mIoU{remark}", self.miou),
            ("pixel accuracy", self.pixel_accuracy),
            *self.iou.items(),
        ]
        cells = [(name, percent(share)) for name, share in rows]
        return html_table((self.split, "%"), cells)


def evaluate(
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
) -> Evaluation:
    """Evaluates the student of a finished run, or another network on the same data.

    The run may have trained on other devices: where its mesh does not fit, images are split over
    all devices. The student computes in its dtype, `config.student.dtype`, and so does the run's
    teacher; other networks compute in float32.

        kdjax.evaluate("runs/first", split="test", scales=(0.75, 1.0, 1.25), flip=True).miou

    Args:
      workdir: of `kdjax.train`, whose data set is evaluated on.
      split: which split; None for the one for validation.
      checkpoint: another network to evaluate, such as the teacher.
      exported: a file of `kdjax.export` to evaluate in its place, as other programs run it: on
        whole images, at the size that it takes.
      data: the examples where the run was given an object, or others with the same classes.
      data_dir: where the run's data set is now, if that is no longer where it was.
      mode: "whole" images, or "slide" for sliding windows that overlap.
      window: of sliding windows, height and width; None for the run's crop.
      stride: from one window to the next; None for two thirds of them.
      scales: sizes at which each image is seen; probabilities are averaged.
      flip: see the mirror image at each scale, too.
      pad_to: pads images to multiples of this, so that fewer shapes are compiled. Exact with
        sliding windows, where None means 64; whole images are padded as the run's config says.
      any_class_names: take the network's classes by their numbers, whatever their names. By default
        class scores in another order are brought into that of the data.

    Raises:
      UserError: if there is no run or no network, for options that make no sense, and for a network
        of other classes or another size.
    """
    if exported is not None and (checkpoint or mode != "whole" or flip or tuple(scales) != (1.0,)):
        raise UserError(
            f"{os.fspath(exported)} is evaluated as it is: leave out a checkpoint, windows, scales "
            "and mirror images"
        )
    files = Workdir(workdir)
    options = read(files.read_config())
    placement = _placement(options.mesh)
    shards = placement.batch_shards
    examples = dataclasses.replace(
        options.data,
        data_dir=data_dir or options.data.data_dir,
        # Blank images fill a batch up, and count for nothing.
        eval_batch_size=-(-options.data.eval_batch_size // shards) * shards,
    )
    images = Images(examples, data, where=f"{files.config}: config.data")
    chosen = split or examples.val_split
    inference = make_inference(mode, window, stride, scales, flip, crop_size=examples.crop_size)
    if exported is None:
        network = TrainedNetwork.load(
            str(checkpoint or workdir), dtype=_dtype(options, checkpoint), inference=inference
        )
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
        wanted = student.class_names if any_class_names else images.class_names
        predictor, variables = _Exported(student, exported, wanted), {}
        num_classes = len(student.class_names)
    if num_classes != images.num_classes:
        raise UserError(
            f"the network scores {num_classes} classes, the data set has {images.num_classes}"
        )
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
    )
    return Evaluation(
        split=chosen,
        miou=scores.miou,
        pixel_accuracy=scores.pixel_accuracy,
        iou={name: float(iou) for name, iou in zip(images.class_names, scores.iou, strict=True)},
        shapes=len(predictor.shapes),
    )


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
    is_teacher = os.fspath(checkpoint) == options.teacher.checkpoint
    return options.teacher.dtype if is_teacher else "float32"


def calibration_images(
    workdir: epath.PathLike, *, data_dir: str | None = None, count: int = 100
) -> list[np.ndarray]:
    """Images [H, W, 3] of a run's training split, evenly spread, as `kdjax.export` takes them.

    Args:
      workdir: of `kdjax.train`.
      data_dir: where the run's data set is now, if that is no longer where it was.
      count: how many at most.

    Raises:
      UserError: where there is no run, or its data set is not there.
    """
    files = Workdir(workdir)
    options = read(files.read_config()).data
    options = dataclasses.replace(options, data_dir=data_dir or options.data_dir)
    images = Images(options, where=f"{files.config}: config.data")
    return [example["image"] for example in images.spread_examples(options.train_split, count)]


class _Exported:
    """An exported student, called as a `Predictor`.

    Args:
      student: the student.
      path: of its file, for messages.
      class_names: of the data, into whose order its classes are brought.

    Raises:
      UserError: if it predicts as many classes, of other names.
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
        # From the file's number of a class to that of the data.
        self._numbers = order and np.argsort(order)
        self.shapes: set[tuple[int, ...]] = set()

    def __call__(self, variables: Variables, images: Array, sizes: Array) -> Array:
        del variables, sizes
        size, taken = images.shape[1:3], self._student.size
        if taken.fixed and size != taken:
            raise UserError(
                f"{self._path} takes images of {taken.height} x {taken.width}, and the data set "
                f"has {size[0]} x {size[1]}: export it with --height {size[0]} --width {size[1]}"
            )
        self.shapes.add(images.shape)
        # From the host on, it goes with images on any number of devices.
        labels = np.asarray(self._student.predict(np.asarray(images)))
        return jnp.asarray(labels if self._numbers is None else self._numbers[labels])


def predict(
    workdir: epath.PathLike,
    images: str,
    output: str | os.PathLike[str],
    *,
    ids: str | None = None,
    opacity: float = 0.5,
    batch_size: int | None = None,
    overwrite: bool = False,
    mode: str = "whole",
    window: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    pad_to: int | None = None,
) -> Timing:
    """Labels image files with a finished student, or any network checkpoint.

    Writes `labels/*.png` (class numbers, with a palette), `overlays/*.png` and `legend.png`. Photos
    are turned as their camera noted. Without TensorFlow. For arrays, see `kdjax.load`.

        print(kdjax.predict("runs/first", "photos/**/*.jpg", "labelled"))

    Args:
      workdir: of `kdjax.train`, or a network checkpoint.
      images: a folder, whose own image files are labelled, or a pattern of paths, in which `**`
        stands for any folders.
      output: the folder to write to.
      ids: write the original ids of this data set, as "cityscapes", and not class numbers.
      opacity: of the colours over the image, 0 to 1.
      batch_size: images labelled at once; None for one on every device.
      overwrite: replace results that are there already; an image never is.
      mode: as `kdjax.evaluate` takes it, and so are the following.
      window: likewise.
      stride: likewise.
      scales: likewise.
      flip: likewise.
      pad_to: likewise; whole images are not padded unless asked for.

    Returns:
      How many images were labelled, and what it took.

    Raises:
      UserError: where there is no network or no image, for options that make no sense, and when
        something would be replaced. Images that are damaged are named when all others are done.
    """
    schema.check_number("opacity", opacity, schema.SHARE)
    if batch_size is not None:
        schema.check_number("batch_size", batch_size, schema.COUNT)
    files = Workdir(workdir)
    crop_size = files.read_config().data.crop_size if files.config.exists() else None
    inference = make_inference(mode, window, stride, scales, flip, crop_size=crop_size)
    values = None if ids is None else original_labels(ids)
    found = find_images(images, os.fspath(output), overwrite=overwrite)
    return predict_files(
        TrainedNetwork.load(str(workdir), inference=inference),
        found,
        os.fspath(output),
        batch_size=batch_size or Placement().mesh.size,
        pad_to=padding(mode, pad_to, whole=1),
        values=values,
        opacity=opacity,
    )
