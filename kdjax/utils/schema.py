"""The base of all config sections: frozen dataclasses whose fields say which values are allowed.

Each package defines the sections that it reads. Default, type, range, and comment of a value are
one field.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args, get_origin

from kdjax.utils.errors import WrongValue
from kdjax.utils.imports import did_you_mean

# Steps are counted in 32 bits on the devices, and seeds are kept next to them.
LARGEST = 2**31 - 1


class Range(NamedTuple):
    """The allowed range of a number. Infinity and NaN are never allowed.

    Attributes:
      words: the range in words, after "it must be".
      contains: returns True for a finite number in the range.
      whole: True for whole numbers, which are at most `LARGEST`.
    """

    words: str
    contains: Callable[[float], bool]
    whole: bool = False


COUNT = Range("positive", lambda x: x > 0, whole=True)
COUNT_OR_ZERO = Range("0 or more", lambda x: x >= 0, whole=True)
# One side of an image. No memory holds larger ones.
PIXELS = Range("from 1 to 16384", lambda x: 1 <= x <= 16384, whole=True)
FINITE = Range("a number", lambda x: True)
POSITIVE = Range("positive", lambda x: x > 0)
NOT_NEGATIVE = Range("0 or more", lambda x: x >= 0)
SHARE = Range("from 0 to 1", lambda x: 0 <= x <= 1)
SHARE_ABOVE_ZERO = Range("above 0 and at most 1", lambda x: 0 < x <= 1)
SHARE_BELOW_ONE = Range("at least 0 and below 1", lambda x: 0 <= x < 1)
SEED = Range(f"from 0 to {LARGEST}", lambda x: x >= 0, whole=True)
WIDTH = Range("even and positive", lambda x: x > 0 and x % 2 == 0, whole=True)
DEVICES = Range("positive, or -1 for all that remain", lambda x: x > 0 or x == -1, whole=True)

# The types of a value, in words.
KINDS: dict[type, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text in quotes",
    tuple: "a tuple, as (1, 2)",
}


def check_type(key: str, value: Any, like: Any) -> None:
    """Checks that a value has the type of `like`. A whole number is a number, too.

    Raises:
      WrongValue: if it has another type.
    """
    kind = type(like)
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise WrongValue(key, f"is {value!r}; it must be like {like!r}, {KINDS[kind]}")


def check_number(key: str, value: Any, allowed: Range) -> None:
    """Checks that a value is a number in a range.

    Raises:
      WrongValue: if it is not.
    """
    check_type(key, value, 1 if allowed.whole else 1.0)
    if not math.isfinite(value):
        raise WrongValue(key, f"is {value}; it must be {allowed.words}, and finite")
    if not allowed.contains(value):
        raise WrongValue(key, f"is {value}; it must be {allowed.words}")
    if allowed.whole and value > LARGEST:
        raise WrongValue(key, f"is {value}; it must be at most {LARGEST}")


def check_expression(key: str, value: Any) -> None:
    """Checks that a value is a regular expression.

    Raises:
      WrongValue: if it is not.
    """
    check_type(key, value, "")
    try:
        re.compile(value)
    except re.error as error:
        raise WrongValue(key, f'is "{value}", not a regular expression: {error}') from error


def with_tuples(value: Any) -> Any:
    """Returns a JSON value with tuples in place of its lists, as configs hold them."""
    if isinstance(value, list):
        return tuple(map(with_tuples, value))
    if isinstance(value, dict):
        return {key: with_tuples(item) for key, item in value.items()}
    return value


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of a config. Its values are checked when it is made.

    A field of type `Annotated[..., Range]` is a number in that range, or a tuple of such numbers. A
    field of type `Literal` is one of its texts. The keys of a field of type `Mapping` are the
    user's. A section with further rules has its own `__post_init__`.

    Raises:
      WrongValue: if a value is wrong. The message names the field and what would be right.
    """

    def __post_init__(self) -> None:
        """Checks each field by itself."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if is_named(field):
                if not isinstance(value, Mapping):
                    raise WrongValue(field.name, f"is {value!r}; it must be a dict by name")
            elif not section_of(field.type):
                check_type(field.name, value, field.default)
                check_field(field.name, value, field)

    @classmethod
    def of(cls, values: Any, where: str) -> Self:
        """Makes a section, and the sections in it, from a part of a config.

        Args:
          values: the values by the names of the fields.
          where: the key of the section, for messages, such as "config.optimizer".

        Raises:
          WrongValue: if a key is missing or unknown, or a value is wrong. The message names the
            whole key, such as "config.optimizer.momentum".
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if not isinstance(values, Mapping):
            raise WrongValue(where, f"is {values!r}; it must hold {', '.join(sorted(fields))}")
        for key in values:
            if key not in fields:
                raise WrongValue(
                    f"{where}.{key}", f"is not known: {did_you_mean(key, sorted(fields))}"
                )
        made = {}
        for name in sorted(fields):
            key, kind = f"{where}.{name}", fields[name].type
            if name not in values:
                raise WrongValue(
                    key, "is missing; begin with kdjax.default_config() or kdjax.extra_set()"
                )
            value = values[name]
            each = section_of(get_args(kind)[1]) if is_named(fields[name]) else None
            if section := section_of(kind):
                value = section.of(value, key)
            elif each and isinstance(value, Mapping):
                value = {inner: each.of(entry, f"{key}.{inner}") for inner, entry in value.items()}
            made[name] = value
        try:
            return cls(**made)
        except WrongValue as error:
            raise WrongValue(f"{where}.{error.key}", error.problem) from None


def choices_of(field: dataclasses.Field[Any]) -> tuple[str, ...]:
    """Returns the texts that a field accepts, or none if its type is not `Literal`."""
    return get_args(field.type) if get_origin(field.type) is Literal else ()


def range_of(field: dataclasses.Field[Any]) -> Range | None:
    """Returns the range of a field's number or numbers, or None if it has none."""
    marks = get_args(field.type)[1:] if get_origin(field.type) is Annotated else ()
    return next((mark for mark in marks if isinstance(mark, Range)), None)


def check_field(key: str, value: Any, field: dataclasses.Field[Any]) -> None:
    """Checks that a value is one of a field's choices and that its numbers are in the range.

    Raises:
      WrongValue: if the value is wrong.
    """
    if (choices := choices_of(field)) and value not in choices:
        raise WrongValue(key, f'is "{value}"; it must be {" or ".join(choices)}')
    if allowed := range_of(field):
        for number in value if isinstance(value, tuple) else (value,):
            check_number(key, number, allowed)


def is_named(field: dataclasses.Field[Any]) -> bool:
    """Returns True if the keys of a field are names that the user gives."""
    return get_origin(field.type) is Mapping


def section_of(kind: Any) -> type[Section] | None:
    """Returns the type of a field if it is a section, else None."""
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None
