"""Distillation terms: one loss each, between a named map of the student and one of the teacher."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kdjax.distillation import labels as label_maps
from kdjax.distillation.catalogue import LOSSES, Inputs
from kdjax.distillation.schedules import Schedule
from kdjax.errors import UserError
from kdjax.losses import ClassStatistics
from kdjax.models import FeatureSpec, SegmentationOutput
from kdjax.models.layers import resize


class StatisticsSpec(NamedTuple):
    """Class statistics that terms share: those of one map of the student, in one form."""

    name: str
    channels: int
    full: bool


@dataclasses.dataclass(frozen=True)
class Term:
    """A distillation term, resolved against a student and a teacher.

    Attributes:
      name: the key in the config and in the logs.
      loss: the key in `LOSSES`.
      student: which output or feature of the student.
      teacher: which output or feature of the teacher; None where the loss reads none.
      weight: weight as a function of the run's progress.
      resize: the side that is resized to the other's size where they differ.
      options: keyword arguments of the loss.
      adapter: (student channels, teacher channels) where they differ, else None.
      statistics: the class statistics that the loss reads, else None.
      maps: what the network of each side says of the map that is read.
    """

    name: str
    loss: str
    student: str
    teacher: str | None
    weight: Schedule
    resize: str
    options: Mapping[str, Any]
    adapter: tuple[int, ...] | None
    statistics: StatisticsSpec | None
    maps: Mapping[str, FeatureSpec]

    def describe(self) -> str:
        """One line for the start of a run."""
        options = ", ".join(f"{key} {value}" for key, value in self.options.items())
        adapter = f", adapter 1x1 {self.adapter[0]} -> {self.adapter[1]}" if self.adapter else ""
        maps = ", ".join(filter(None, (self.student, self.teacher)))
        return f"{self.name}: {self.loss}({maps}; {options}){adapter}"


Adapters = dict[str, Float[Array, "S T"]]
Statistics = dict[str, ClassStatistics]


def init_adapters(terms: tuple[Term, ...], key: Array) -> Adapters:
    """Creates the 1x1 convolutions [student channels, teacher channels] of the terms, by name.

    Without bias, as CIRKD and TorchDistiller; drawn with variance 1 / student channels, so that the
    scale of the student's map is kept.
    """
    initialize = jax.nn.initializers.lecun_normal()
    return {
        term.name: initialize(jax.random.fold_in(key, index), term.adapter, jnp.float32)
        for index, term in enumerate(terms)
        if term.adapter
    }


def init_statistics(terms: tuple[Term, ...], classes: int) -> Statistics:
    """Creates the class statistics that the terms read, of no pixels yet, by name."""
    specs = {term.statistics for term in terms if term.statistics}
    return {
        spec.name: ClassStatistics.zeros(classes, spec.channels, full=spec.full) for spec in specs
    }


def update_statistics(
    terms: tuple[Term, ...],
    statistics: Statistics,
    student: SegmentationOutput,
    labels: Int[Array, "B H W"],
) -> Statistics:
    """Adds the pixels of a batch to the class statistics of the student's features.

    Terms that read the same map in the same form share one; it is updated before they read it, as
    in ISDA.
    """
    updated = dict(statistics)
    for spec, name in {(term.statistics, term.student) for term in terms if term.statistics}:
        inputs = student.classifiers[name].inputs
        small = label_maps.nearest(labels, inputs.shape[1:3])
        updated[spec.name] = statistics[spec.name].update(inputs, small, label_maps.IGNORE_LABEL)
    return updated


def values(
    terms: tuple[Term, ...],
    adapters: Adapters,
    statistics: Statistics,
    student: SegmentationOutput,
    teacher: SegmentationOutput | None,
    labels: Int[Array, "B H W"],
    progress: Float[Array, ""],
) -> dict[str, Float[Array, ""]]:
    """Returns the unweighted value of every term, by name, and its diagnostics.

    A diagnostic is a number that is only logged; its name is that of the term, a slash and its own.

    Args:
      terms: the terms.
      adapters: their adapters by term name.
      statistics: class statistics by their own name, with this batch in them.
      student: the student's output on the batch.
      teacher: the teacher's output on the same images; None where no term reads it.
      labels: train ids at the images' size.
      progress: share of the run that is done, 0 to 1.

    Raises:
      UserError: while it is traced, where a map is not what its network says of it.
    """
    found: dict[str, Float[Array, ""]] = {}
    for term in terms:
        found |= _measure(
            term, adapters.get(term.name), statistics, student, teacher, labels, progress
        )
    return found


def _measure(
    term: Term,
    adapter: Float[Array, "S T"] | None,
    statistics: Statistics,
    student: SegmentationOutput,
    teacher: SegmentationOutput | None,
    labels: Int[Array, "B H W"],
    progress: Float[Array, ""],
) -> dict[str, Float[Array, ""]]:
    ours, theirs = _read(student, term.student), None
    _check_map(term, "student", ours, labels.shape[1:], ())
    size = ours.shape[1:3]
    if term.teacher is not None:
        assert teacher is not None
        theirs = _read(teacher, term.teacher)
        # Scores that were kept come at the size of the student's.
        _check_map(term, "teacher", theirs, labels.shape[1:], student.logits.shape[1:3])
        size = size if term.resize == "teacher" else theirs.shape[1:3]
        theirs = resize(theirs, size)
    if adapter is not None:
        ours = ours @ adapter.astype(ours.dtype)
    classifier = covariance = None
    if term.statistics is not None:
        covariance = statistics[term.statistics.name].covariance
        classifier = student.classifiers[term.student]
        # Resizing and a 1x1 convolution may change places.
        classifier = dataclasses.replace(classifier, inputs=resize(classifier.inputs, size))
    inputs = Inputs(
        student=resize(ours, size),
        teacher=theirs,
        labels=label_maps.nearest(labels, size),
        full_labels=labels,
        classifier=classifier,
        covariance=covariance,
        progress=progress,
    )
    options = {key: value for key, value in term.options.items() if key != "covariance"}
    loss = LOSSES[term.loss]
    found = {term.name: loss.value(inputs, **options)}
    for name, value in loss.diagnostics(inputs, **options).items():
        found[f"{term.name}/{name}"] = value
    return found


def _check_map(
    term: Term, side: str, found: Array, images: tuple[int, ...], grid: tuple[int, ...]
) -> None:
    """Requires a map [B, h, w, C] of the network's stride, or of the size of `grid`.

    Losses cannot know it: channels that come first, or rows and columns in one axis, pass for maps.
    """
    channels, stride = term.maps[side]
    wanted = tuple(-(-extent // stride) for extent in images)
    # Pooling whose last window may be cut off makes a row and a column more.
    near = [abs(ours - theirs) <= 1 for ours, theirs in zip(found.shape[1:], wanted, strict=False)]
    if found.ndim == 4 and found.shape[3] == channels and (all(near) or found.shape[1:3] == grid):
        return
    name = term.student if side == "student" else term.teacher
    raise UserError(
        f'config.terms.{term.name}.{side}: "{name}" of the {side} is {list(found.shape)}; on '
        f"images of {images[0]} x {images[1]} it must be {[found.shape[0], *wanted, channels]}: by "
        f"what the network says of it, its stride is {stride}, and channels are the last axis"
    )


def _read(output: SegmentationOutput, name: str) -> Float[Array, "B h w C"]:
    if name == "aux_logits":
        assert output.aux_logits is not None  # resolve() saw the auxiliary head
        return output.aux_logits
    return output.logits if name == "logits" else output.features[name]
