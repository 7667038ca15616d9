"""Distillation terms: one loss between a named map of the student and one of the teacher.

A term of a config is resolved against the two networks once, at the start: unknown names are errors
there, an adapter is planned where the channel counts differ, and which side is resized is known.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kdjax.distillation import labels as label_maps
from kdjax.distillation.catalogue import LOSSES, Inputs
from kdjax.distillation.schedules import SCHEDULES, Schedule
from kdjax.errors import UserError
from kdjax.losses import ClassStatistics
from kdjax.models import Classification, FeatureSpec, SegmentationOutput
from kdjax.models.layers import resize
from kdjax.suggest import nearest

LOGITS = ("logits", "aux_logits")
# What their classifiers read.
CLASSIFIED = {"logits": "head", "aux_logits": "aux_head"}

# Metrics that every run logs; a term's value is logged by the term's name.
RESERVED = ("loss", "cross_entropy", "auxiliary_cross_entropy", "learning_rate", "gradient_norm")

COMMON: dict[str, Any] = {
    "student": "logits",
    "weight": 1.0,
    "schedule": "constant",
    "final_weight": 0.0,
}
# What a term with a teacher has beside.
TAUGHT: dict[str, Any] = {"teacher": "logits", "resize": "teacher"}
# An option of the losses that augment: the form of the statistics that they read.
COVARIANCES = ("diagonal", "full")


def defaults(loss: str) -> dict[str, Any]:
    """The complete config entry of a term with this loss.

    Raises:
      UserError: for an unknown loss, with the nearest one.
    """
    if loss not in LOSSES:
        raise UserError(f'unknown loss "{loss}" in a term: {nearest(loss, LOSSES)}')
    taught = TAUGHT if LOSSES[loss].teacher else {}
    return {"loss": loss, **COMMON, **taught, **LOSSES[loss].defaults}


def need_teacher(entries: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether any of the terms of a config reads a teacher (one of an unknown loss counts)."""
    losses = [LOSSES.get(entry.get("loss", "")) for entry in entries.values()]
    return any(loss is None or loss.teacher for loss in losses)


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

    def describe(self) -> str:
        """One line for the start of a run."""
        options = ", ".join(f"{key} {value}" for key, value in self.options.items())
        adapter = f", adapter 1x1 {self.adapter[0]} -> {self.adapter[1]}" if self.adapter else ""
        maps = ", ".join(filter(None, (self.student, self.teacher)))
        return f"{self.name}: {self.loss}({maps}; {options}){adapter}"


def resolve(
    entries: Mapping[str, Mapping[str, Any]],
    student: Mapping[str, FeatureSpec],
    teacher: Mapping[str, FeatureSpec],
) -> tuple[Term, ...]:
    """Resolves the terms of a config against what the two networks offer.

    Args:
      entries: term name -> config entry, as `kdjax.config.term` makes it.
      student: the student's maps by name.
      teacher: the teacher's maps by name.

    Raises:
      UserError: for an unknown loss, key, schedule or map (listing the maps that there are), a
        reserved name, or class scores of different classes.
    """
    return tuple(_resolve(name, dict(entry), student, teacher) for name, entry in entries.items())


