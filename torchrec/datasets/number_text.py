"""Numbers as people write them: with what stands for a missing one, thousands set off, a percent or currency sign."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

Decimal = Literal[".", ","]

_MARKERS = """NA N.A. na None none NONE Null nil NIL ? - -- --- . (null) (none) (NULL) <NA> <null> NaT
#NULL! #DIV/0! #VALUE! #NUM! #REF! missing unknown undefined"""
MARKERS = _MARKERS.split()
"""What stands for a missing value in columns of numbers, times and truth values, but may be text."""

_CURRENCY = "[$€£¥₹]"
_SPACE = "[ \u00a0\u202f'\u2019]"


def _pattern(decimal: Decimal) -> str:
    point, comma = (r"\.", ",") if decimal == "." else (",", r"\.")
    whole = rf"([0-9]{{1,3}}(({comma}|{_SPACE})[0-9]{{3}})+|[0-9]+)"
    number = rf"({whole}({point}[0-9]*)?|{point}[0-9]+)([eE][-+]?[0-9]+)?"
    return rf"^([-+]?{_CURRENCY}? ?|{_CURRENCY} ?[-+]?){number} ?(%|{_CURRENCY})?$"


_PATTERNS: dict[Decimal, str] = {".": _pattern("."), ",": _pattern(",")}


class UnreadableError(ValueError):
    """A value is no number.

    Attributes:
        row: where it stands.
        value: the text.
    """

    def __init__(self, row: int, value: str) -> None:
        super().__init__(value)
        self.row, self.value = row, value


def are_number_text(text: pa.Array, decimal: Decimal = ".") -> pa.BooleanArray:
    """Say of each text whether it is a number as people write it.

    Args:
        text: strings, without blanks around them.
        decimal: the sign before the decimals.

    Example:
        >>> are_number_text(pa.array(["1,234.5", "12 %", "k.A.", None])).to_pylist()
        [True, True, False, None]
    """
    return pc.match_substring_regex(text, _PATTERNS[decimal])


def read_number_text(text: pa.Array, type: pa.DataType, decimal: Decimal = ".") -> pa.Array:
    """Read text as numbers.

    Args:
        text: strings; nulls stay.
        type: of the numbers: int64, which takes whole numbers however they are written, or float64.
        decimal: the sign before the decimals.

    Raises:
        UnreadableError: for the first value that is no such number.

    Example:
        >>> read_number_text(pa.array(["12", "2.0", "NA", "1,234"]), pa.int64()).to_pylist()
        [12, 2, None, 1234]
        >>> read_number_text(pa.array(["1.234,50 €", "12 %", "-"]), pa.float64(), ",").to_pylist()
        [1234.5, 12.0, None]
    """
    trimmed = pc.utf8_trim_whitespace(text)
    missing = pc.fill_null(pc.is_in(trimmed, pa.array([*MARKERS, ""])), True)
    trimmed = pc.if_else(missing, None, trimmed)
    right = pc.fill_null(are_number_text(trimmed, decimal), True)
    plain = pc.replace_substring_regex(
        trimmed, r"[^0-9eE.+-]" if decimal == "." else r"[^0-9eE,+-]", ""
    )
    if decimal == ",":
        plain = pc.replace_substring(plain, ",", ".")
    if pt.is_integer(type):
        plain = pc.replace_substring_regex(plain, r"\.0*$", "")
        right = pc.and_(right, pc.fill_null(pc.match_substring_regex(plain, "^[-+]?[0-9]+$"), True))
    plain = pc.replace_substring_regex(plain, r"^\+", "")
    # Up to the first that is not written so; looked at one by one only where 64 bits do not hold one.
    row = pc.index(right, False).as_py()
    readable = plain if row < 0 else plain.slice(0, row)
    try:
        numbers = pc.cast(readable, type)
    except pa.ArrowInvalid:
        row = next(at for at, cell in enumerate(readable.to_pylist()) if not _fits(cell, type))
    if row < 0:
        return numbers
    raise UnreadableError(row, text[row].as_py())


def _fits(text: str | None, type: pa.DataType) -> bool:
    try:
        pc.cast(pa.array([text], pa.string()), type)
    except pa.ArrowInvalid:
        return False
    return True


def are_marked_numbers(text: pa.ChunkedArray) -> pa.DataType | None:
    """Return the type of a column that is plain numbers but for what stands for missing ones; None of others.

    Example:
        >>> are_marked_numbers(pa.chunked_array([["1", "NA", "3"]]))
        DataType(int64)
        >>> are_marked_numbers(pa.chunked_array([["de", "NA"]])) is None
        True
    """
    distinct = pc.unique(text)
    missing = pc.fill_null(pc.is_in(pc.utf8_trim_whitespace(distinct), pa.array(MARKERS)), True)
    numbers = distinct.filter(pc.invert(missing))
    if not len(numbers) or not pc.any(pc.is_valid(distinct.filter(missing))).as_py():
        return None
    # A code with a leading zero is none.
    if pc.any(pc.match_substring_regex(numbers, r"^\s*[-+]?0[0-9]")).as_py():
        return None
    for type in (pa.int64(), pa.float64()):
        try:
            numbers.cast(type)
        except pa.ArrowInvalid:
            continue
        return type
    return None
