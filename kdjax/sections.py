"""The sections of a config: frozen dataclasses of which each says what its values may be.

Each stands in the room that uses it. Default, type, range and comment of a value are one field.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from kdjax import ranges
from kdjax.ranges import Range, WrongValue


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of a config, whose values are checked when it is made.

    A field with `Annotated[..., Range]` is a number within that range, or a tuple of such; one with
    `Literal` is one of these texts, and one with `Mapping` has keys that the user names. Where more
    is to be asked, a section has its own `__post_init__`.

    Raises:
      WrongValue: naming the field, its value, and what would be right.
    """

    def __post_init__(self) -> None:
        """Checks every field by itself."""
        for field in dataclasses.fields(self):
            _check(field.name, getattr(self, field.name), field)

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str) -> Self:
        """Makes a section, with those in it, from the part of a config that describes it.

        Args:
          values: by the names of its fields; others are left alone.
          where: what holds them, for messages, as "config.optimizer".

        Raises:
          WrongValue: as the class, naming the whole key, as "config.optimizer.momentum".
        """
        made = {}
        for field in sorted(dataclasses.fields(cls), key=lambda field: field.name):
            value, key = values[field.name], f"{where}.{field.name}"
            each = section_of(get_args(field.type)[1]) if is_named(field) else None
            if section := section_of(field.type):
                value = section.of(value, key)
            elif each and isinstance(value, Mapping):
                value = {name: each.of(entry, f"{key}.{name}") for name, entry in value.items()}
            made[field.name] = value
        try:
            return cls(**made)
        except WrongValue as error:
            raise WrongValue(f"{where}.{error.key}", error.problem) from None


def choices_of(field: dataclasses.Field[Any]) -> tuple[str, ...]:
    """The texts that a field may be; none where it is no choice."""
    return get_args(field.type) if get_origin(field.type) is Literal else ()


def range_of(field: dataclasses.Field[Any]) -> Range | None:
    """The range of a field's number, or numbers; None where it has none."""
    marks = get_args(field.type)[1:] if get_origin(field.type) is Annotated else ()
    return next((mark for mark in marks if isinstance(mark, Range)), None)


def is_named(field: dataclasses.Field[Any]) -> bool:
    """Whether the keys of a field are names that the user gives."""
    return get_origin(field.type) is Mapping


def section_of(kind: Any) -> type[Section] | None:
    """A type of a field as a section; None where it is no such."""
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _check(key: str, value: Any, field: dataclasses.Field[Any]) -> None:
    if is_named(field):
        if not isinstance(value, Mapping):
            raise WrongValue(key, f"is {value!r}; it must be a dict by name")
        return
    if section_of(field.type):
        return
    ranges.check_type(key, value, field.default)
    if (choices := choices_of(field)) and value not in choices:
        raise WrongValue(key, f'is "{value}"; it must be {" or ".join(choices)}')
    if allowed := range_of(field):
        for number in value if isinstance(value, tuple) else (value,):
            ranges.check_number(key, number, allowed)
