"""Checks of arguments that all packages make, and words of their errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def require_integer(
    value: object, what: str, least: int | None = None, most: int | None = None
) -> int:
    """Return a value that is an integer in a range.

    Args:
        value: to check; True and False are no integers.
        what: names it at the start of the error, such as "`rows` of table 'user'".
        least: the least that it may be. Default: no bound.
        most: the most. Default: no bound.

    Raises:
        TypeError: it is no integer.
        ValueError: it is out of range.

    Example:
        >>> require_integer(3, "`batch_size`", least=1)
        3
        >>> require_integer(0, "`batch_size`", least=1)
        Traceback (most recent call last):
        ValueError: `batch_size` should be at least 1. Received 0.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} should be an integer. Received {value!r}.")
    if least is not None and value < least:
        raise ValueError(f"{what} should be at least {least}. Received {value}.")
    if most is not None and value > most:
        raise ValueError(f"{what} should be at most {most}. Received {value}.")
    return value


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the one of ``names`` that is most like ``name``; None if none is like it. Case counts little.

    Example:
        >>> nearest("batch_siez", ["batch_size", "epochs"]), nearest("colour", ["batch_size", "epochs"])
        ('batch_size', None)
    """
    listed = list(names)
    if name in listed:
        return name
    lower: dict[str, str] = {}
    for other in listed:
        lower.setdefault(other.lower(), other)
    near = difflib.get_close_matches(name.lower(), list(lower), n=1)
    return lower[near[0]] if near else None


def did_you_mean(name: str, names: Iterable[str], quote: str = "'") -> str:
    """Return "; did you mean 'x'?" for the `nearest` of ``names``, "" if none is near.

    Args:
        name: as it was given.
        names: that there are.
        quote: stands on both sides of the answer. Default ``"'"``.

    Example:
        >>> did_you_mean("batch_siez", ["batch_size", "epochs"], quote="`")
        '; did you mean `batch_size`?'
    """
    near = nearest(name, names)
    return "" if near is None else f"; did you mean {quote}{near}{quote}?"