def _resolve(
    name: str,
    entry: dict[str, Any],
    student: Mapping[str, FeatureSpec],
    teacher: Mapping[str, FeatureSpec],
) -> Term:
    where = f"config.terms.{name}"
    if name in RESERVED:
        raise UserError(f"{where}: a metric of this name is always logged; choose another")
    if "loss" not in entry:
        raise UserError(f"{where} names no loss: {nearest('', LOSSES)}")
    complete = defaults(entry["loss"])
    loss = LOSSES[entry["loss"]]
    for key, value in entry.items():
        if key not in complete:
            raise UserError(
                f"{where}.{key}: no such key for {entry['loss']}: {nearest(key, complete)}"
            )
        if isinstance(complete[key], str) != isinstance(value, str):
            raise UserError(f"{where}.{key} is {value!r}; it must be like {complete[key]!r}")
    entry = complete | entry
    if entry["schedule"] not in SCHEDULES:
        raise UserError(
            f'{where}.schedule is "{entry["schedule"]}": {nearest(entry["schedule"], SCHEDULES)}'
        )
    if entry.get("resize", "teacher") not in ("teacher", "student"):
        raise UserError(f'{where}.resize is "{entry["resize"]}"; it must be teacher or student')
    sides = {"student": student}
    if loss.teacher:
        sides["teacher"] = teacher
    for side, specs in sides.items():
        if entry[side] not in specs:
            raise UserError(
                f'{where}.{side}: the {side} has no feature "{entry[side]}"; '
                f"it has {', '.join(specs)}"
            )
        if loss.classes and entry[side] not in LOGITS:
            raise UserError(
                f'{where}.{side} is "{entry[side]}"; {entry["loss"]} needs class scores: '
                f"{' or '.join(name for name in LOGITS if name in specs)}"
            )
    channels = tuple(specs[entry[side]].channels for side, specs in sides.items())
    if len(set(channels)) > 1 and all(entry[side] in LOGITS for side in sides):
        raise UserError(
            f"{where}: the student scores {channels[0]} classes and the teacher {channels[1]}; "
            "class scores can be compared only over the same classes"
        )
    adapter = channels if loss.adapts and len(set(channels)) > 1 else None
    statistics = None
    if loss.augments:
        if entry["covariance"] not in COVARIANCES:
            raise UserError(
                f'{where}.covariance is "{entry["covariance"]}": '
                f"{nearest(entry['covariance'], COVARIANCES)}"
            )
        statistics = StatisticsSpec(
            f"{entry['student']}_{entry['covariance']}",
            student[CLASSIFIED[entry["student"]]].channels,
            entry["covariance"] == "full",
        )
    term = Term(
        name=name,
        loss=entry["loss"],
        student=entry["student"],
        teacher=entry.get("teacher"),
        weight=SCHEDULES[entry["schedule"]](entry["weight"], entry["final_weight"]),
        resize=entry.get("resize", "teacher"),
        options={
            key: value for key, value in entry.items() if key not in {"loss", *COMMON, *TAUGHT}
        },
        adapter=adapter,
        statistics=statistics,
    )
    _check_options(term, where, student, teacher)
    return term


def _check_options(
    term: Term, where: str, student: Mapping[str, FeatureSpec], teacher: Mapping[str, FeatureSpec]
) -> None:
    """Traces the term on maps of 2 x 2 pixels: a wrong option is found before anything runs."""

    def trace() -> dict[str, Float[Array, ""]]:
        key = jax.random.key(0)
        return _measure(
            term,
            init_adapters((term,), key).get(term.name),
            init_statistics((term,), student["logits"].channels),
            _blank(student),
            _blank(teacher) if term.teacher else None,
            jnp.zeros((1, 2, 2), jnp.int32),
            jnp.zeros(()),
        )

    try:
        jax.eval_shape(trace)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error


def _blank(specs: Mapping[str, FeatureSpec]) -> SegmentationOutput:
    """An output with these maps, of 2 x 2 pixels."""
    maps = {name: jnp.zeros((1, 2, 2, spec.channels)) for name, spec in specs.items()}
    classifiers = {
        name: Classification(
            logits=maps[name],
            inputs=maps[inputs],
            kernel=jnp.zeros((specs[inputs].channels, specs[name].channels)),
            bias=jnp.zeros(specs[name].channels),
        )
        for name, inputs in CLASSIFIED.items()
        if name in specs and inputs in specs
    }
    features = {name: value for name, value in maps.items() if name not in LOGITS}
    return SegmentationOutput(maps["logits"], maps.get("aux_logits"), features, classifiers)


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
    size = ours.shape[1:3]
    if term.teacher is not None:
        assert teacher is not None
        theirs = _read(teacher, term.teacher)
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


def _read(output: SegmentationOutput, name: str) -> Float[Array, "B h w C"]:
    if name == "aux_logits":
        assert output.aux_logits is not None  # resolve() saw the auxiliary head
        return output.aux_logits
    return output.logits if name == "logits" else output.features[name]
