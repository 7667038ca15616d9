"""What a value of a config may be: of the type of its default, and a number within its range."""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from kdjax.errors import UserError

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
