"""The sections of a config: frozen dataclasses of which each says what its values may be.

Each stands in the room that uses it. Default, type, range and comment of a value are one field.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args, get_origin

from kdjax.utils.errors import UserError

# Steps are counted in 32 bits on the devices, and seeds are kept beside them.
LARGEST = 2**31 - 1


class WrongValue(UserError):
    """A value of a config that cannot be.

    Attributes:
      key: whose value it is, as `config.optimizer.momentum`.
      problem: the message without the key.
    """

    def __init__(self, key: str, problem: str):
        super().__init__(f"{key} {problem}")
        self.key = key
        self.problem = problem


class Range(NamedTuple):
    """Which numbers make sense; none does that is not finite.

    Attributes:
      words: what stands behind "it must be".
      contains: says of a finite number whether it is one of them.
      whole: whether they are whole numbers, which are no larger than `LARGEST`.
    """

    words: str
    contains: Callable[[float], bool]
    whole: bool = False


COUNT = Range("positive", lambda x: x > 0, whole=True)
COUNT_OR_ZERO = Range("0 or more", lambda x: x >= 0, whole=True)
# Of one side of an image. Larger ones fit into no memory.
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
    """Requires a value of the type of `like`; a whole number is a number, too.

    Raises:
      WrongValue: naming the key, its value, and what would be right.
    """
    kind = type(like)
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise WrongValue(key, f"is {value!r}; it must be like {like!r}, {KINDS[kind]}")


def check_number(key: str, value: Any, allowed: Range) -> None:
    """Requires a number within a range.

    Raises:
      WrongValue: naming the key, its value, and what would be right.
    """
    check_type(key, value, 1 if allowed.whole else 1.0)
    if not math.isfinite(value):
        raise WrongValue(key, f"is {value}; it must be {allowed.words}, and finite")
    if not allowed.contains(value):
        raise WrongValue(key, f"is {value}; it must be {allowed.words}")
    if allowed.whole and value > LARGEST:
        raise WrongValue(key, f"is {value}; it must be at most {LARGEST}")


def check_expression(key: str, value: Any) -> None:
    """Requires a regular expression.

    Raises:
      WrongValue: naming the key, its value, and what is wrong with it.
    """
    check_type(key, value, "")
    try:
        re.compile(value)
    except re.error as error:
        raise WrongValue(key, f'is "{value}", which is no regular expression: {error}') from error


def with_tuples(value: Any) -> Any:
    """What JSON holds, with tuples in place of its lists, as configs have them."""
    if isinstance(value, list):
        return tuple(map(with_tuples, value))
    if isinstance(value, dict):
        return {key: with_tuples(item) for key, item in value.items()}
    return value


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


def check_field(key: str, value: Any, field: dataclasses.Field[Any]) -> None:
    """Requires one of a field's choices, and numbers within its range, if it has any.

    Raises:
      WrongValue: If the value is another one. The message names the key and the right values.
    """
    if (choices := choices_of(field)) and value not in choices:
        raise WrongValue(key, f'is "{value}"; it must be {" or ".join(choices)}')
    if allowed := range_of(field):
        for number in value if isinstance(value, tuple) else (value,):
            check_number(key, number, allowed)


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
    check_type(key, value, field.default)
    check_field(key, value, field)
