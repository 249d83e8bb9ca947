"""Refusal of option values that cannot be: by name and value, with what would do."""

import difflib
import numbers
from collections.abc import Collection, Iterable, Mapping

NONE: Mapping = {}
SEED_BOUND = 2**31  # seeds are integers from 0 to below it: a larger one would be cut to another, silently


def check(section: str, options, choices: Mapping[str, Collection] = NONE, bounds: Mapping[str, tuple] = NONE) -> None:
    """Checks attributes of `options`.

    Args:
      section: where a config has them, for the message.
      choices: name -> the values that it may have.
      bounds: name -> (least, greatest), both allowed; without a greatest one `(least, None)`.

    Raises:
      ValueError: a value that is none of the choices, out of bounds, or NaN.
    """
    for name, accepted in choices.items():
        value = getattr(options, name)
        if value not in accepted:
            raise ValueError(f"{section}.{name}={value!r}: one of {', '.join(map(str, accepted))}")
    for name, (least, greatest) in bounds.items():
        value = getattr(options, name)
        if not (least <= value and (greatest is None or value <= greatest)):
            allowed = f"must be at least {least}" if greatest is None else f"a number from {least} to {greatest}"
            raise ValueError(f"{section}.{name}={value}: {allowed}")


def check_sizes(section: str, options, least: Mapping[str, int]) -> None:
    """Checks attributes of `options` that are sizes: integers of at least so much.

    Raises:
      ValueError: no integer, or too small a one.
    """
    for name, smallest in least.items():
        value = getattr(options, name)
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < smallest:
            raise ValueError(f"{section}.{name}={value!r}: expected an integer of at least {smallest}")


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, for the end of a message; empty where nothing known is like the name."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""
