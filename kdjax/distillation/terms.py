"""Terms as a config holds them, and the losses that they become."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from kdjax import names, sections
from kdjax.distillation.builtin import LOSSES
from kdjax.distillation.loss import SCHEDULES, SIDES, Loss, loss_class
from kdjax.names import did_you_mean
from kdjax.sections import WrongValue

# Metrics that every run logs; a term's value is logged by the term's name.
RESERVED = ("loss", "cross_entropy", "auxiliary_cross_entropy", "learning_rate", "gradient_norm")
CHOICES = {
    "schedule": tuple(SCHEDULES),
    "resize": ("teacher", "student", "none"),
    "adapter": ("where_needed", "always", "never"),
}


def term(loss: str | type[Loss] | Callable[..., Any], **options: Any) -> dict[str, Any]:
    """A term as a config holds it: the name of its loss, with all options that it has.

    Args:
      loss: a built-in name, "package.module:attribute", or such a class or function itself.
      **options: what differs from the defaults: `student` and `teacher` (which map of each side, or
        several), `weight`, `schedule`, and the other fields of `distillation.Loss` and of the loss.

    Raises:
      UserError: for an unknown loss or option, with the nearest one.
    """
    name = names.name_of("loss", loss)
    kind = _class_of("term", name)
    _check_options("term", name, kind, options)
    return {"loss": name, **_defaults(kind), **options}


def make_loss(where: str, entry: Any) -> Loss:
    """Makes the loss of a term, as far as that can be done without the networks.

    Args:
      where: what messages call it, as "config.terms.cwd".
      entry: a loss, or what `term` returns.

    Raises:
      UserError: for an unknown loss, option or choice, a value of another type, or a weight that is
        negative or not finite.
    """
    name = where.rpartition(".")[2]
    if name in RESERVED:
        raise WrongValue(where, "is the name of a metric that is always logged; choose another")
    if isinstance(entry, Loss):
        loss = entry
    else:
        # A ConfigDict has items, and is no Mapping.
        if not hasattr(entry, "items"):
            raise WrongValue(where, f"is {entry!r}; it must be a loss, or a dict as of term()")
        values = {key: tuple(x) if isinstance(x, list) else x for key, x in entry.items()}
        if "loss" not in values:
            raise WrongValue(where, f"names no loss: {did_you_mean('', LOSSES)}")
        named = str(values.pop("loss"))
        kind = _class_of(f"{where}.loss", named)
        _check_options(where, named, kind, values)
        try:
            loss = kind(**values)  # pyright: ignore[reportArgumentType]  checked above
        except TypeError as error:
            raise WrongValue(where, f"({named}): {error}") from error
    for key, choices in CHOICES.items():
        if (value := getattr(loss, key)) not in choices:
            raise WrongValue(f"{where}.{key}", f'is "{value}": {did_you_mean(str(value), choices)}')
    # Below zero, a term would be maximised.
    for key in ("weight", "final_weight", "learning_rate"):
        sections.check_number(f"{where}.{key}", getattr(loss, key), sections.NOT_NEGATIVE)
    return loss


def need_teacher(terms: Mapping[str, Any]) -> bool:
    """Whether any of these terms reads a teacher, as `Distiller` takes them."""
    return any(make_loss(f"terms.{name}", entry).teacher for name, entry in terms.items())


def _class_of(where: str, name: str) -> type[Loss]:
    found = names.resolve("loss", name, LOSSES, asked_by=where)
    try:
        return loss_class(found)
    except (TypeError, ValueError) as error:
        raise WrongValue(where, f"names {name}: {error}") from error


def _defaults(kind: type[Loss]) -> dict[str, Any]:
    return {
        field.name: field.default
        for field in dataclasses.fields(kind)
        if field.default is not dataclasses.MISSING
    }


def _check_options(where: str, name: str, kind: type[Loss], given: Mapping[str, Any]) -> None:
    known, defaults = [field.name for field in dataclasses.fields(kind)], _defaults(kind)
    for key, value in given.items():
        if key not in known:
            raise WrongValue(f"{where}.{key}", f"is no key of {name}: {did_you_mean(key, known)}")
        if key in SIDES:
            _check_names(f"{where}.{key}", value, defaults[key])
        elif type(defaults.get(key)) in sections.KINDS:
            sections.check_type(f"{where}.{key}", value, defaults[key])
        if isinstance(value, float):
            sections.check_number(f"{where}.{key}", value, sections.FINITE)


def _check_names(key: str, value: Any, default: Any) -> None:
    """Requires the name of a map, or names; a loss without a teacher takes none."""
    if default is None and value is not None:
        raise WrongValue(key, f"is {value!r}; this loss reads no teacher")
    several = isinstance(value, tuple) and bool(value) and all(isinstance(x, str) for x in value)
    if default is not None and not isinstance(value, str) and not several:
        raise WrongValue(key, f'is {value!r}; it must be the name of a map, as "logits", or names')
