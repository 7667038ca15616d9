"""Entries of a config to distillation terms, resolved against the two networks.

That happens once, at the start: unknown names are errors there, an adapter is planned where the
channel counts differ, and which side is resized is known.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax import ranges
from kdjax.distillation.catalogue import LOSSES
from kdjax.distillation.schedules import SCHEDULES
from kdjax.distillation.terms import (
    StatisticsSpec,
    Term,
    init_adapters,
    init_statistics,
    values,
)
from kdjax.errors import UserError
from kdjax.models import Classification, FeatureSpec, SegmentationOutput
from kdjax.ranges import WrongValue
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
CHOICES = {
    "schedule": tuple(SCHEDULES),
    "resize": ("teacher", "student"),
    "covariance": COVARIANCES,
}
# Below zero, a term would be maximised.
WEIGHTS = ("weight", "final_weight")


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


def check(where: str, entries: Any) -> None:
    """Checks the terms of a config as far as it can be done without the networks.

    Args:
      where: the key that holds them, as `config.terms`.
      entries: term name -> config entry.

    Raises:
      UserError: for an unknown loss, key or schedule, a value of another type, a weight that is
        negative or not finite, or a reserved name.
    """
    for name, entry in _as_dict(where, entries).items():
        _complete(where, name, entry)


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
    return tuple(_resolve(name, entry, student, teacher) for name, entry in entries.items())


def _complete(section: str, name: str, given: Any) -> dict[str, Any]:
    """An entry with what it leaves out, of values that can be."""
    where = f"{section}.{name}"
    if name in RESERVED:
        raise WrongValue(where, "is the name of a metric that is always logged; choose another")
    entry = _as_dict(where, given)
    if "loss" not in entry:
        raise WrongValue(where, f"names no loss: {nearest('', LOSSES)}")
    if (known := str(entry["loss"])) not in LOSSES:
        raise WrongValue(
            f"{where}.loss", f'is the unknown loss "{known}" in a term: {nearest(known, LOSSES)}'
        )
    complete = defaults(entry["loss"])
    for key, value in entry.items():
        if key not in complete:
            raise WrongValue(
                f"{where}.{key}", f"is no key of {entry['loss']}: {nearest(key, complete)}"
            )
        ranges.check_type(f"{where}.{key}", value, complete[key])
        if isinstance(value, float):
            ranges.check_number(f"{where}.{key}", value, ranges.FINITE)
    entry = complete | entry
    for key in WEIGHTS:
        ranges.check_number(f"{where}.{key}", entry[key], ranges.NOT_NEGATIVE)
    for key, choices in CHOICES.items():
        if key in entry and entry[key] not in choices:
            raise WrongValue(f"{where}.{key}", f'is "{entry[key]}": {nearest(entry[key], choices)}')
    return entry


def _as_dict(where: str, value: Any) -> dict[str, Any]:
    try:
        return dict(value)
    except (TypeError, ValueError) as error:
        raise WrongValue(where, f"is {value!r}; it must be a dict") from error


def _resolve(
    name: str,
    entry: Mapping[str, Any],
    student: Mapping[str, FeatureSpec],
    teacher: Mapping[str, FeatureSpec],
) -> Term:
    where = f"config.terms.{name}"
    entry = _complete("config.terms", name, entry)
    loss = LOSSES[entry["loss"]]
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
        maps={side: specs[entry[side]] for side, specs in sides.items()},
    )
    _check_options(term, where, student, teacher)
    return term


def _check_options(
    term: Term, where: str, student: Mapping[str, FeatureSpec], teacher: Mapping[str, FeatureSpec]
) -> None:
    """Traces the term on small images: a wrong option is found before anything runs."""
    size = 2 * max(spec.stride for spec in term.maps.values())

    def trace() -> dict[str, Float[Array, ""]]:
        return values(
            (term,),
            init_adapters((term,), jax.random.key(0)),
            init_statistics((term,), student["logits"].channels),
            _blank(student, size),
            _blank(teacher, size) if term.teacher else None,
            jnp.zeros((1, size, size), jnp.int32),
            jnp.zeros(()),
        )

    try:
        jax.eval_shape(trace)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error


def _blank(specs: Mapping[str, FeatureSpec], size: int) -> SegmentationOutput:
    """An output with these maps, on a square image."""
    maps = {
        name: jnp.zeros((1, -(-size // spec.stride), -(-size // spec.stride), spec.channels))
        for name, spec in specs.items()
    }
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
