"""`kdjax.evaluate` and what it returns."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from etils import epath

from kdjax.data.interface import SegmentationSet
from kdjax.errors import UserError
from kdjax.evaluation import evaluator
from kdjax.evaluation.inference import make_inference, padding
from kdjax.experiments.images import Images
from kdjax.experiments.networks import TrainedNetwork
from kdjax.experiments.workdir import Workdir
from kdjax.library.scores import SplitScores, html_table, percent
from kdjax.training.sharding import Placement


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
        total = f"mIoU {100 * self.miou:.2f} %, pixel accuracy {100 * self.pixel_accuracy:.2f} %"
        return "\n".join([*lines, f"{self.split}: {total}", f"shapes compiled: {self.shapes}"])

    def _repr_html_(self) -> str:
        rows = [("mIoU", self.miou), ("pixel accuracy", self.pixel_accuracy), *self.iou.items()]
        cells = [(name, percent(share)) for name, share in rows]
        return html_table((self.split, "%"), cells)


def evaluate(
    workdir: epath.PathLike,
    *,
    split: str | None = None,
    checkpoint: epath.PathLike | None = None,
    data: SegmentationSet | None = None,
    data_dir: str | None = None,
    mode: str = "whole",
    window: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    pad_to: int | None = None,
) -> Evaluation:
    """Evaluates the student of a finished run, or another network on the same data.

        kdjax.evaluate("runs/first", split="test", scales=(0.75, 1.0, 1.25), flip=True).miou

    Args:
      workdir: of `kdjax.train`, whose data set is evaluated on.
      split: which split; None for the one for validation.
      checkpoint: another network to evaluate, such as the teacher.
      data: the examples where the run was given an object, or others with the same classes.
      data_dir: where the run's data set is now, if that is no longer where it was.
      mode: "whole" images, or "slide" for sliding windows that overlap.
      window: of sliding windows, height and width; None for the run's crop.
      stride: from one window to the next; None for two thirds of them.
      scales: sizes at which each image is seen; probabilities are averaged.
      flip: see the mirror image at each scale, too.
      pad_to: pads images to multiples of this, so that fewer shapes are compiled. Exact with
        sliding windows, where None means 64; whole images are padded as the run's config says.

    Raises:
      UserError: where there is no run or no network, for options that make no sense, and for a
        network of other classes.
    """
    files = Workdir(workdir)
    config = files.read_config()
    config.data.data_dir = data_dir or config.data.data_dir
    images = Images(config.data, data, where=f"{files.config}: config.data")
    chosen = split or config.data.val_split
    inference = make_inference(mode, window, stride, scales, flip, crop_size=config.data.crop_size)
    network = TrainedNetwork.load(str(checkpoint or workdir), inference=inference)
    if network.info.num_classes != images.num_classes:
        raise UserError(
            f"the network scores {network.info.num_classes} classes, the data set has "
            f"{images.num_classes}"
        )
    placement = Placement(config.mesh)
    placement.check_batch_size("data.eval_batch_size", config.data.eval_batch_size)
    scores = evaluator.evaluate(
        network.predictor,
        placement.put_state(network.variables),
        images.eval_batches(
            chosen,
            pad_to=padding(mode, pad_to, whole=config.data.eval_pad_to),
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
        shapes=len(network.predictor.shapes),
    )
