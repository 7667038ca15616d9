"""Distillation terms: one loss between a named map of the student and one of the teacher.

A term of a config is resolved against the two networks once, at the start: unknown names are errors
there, an adapter is planned where the channel counts differ, and which side is resized is known.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax import losses
from kdjax.distillation.schedules import SCHEDULES, Schedule
from kdjax.errors import UserError
from kdjax.models import FeatureSpec, SegmentationOutput
from kdjax.models.layers import resize
from kdjax.suggest import nearest

LOGITS = ("logits", "aux_logits")

# Metrics that every run logs; a term's value is logged by the term's name.
RESERVED = ("loss", "cross_entropy", "auxiliary_cross_entropy", "learning_rate", "gradient_norm")


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss of `kdjax.losses` as a term uses it.

    Attributes:
      function: the pure function; called as `function(student, teacher, **options)`.
      defaults: what a config entry holds where it says nothing: weight and options, from the paper
        or its authors' code.
    """

    function: Callable[..., Array]
    defaults: Mapping[str, Any]


LOSSES: dict[str, Loss] = {
    # Shu et al. 2021, the authors' main run: weight 3 and temperature 4 on the class scores.
    "cwd": Loss(losses.cwd, {"weight": 3.0, "temperature": 4.0}),
    # Hinton et al. 2015 per pixel; weight 1 on the per-pixel mean, as CIRKD.
    "pixelwise_kl": Loss(losses.pixelwise_kl, {"weight": 1.0, "temperature": 1.0}),
}

COMMON: dict[str, Any] = {
    "student": "logits",
    "teacher": "logits",
    "weight": 1.0,
    "schedule": "constant",
    "final_weight": 0.0,
    "resize": "teacher",
}


def defaults(loss: str) -> dict[str, Any]:
    """The complete config entry of a term with this loss.

    Raises:
      UserError: for an unknown loss, with the nearest one.
    """
    if loss not in LOSSES:
        raise UserError(f'unknown loss "{loss}" in a term: {nearest(loss, LOSSES)}')
    return {"loss": loss, **COMMON, **LOSSES[loss].defaults}


@dataclasses.dataclass(frozen=True)
class Term:
    """A distillation term, resolved against a student and a teacher.

    Attributes:
      name: the key in the config and in the logs.
      loss: the key in `LOSSES`.
      student: which output or feature of the student.
      teacher: which output or feature of the teacher.
      weight: weight as a function of the run's progress.
      resize: the side that is resized to the other's size where they differ.
      options: keyword arguments of the loss.
      adapter: (student channels, teacher channels) where they differ, else None.
    """

    name: str
    loss: str
    student: str
    teacher: str
    weight: Schedule
    resize: str
    options: Mapping[str, Any]
    adapter: tuple[int, int] | None

    def describe(self) -> str:
        """One line for the start of a run."""
        options = ", ".join(f"{key} {value}" for key, value in self.options.items())
        adapter = f", adapter 1x1 {self.adapter[0]} -> {self.adapter[1]}" if self.adapter else ""
        return f"{self.name}: {self.loss}({self.student}, {self.teacher}; {options}){adapter}"


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
    if entry["resize"] not in ("teacher", "student"):
        raise UserError(f'{where}.resize is "{entry["resize"]}"; it must be teacher or student')
    for side, specs in (("student", student), ("teacher", teacher)):
        if entry[side] not in specs:
            raise UserError(
                f'{where}.{side}: the {side} has no feature "{entry[side]}"; '
                f"it has {', '.join(specs)}"
            )
    channels = student[entry["student"]].channels, teacher[entry["teacher"]].channels
    adapter = None if channels[0] == channels[1] else channels
    if adapter and entry["student"] in LOGITS and entry["teacher"] in LOGITS:
        raise UserError(
            f"{where}: the student scores {channels[0]} classes and the teacher {channels[1]}; "
            "class scores can be compared only over the same classes"
        )
    return Term(
        name=name,
        loss=entry["loss"],
        student=entry["student"],
        teacher=entry["teacher"],
        weight=SCHEDULES[entry["schedule"]](entry["weight"], entry["final_weight"]),
        resize=entry["resize"],
        options={key: value for key, value in entry.items() if key not in {"loss", *COMMON}},
        adapter=adapter,
    )


Adapters = dict[str, Float[Array, "S T"]]


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


def values(
    terms: tuple[Term, ...],
    adapters: Adapters,
    student: SegmentationOutput,
    teacher: SegmentationOutput,
) -> dict[str, Float[Array, ""]]:
    """Returns the unweighted value of every term, by name."""
    return {term.name: _value(term, adapters.get(term.name), student, teacher) for term in terms}


def _value(
    term: Term,
    adapter: Float[Array, "S T"] | None,
    student: SegmentationOutput,
    teacher: SegmentationOutput,
) -> Float[Array, ""]:
    ours, theirs = _read(student, term.student), _read(teacher, term.teacher)
    if adapter is not None:
        ours = ours @ adapter.astype(ours.dtype)
    if term.resize == "teacher":
        theirs = resize(theirs, ours.shape[1:3])
    else:
        ours = resize(ours, theirs.shape[1:3])
    return jnp.mean(LOSSES[term.loss].function(ours, theirs, **term.options))


def _read(output: SegmentationOutput, name: str) -> Float[Array, "B h w C"]:
    if name == "aux_logits":
        assert output.aux_logits is not None  # resolve() saw the auxiliary head
        return output.aux_logits
    return output.logits if name == "logits" else output.features[name]
