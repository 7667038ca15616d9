"""A scene of `shapes` with the outputs of two networks, for the pictures of docs/methods."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import config as configuration
from kdjax import losses
from kdjax.data.options import DataOptions
from kdjax.data.run_data import RunData
from kdjax.evaluation.evaluator import TrainedNetwork
from kdjax.losses import resize_labels
from kdjax.models import SegmentationOutput


@dataclasses.dataclass(frozen=True)
class Scene:
    """One scene with the outputs of both networks.

    Attributes:
      image: `[H, W, 3]` uint8.
      label: `[H, W]` uint8.
      small: the labels `[h, w]` at the resolution of the networks' maps.
      teacher: the teacher's output, a batch of one.
      student: the student's output.
    """

    image: np.ndarray
    label: np.ndarray
    small: np.ndarray
    teacher: SegmentationOutput
    student: SegmentationOutput

    @property
    def logits(self) -> tuple[jax.Array, jax.Array]:
        """The student's and the teacher's class scores, `[1, h, w, K]`."""
        return self.student.logits, self.teacher.logits


def load(
    workdir: Path, data_dir: str | None
) -> tuple[DataOptions, RunData, TrainedNetwork, TrainedNetwork]:
    """Returns the data, the teacher, and the plain student of a comparison."""
    config = configuration.from_json((workdir / "teacher" / "config.json").read_text())
    options = configuration.read(config).data
    options = dataclasses.replace(options, data_dir=data_dir or options.data_dir)
    teacher, student = (
        TrainedNetwork.load(str(workdir / run)) for run in ("teacher", "plain/seed0")
    )
    return options, RunData(options), teacher, student


def forward(network: TrainedNetwork) -> Callable[[np.ndarray], SegmentationOutput]:
    """Returns a compiled function from 8-bit images to the network's output."""

    @jax.jit
    def run(images: np.ndarray) -> SegmentationOutput:
        seen = network.info.preprocessing(jnp.asarray(images))
        return network.network.apply(network.variables, seen, train=False, key=None)[0]

    return run


def class_statistics(student: TrainedNetwork, batches) -> losses.ClassStatistics:
    """Returns mean and variance of the student's last features in each class, over a split."""
    run, statistics = forward(student), None
    for batch in batches:
        features = run(batch["image"]).classifiers["logits"].inputs
        labels = resize_labels(jnp.asarray(batch["label"]), features.shape[1:3])
        if statistics is None:
            classes = student.info.num_classes
            statistics = losses.ClassStatistics.zeros(classes, features.shape[-1])
        statistics = statistics.update(features, labels)
    assert statistics is not None
    return statistics


def main_class(scene: Scene) -> int:
    """Returns the largest class of the scene, without the background."""
    return int(np.bincount(scene.small.ravel())[1:].argmax()) + 1


def marked_pixels(scene: Scene) -> list[tuple[int, int]]:
    """Returns pixels of the two largest objects and of the background."""
    sizes = np.bincount(scene.small.ravel(), minlength=3)
    largest = np.argsort(-sizes[1:])[:2] + 1
    return [middle(scene.small == kind) for kind in (*largest, 0)]


def middle(region: np.ndarray) -> tuple[int, int]:
    """Returns a pixel of the region that is farthest from its border."""
    inside = np.pad(region, 1)
    while True:
        around = np.lib.stride_tricks.sliding_window_view(np.pad(inside, 1), (3, 3))
        smaller = around.all((-2, -1))
        if not smaller.any():
            row, column = np.argwhere(inside)[0] - 1
            return int(row), int(column)
        inside = smaller


def pixel(score: np.ndarray) -> tuple[int, int]:
    """Returns the pixel with the highest score."""
    row, column = np.unravel_index(score.argmax(), score.shape)
    return int(row), int(column)
