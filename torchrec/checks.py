"""Checks of arguments that all packages make, and words of their errors."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable

import torch

# Control and format characters, halves of surrogate pairs, separators of lines and paragraphs.
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


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


def require_type(value: object, what: str, kind: type) -> None:
    """Raise for a value that is of another type.

    Args:
        value: to check.
        what: names it at the start of the error.
        kind: what it should be.

    Raises:
        TypeError: it is something else.

    Example:
        >>> require_type("cpu", "`sizes`", list)
        Traceback (most recent call last):
        TypeError: `sizes` should be a list. Received str.
    """
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "aeiouAEIO" else "a"
        raise TypeError(f"{what} should be {article} {kind.__name__}. Received {_kind_of(value)}.")


def require_list(values: object, what: str, kind: type) -> None:
    """Raise for what is no list or tuple of one type.

    Args:
        values: to check; True and False are no integers.
        what: names it at the start of the error.
        kind: of each of them.

    Raises:
        TypeError: it is something else, or one of them is.

    Example:
        >>> require_list([1, None], "`sizes`", int)
        Traceback (most recent call last):
        TypeError: `sizes` should be a list of int. Received None as number 1.
    """
    if not isinstance(values, list | tuple):
        raise TypeError(f"{what} should be a list of {kind.__name__}. Received {_kind_of(values)}.")
    for number, value in enumerate(values):
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            raise TypeError(
                f"{what} should be a list of {kind.__name__}. "
                f"Received {_kind_of(value)} as number {number}."
            )


def _kind_of(value: object) -> str:
    return "None" if value is None else type(value).__name__


def checked_device(device: object, what: str = "`device`") -> torch.device:
    """Return a device, given as such or by its name.

    Args:
        device: such as ``"cpu"``.
        what: names it at the start of the error.

    Raises:
        TypeError: it is neither a device nor text.
        ValueError: there is no device of this name.

    Example:
        >>> checked_device("cpu")
        device(type='cpu')
        >>> checked_device("gpu")
        Traceback (most recent call last):
        ValueError: `device` should be a torch.device or its name, such as 'cpu' or 'cuda:0'. Received 'gpu'.
    """
    if isinstance(device, torch.device):
        return device
    expected = f"{what} should be a torch.device or its name, such as 'cpu' or 'cuda:0'."
    # A number stands for an accelerator's, as elsewhere in PyTorch.
    if isinstance(device, bool) or not isinstance(device, str | int):
        raise TypeError(f"{expected} Received {device!r}.")
    # Builds for CUDA know numbers also where there is none, and would fail later.
    if isinstance(device, int) and not torch.accelerator.is_available():
        raise ValueError(f"{expected} Received {device!r}.")
    try:
        return torch.device(device)
    except (RuntimeError, ValueError, OverflowError) as error:
        raise ValueError(f"{expected} Received {device!r}.") from error


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


def printable(text: str, keep: str = "") -> str:
    r"""Return ``text`` with escapes for what is not seen but does something to those who look.

    Names come from files of others. Printed as they are, control characters steer a terminal,
    overrides of the direction of writing show another name, and characters without width none.

    Args:
        text: with names in it.
        keep: characters that stay: line breaks, of a text with several lines.

    Example:
        >>> print(printable("user\x1b[31m\u202egpj.exe\n"))
        user\x1b[31m\u202egpj.exe\n
    """
    if text.isprintable():
        return text
    return "".join(
        mark.encode("unicode_escape").decode("ascii")
        if mark not in keep and unicodedata.category(mark) in _UNSEEN
        else mark
        for mark in text
    )
