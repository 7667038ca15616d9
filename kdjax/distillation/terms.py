"""Terms: the entries of a config that become losses."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from kdjax.distillation.loss import SIDES, Loss, loss_class
from kdjax.distillation.methods import LOSSES
from kdjax.utils import imports, schema
from kdjax.utils.errors import WrongValue
from kdjax.utils.imports import did_you_mean

# Metrics that every run logs. The value of a term is logged by the term's name.
RESERVED = ("loss", "cross_entropy", "auxiliary_cross_entropy", "learning_rate", "gradient_norm")


def term(loss: str | type[Loss] | Callable[..., Any], **options: Any) -> dict[str, Any]:
    """Returns a term as a config holds it: the name of its loss, with all options.

    Args:
      loss: a built-in name, "package.module:attribute", or the class or function itself.
      **options: options that differ from the defaults: `student` and `teacher` (the map of each
        side, or several), `weight`, `schedule`, and the other fields of `distillation.Loss` and of
        the loss.

    Raises:
      UserError: if the loss or an option is unknown. The message names the nearest one.
    """
    name = imports.name_of("loss", loss)
    kind = _class_of("term", name)
    _check_options("term", name, kind, options)
    return {"loss": name, **_defaults(kind), **options}


def make_loss(where: str, entry: Any) -> Loss:
    """Makes the loss of a term and checks every value that needs no network.

    Args:
      where: the key of the term, for messages, such as "config.terms.cwd".
      entry: a loss, or the result of `term`.

    Raises:
      UserError: if the loss or an option is unknown, or a value has the wrong type or range.
    """
    name = where.rpartition(".")[2]
    if name in RESERVED:
        raise WrongValue(where, "is the name of a metric that is always logged; choose another")
    loss = entry if isinstance(entry, Loss) else _from_options(where, entry)
    for field in dataclasses.fields(loss):
        schema.check_field(f"{where}.{field.name}", getattr(loss, field.name), field)
    return loss


def need_teacher(terms: Mapping[str, Loss]) -> bool:
    """Returns True if any of the terms reads a teacher."""
    return any(loss.teacher for loss in terms.values())


def _from_options(where: str, entry: Any) -> Loss:
    # A ConfigDict has items but is not a Mapping.
    if not hasattr(entry, "items"):
        raise WrongValue(where, f"is {entry!r}; it must be a loss, or a dict as of term()")
    values = {key: tuple(x) if isinstance(x, list) else x for key, x in entry.items()}
    if "loss" not in values:
        raise WrongValue(where, f"names no loss: {did_you_mean('', LOSSES)}")
    named = str(values.pop("loss"))
    kind = _class_of(f"{where}.loss", named)
    _check_options(where, named, kind, values)
    try:
        return kind(**values)  # pyright: ignore[reportArgumentType]  checked above
    except TypeError as error:
        raise WrongValue(where, f"({named}): {error}") from error


def _class_of(where: str, name: str) -> type[Loss]:
    found = imports.resolve("loss", name, LOSSES, asked_by=where)
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
        elif type(defaults.get(key)) in schema.KINDS:
            schema.check_type(f"{where}.{key}", value, defaults[key])
        if isinstance(value, float):
            schema.check_number(f"{where}.{key}", value, schema.FINITE)


def _check_names(key: str, value: Any, default: Any) -> None:
    """Requires one or more names of maps. A loss without a teacher takes none."""
    if default is None and value is not None:
        raise WrongValue(key, f"is {value!r}; this loss reads no teacher")
    several = isinstance(value, tuple) and bool(value) and all(isinstance(x, str) for x in value)
    if default is not None and not isinstance(value, str) and not several:
        raise WrongValue(key, f'is {value!r}; it must be the name of a map, as "logits", or names')
