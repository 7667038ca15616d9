"""Scores and pictures of the student of a run, next to its teacher."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Array

from kdjax.config import RunOptions
from kdjax.data.interface import SegmentationSet
from kdjax.data.run_data import RunData
from kdjax.evaluation.boundaries import BoundaryScores
from kdjax.evaluation.evaluator import Predictor, Scores, TrainedNetwork, evaluate, predict_examples
from kdjax.evaluation.image_scores import ImageScore, ImageScores
from kdjax.experiment.workdir import Workdir
from kdjax.models import Variables
from kdjax.models.model_files import is_model_file
from kdjax.reporting import pictures
from kdjax.reporting.results import Example, Inspected, InspectedImage, Role
from kdjax.teachers.loading import open_images, ordered_teacher, reading_bands
from kdjax.training.loop import Interruption
from kdjax.training.sharding import Placement
from kdjax.utils import environment, imports, processes
from kdjax.utils.bands import Bands
from kdjax.utils.classes import iou_of_object
from kdjax.utils.errors import UserError
from kdjax.utils.log import RunLogger


class Scoring:
    """Scores a student and its teacher. Every process must call the methods together.

    Args:
      options: the options of the run.
      images: the data set.
      placement: the mesh.
      teacher: the teacher, or None if no teacher predicts these classes.
      interruption: may stop an evaluation between two batches.
    """

    def __init__(
        self,
        options: RunOptions,
        images: RunData,
        placement: Placement,
        teacher: TrainedNetwork | None,
        interruption: Interruption,
    ):
        self._options = options
        self._images = images
        self._placement = placement
        self._teacher = teacher
        self._interruption = interruption
        # Here, so that a pattern without matches is an error before training.
        self._groups = images.test_groups() if options.data.test_split else {}
        self._examples = images.panel_examples()
        self._teacher_predictions = teacher and self._label_maps(
            teacher.predictor, teacher.variables
        )

    def scores(
        self,
        predictor: Predictor,
        variables: Variables,
        split: str,
        *,
        final: bool = False,
    ) -> Scores:
        """Returns the scores on a split, and on the groups of the test split.

        Args:
          predictor: the network.
          variables: its variables.
          split: the split.
          final: True for the scores of the exported student: with the agreement with the teacher,
            the images to look at, and boundaries if the config asks for them.

        Raises:
          Preempted: if the run must stop.
        """
        reference, labeled = None, self._images.labeled_split(split)
        if self._teacher and (final or not labeled):
            reference = (self._teacher.predictor, self._teacher.variables)
        classes = self._images.num_classes
        images = ImageScores(classes) if final and labeled else None
        boundaries = BoundaryScores(classes) if final and self._options.boundaries else None
        scores = evaluate(
            predictor,
            variables,
            self._interruption.stop_between(self._images.eval_batches(split)),
            self._images.num_classes,
            self._placement.put_batch,
            reference=reference,
            labels_of_reference=not labeled,
            groups=self._groups if split == self._options.data.test_split else {},
            observe=observed_by(self._placement, images, boundaries),
        )
        return dataclasses.replace(scores, images=images, boundaries=boundaries)

    def final_scores(self, predictor: Predictor, variables: Variables) -> dict[str, Scores]:
        """Returns the scores with agreement by split, and by group as "test/group"."""
        data, found = self._options.data, {}
        for split in filter(None, (data.val_split, data.test_split)):
            found[split] = self.scores(predictor, variables, split, final=True)
            found |= {f"{split}/{name}": group for name, group in found[split].groups.items()}
        return found

    def check_teacher(self, log: RunLogger) -> None:
        """Evaluates the teacher before training, and logs its mIoU.

        Raises:
          UserError: if the mIoU is below `config.teacher.min_miou`.
        """
        teacher, options = self._teacher, self._options
        split = options.data.val_split
        if teacher is None or not self._images.labeled_split(split):
            return
        scores = self.scores(teacher.predictor, teacher.variables, split)
        info = teacher.info
        # kdjax does not know the width of a user's network.
        unknown = imports.SEPARATOR in info.name or is_model_file(info.name)
        width = "" if unknown else f"width {info.width}, "
        log.info(
            f"teacher {info.name} ({width}weights {info.fingerprint}) has "
            f"{split} mIoU {100 * scores.miou:.2f} %"
            f"{iou_of_object(self._images.class_names, scores.iou)}"
        )
        if not scores.miou >= options.teacher.min_miou:
            raise UserError(
                f"the teacher's mIoU is {scores.miou:.4f}, below config.teacher.min_miou "
                f"{options.teacher.min_miou}: are these its classes and its weights?"
            )

    def examples(self, predictor: Predictor, variables: Variables) -> list[Example]:
        """Returns a few examples with the predictions of "student" and, if any, "teacher"."""
        teacher = {"teacher": self._teacher_predictions} if self._teacher_predictions else {}
        student = self._label_maps(predictor, variables)
        return with_predictions(self._images.bands, self._examples, {**teacher, "student": student})

    def pictures(self, predictor: Predictor, variables: Variables) -> dict[str, np.ndarray]:
        """Returns image, label, teacher, and student of a few examples, side by side."""
        names = [f"val/{example['name']}" for example in self._examples]
        return {
            name: pictures.side_by_side(
                example.image, example.label, example.predictions, self._images.palette
            )
            for name, example in zip(names, self.examples(predictor, variables), strict=True)
        }

    def _label_maps(self, predictor: Predictor, variables: Variables) -> list[np.ndarray]:
        def predict(images: np.ndarray) -> np.ndarray:
            return self._placement.fetch(predictor(variables, self._placement.put_images(images)))

        return predict_examples(predict, self._examples, self._options.data.eval_batch_size)


def observed_by(
    placement: Placement, *observers: ImageScores | BoundaryScores | None
) -> Callable[[dict[str, Array]], None] | None:
    """Returns a function that passes the maps of an evaluation to observers, if there are any.

    Args:
      placement: the mesh.
      *observers: the observers; None for those that are not wanted.
    """
    wanted = [observer for observer in observers if observer]

    def observe(maps: dict[str, Array]) -> None:
        on_host = placement.fetch(maps)
        for observer in wanted:
            observer.add(on_host)

    return observe if wanted else None


def inspect(scores: ImageScores, images: RunData, split: str) -> Inspected:
    """Returns the images to look at with their pixels.

    Args:
      scores: their scores.
      images: the data set.
      split: their split.
    """

    def loaded(chosen: Sequence[ImageScore]) -> list[InspectedImage]:
        examples = images.examples(split, [score.index for score in chosen])
        return [
            InspectedImage(
                name=example["name"],
                miou=score.miou,
                disputed=score.disputed,
                example=Example(
                    image=images.bands.picture(example["image"]),
                    label=example["label"],
                    predictions=score.predictions,
                ),
            )
            for score, example in zip(chosen, examples, strict=True)
        ]

    return Inspected(worst=loaded(scores.worst), disputed=loaded(scores.disputed))


def with_predictions(
    bands: Bands,
    examples: Sequence[Mapping[str, np.ndarray]],
    predictions: Mapping[str, Sequence[np.ndarray]],
) -> list[Example]:
    """Returns examples with predictions, for a report.

    Args:
      bands: the bands of the images, which become pictures.
      examples: dicts with `image` [H, W, C] and `label` [H, W].
      predictions: the label map [H, W] of each example, by network.
    """
    return [
        Example(
            image=bands.picture(example["image"]),
            label=example["label"],
            predictions={name: maps[index] for name, maps in predictions.items()},
        )
        for index, example in enumerate(examples)
    ]


def score_checkpoint(
    options: RunOptions,
    files: Workdir,
    checkpoint: str,
    role: Role,
    data: SegmentationSet | None = None,
) -> None:
    """Writes the scores of a network that no run of a comparison trained, as a run's result.

    Does nothing if the scores exist, or if the network has other classes than the data.

    Args:
      options: the config, whose data set is used.
      files: the directory for the result.
      checkpoint: the network checkpoint, or the directory of a finished run.
      role: the role of the network, which is also its name in tables.
      data: the data set if it is an object, as `RunData` takes it.
    """
    images, placement = open_images(options, data), Placement(options.mesh)
    network = TrainedNetwork.load(
        checkpoint, dtype=options.teacher.dtype, options=options.teacher.options
    )
    network = reading_bands(network, options.teacher, images.bands, checkpoint)
    network = ordered_teacher(network, options.teacher, images.class_names)
    if network.info.num_classes != images.num_classes:
        return
    if files.result.exists() and files.read_result()["weights"][1] == network.info.fingerprint:
        return
    scoring = Scoring(options, images, placement, None, Interruption())
    scores = scoring.final_scores(network.predictor, placement.put_state(network.variables))
    result = {
        "role": role,
        "method": role,
        "seed": options.seed,
        "steps": None,
        "learning_rate": None,
        "parameters": sum(x.size for x in jax.tree.leaves(network.variables["params"])),
        "seconds": None,
        "images_per_second": None,
        "weights": [checkpoint, network.info.fingerprint],
        "scores": {split: value.as_dict() for split, value in scores.items()},
        "versions": environment.describe(),
    }
    processes.lead(lambda: files.write_result(result))
