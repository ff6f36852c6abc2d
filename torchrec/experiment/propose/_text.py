"""What the values of a column of text are: lists, or numbers and dates as people write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from torchrec.datasets.number_text import Decimal, UnreadableError, read_number_text
from torchrec.datasets.transform.list_text import BRACKETS, split_brackets
from torchrec.experiment.propose._roles import looks_like_number
from torchrec.experiment.propose._times import is_text_of_time

_BRACKETED = r"(?s)^\s*(\[.*\]|\(.*\)|\{.*\})\s*$"
_RECORD = r"""^\s*(\{\s*('[^']*'|"[^"]*"|[0-9]+)\s*:|[\[({]\s*[\[({])"""
_MEASURED = r"^[-+]?[0-9]*\.[0-9]+([eE][-+]?[0-9]+)?$|^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"
NUMBER = r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$"
"""A number as Python and JSON write it."""
WEIGHT = ":"
"""What stands between an id and its weight."""
_PAIR = rf"^[^{WEIGHT}]+{WEIGHT}[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?$"
_FIRST = 20
_SEPARATORS = ("|", ", ", ",", ";", " ")

# Numbers and dates that readers take for text: how they look, and what to do with the column.
_THOUSANDS = r"^\s*[-+]?[0-9]{1,3}(,[0-9]{3})*(\.[0-9]+)?\s*$"
_DECIMAL_COMMA = r"^\s*[-+]?([0-9]+|[0-9]{1,3}(\.[0-9]{3})+),[0-9]+\s*$"
_SPACE = "[ '\u00a0\u202f\u2019]"
_SPACED = rf"^\s*[-+]?[0-9]{{1,3}}({_SPACE}[0-9]{{3}})*([.,][0-9]+)?\s*$"
_SIGNED = r"[0-9] ?[%$€£¥₹]\s*$|^\s*[-+]?[$€£¥₹] ?[-+]?[0-9.]"
_UNIT = r"^\s*[-+]?[0-9]+([.,][0-9]+)? ?[a-zA-Zµ°²³/]{1,5}\s*$"
_MANY = 100  # distinct values: fewer, as 64GB and 128GB, are categories
_DAY = r"([0-9]{1,2}[./-][0-9]{1,2}[./-][0-9]{4}|[0-9]{4}[./][0-9]{1,2}[./][0-9]{1,2}|[0-9]{2}[./][0-9]{2}[./][0-9]{2})"
_DATE = rf"^\s*{_DAY}([ T]+[0-9]{{1,2}}:[0-9]{{2}}(:[0-9]{{2}})?( ?[AaPp][Mm])?)?\s*$"


class Text(NamedTuple):
    """What the strings of a column are.

    Attributes:
        is_time: whether they are dates or times as in ISO 8601.
        unconverted: what to do with them, where they are numbers or dates as people write them.
        separator: what separates their parts, where they are lists.
        weight_separator: what stands between each part and its weight.
        is_measured: whether most parts are measured numbers.
    """

    is_time: bool = False
    unconverted: str | None = None
    separator: str | None = None
    weight_separator: str | None = None
    is_measured: bool = False


def look_at_text(name: str, values: pa.ChunkedArray, chosen: bool = False) -> Text:
    """Return what the values of a column of text are.

    Args:
        name: of the column.
        values: some of them, however they are stored.
        chosen: whether a person chose that they are strings. Then they are no numbers. Default False.

    Example:
        >>> look_at_text("discount", pa.chunked_array([["12 %", "7.5 %"]])).unconverted
        'numbers with a percent or currency sign: convert them to numbers'
        >>> look_at_text("discount", pa.chunked_array([["12 %"]]), chosen=True) == Text()
        True
    """
    if pt.is_dictionary(values.type):  # as readers of Parquet give them
        values = values.cast(values.type.value_type)
    if not (pt.is_string(values.type) or pt.is_large_string(values.type)):
        return Text()
    if is_text_of_time(values):
        return Text(is_time=True)
    if not chosen and are_vectors(values):
        return Text(separator=BRACKETS, is_measured=True)
    reason = None if chosen else unconverted(name, values)
    if reason:
        return Text(unconverted=reason)
    of_weighted = weighted_separator_of(values)
    if of_weighted is not None:
        return Text(separator=of_weighted, weight_separator=WEIGHT)
    return Text(separator=separator_of(values))


def unconverted(name: str, strings: pa.ChunkedArray) -> str | None:
    """Return what to do with strings that are numbers or dates as people write them; None if they are none.

    Nine in ten of them should be. What may as well be lists of ids, as "3,17", needs a sign of numbers: a
    part that no id has (",05", "1,234" beside "12"), or the name.

    Example:
        >>> unconverted("amount", pa.chunked_array([["1.196,17", "0,05"]]))
        'numbers with a decimal comma: convert them, e.g. with pandas.read_csv(..., decimal=",")'
        >>> unconverted("history", pa.chunked_array([["3,17", "5"]])) is None
        True
    """
    strings = pc.unique(strings.slice(0, 10_000).drop_null())
    if _share(strings, _RECORD) >= 0.9:
        return "records or lists in lists, written as text: make a column of each part"
    if _share(strings, _DATE) >= 0.9:
        return (
            "dates that are not written as in ISO 8601: convert them, e.g. with pandas.to_datetime"
        )
    if _share(strings, _UNIT) >= 0.9 and len(strings) >= _MANY:
        units = pc.unique(pc.replace_substring_regex(strings, r"^[-+ 0-9.,]+|\s+$", ""))
        if len(units) <= max(1, len(strings) // 20):
            return f"numbers with a unit ({units[0]}): make them numbers without it"
    return _ADVICE.get(_written_as(name, strings))


_ADVICE = {
    "signs": "numbers with a percent or currency sign: convert them to numbers",
    "spaces": "numbers with spaces between thousands: convert them to numbers",
    "thousands": (
        "numbers with commas between thousands: convert them, e.g. with "
        'pandas.read_csv(..., thousands=",")'
    ),
    "decimal comma": (
        'numbers with a decimal comma: convert them, e.g. with pandas.read_csv(..., decimal=",")'
    ),
}


def are_written_numbers(name: str, strings: pa.ChunkedArray, decimal: Decimal) -> bool:
    """Say whether text is numbers as people write them, which readers of text files read if they are asked to.

    Example:
        >>> are_written_numbers("discount", pa.chunked_array([["12 %", "7.5 %"]]), ".")
        True
        >>> are_written_numbers("history", pa.chunked_array([["3,17", "5"]]), ".")
        False
    """
    strings = pc.unique(strings.slice(0, 10_000).drop_null())
    style = _written_as(name, strings) if len(strings) else ""
    has_decimal = style in ("signs", "spaces") or (style == "decimal comma") == (decimal == ",")
    if not style or not has_decimal:
        return False
    try:
        read_number_text(strings, pa.float64(), decimal)
    except UnreadableError:
        return False
    return True


def has_decimal_comma(name: str, strings: pa.ChunkedArray) -> bool:
    """Say whether text is numbers whose decimals follow a comma, and cannot be lists of ids.

    Example:
        >>> has_decimal_comma("price", pa.chunked_array([["1,5", "2"]]))
        False
        >>> has_decimal_comma("price", pa.chunked_array([["1,5", "2,25"]]))
        True
    """
    strings = pc.unique(strings.slice(0, 10_000).drop_null())
    return len(strings) > 0 and _written_as(name, strings) == "decimal comma"


def _written_as(name: str, strings: pa.Array) -> str:
    """Return a key of `_ADVICE`, or "" for what is written in none of them."""
    numeric = looks_like_number(name)
    if _share(strings, _SIGNED) >= 0.9:
        return "signs"
    short = rf"^\s*[-+]?[0-9]{{1,2}}({_SPACE}[0-9]{{3}})+([.,]|\s*$)"
    if _share(strings, _SPACED) >= 0.9 and _share(strings, short) > (0 if numeric else 0.05):
        return "spaces"
    if _share(strings, ",") < 0.1:
        return ""
    short = r"^\s*[-+]?[0-9]{1,2}(,[0-9]{3})+(\.|\s*$)"
    if _share(strings, _THOUSANDS) >= 0.9 and (
        numeric or _share(strings, short) > 0.05 or _share(strings, r",[0-9]{3}\.[0-9]") > 0.05
    ):
        return "thousands"
    if _share(strings, _DECIMAL_COMMA) >= 0.9 and (
        numeric or _share(strings, r",0[0-9]|\.[0-9]{3},") > 0.01
    ):
        return "decimal comma"
    return ""


def are_bracketed(strings: pa.Array) -> bool:
    """Say whether strings are lists in brackets, as Python, JSON, NumPy and databases write them.

    Example:
        >>> are_bracketed(pa.array(["['a', 'b']", "[]"])), are_bracketed(pa.array(["Heat (1995)"]))
        (True, False)
    """
    first = strings[:_FIRST]  # a few mostly tell that they are none
    return len(first) > 0 and _share(first, _BRACKETED) == 1 == _share(strings, _BRACKETED)


def are_vectors(strings: pa.ChunkedArray) -> bool:
    """Say whether strings are lists in brackets, and most of their parts numbers with decimals.

    Example:
        >>> are_vectors(pa.chunked_array([["[0.5, -1e-3]", "[2, 0.25]"]]))
        True
    """
    distinct = pc.unique(strings.slice(0, 10_000).drop_null())
    return are_bracketed(distinct) and _share(split_brackets(distinct).flatten(), _MEASURED) >= 0.5


def _share(strings: pa.Array, pattern: str) -> float:
    """Return the share of strings in which a pattern is found."""
    found = pc.sum(pc.match_substring_regex(strings, pattern)).as_py()
    return (found or 0) / max(1, len(strings))


def weighted_separator_of(strings: pa.ChunkedArray) -> str | None:
    """Return what separates the parts of strings that are ids with weights, some with decimals; None of others.

    Example:
        >>> weighted_separator_of(pa.chunked_array([["7:0.5|9:1", "8:2|3:0.25"]]))
        '|'
        >>> weighted_separator_of(pa.chunked_array([["12:30|13:45", "1:00|2:00"]])) is None
        True
    """
    distinct = pc.unique(strings.slice(0, 10_000).drop_null())
    for separator in [BRACKETS] if are_bracketed(distinct) else _SEPARATORS:
        split = split_brackets if separator == BRACKETS else _split_by(separator)
        parts = split(distinct).flatten()
        parts = parts.filter(pc.not_equal(parts, ""))
        if len(parts) == len(distinct) or _share(parts, _PAIR) < 1:
            continue
        if _share(parts, rf"{WEIGHT}.*\.") > 0.1:
            return separator
    return None


def _split_by(separator: str) -> Callable[[pa.Array], pa.ListArray]:
    return lambda strings: pc.split_pattern(strings, separator)


def separator_of(strings: pa.ChunkedArray) -> str | None:
    """Return what separates the parts of strings that are lists, None if they are none.

    A separator is in a tenth of the distinct strings or more, and the parts are few beside the
    strings that they make up: half as many, or all whole numbers. So it is with genres or ids, and
    not with titles.

    Example:
        >>> separator_of(pa.chunked_array([["a|b", "b", "b|c", "a", "c|a", "a|b|c"]]))
        '|'
        >>> titles = pa.chunked_array([["Elephant Man, The", "Heat", "Son in Law"]])
        >>> separator_of(titles) is None
        True
    """
    strings = pc.unique(strings.drop_null())
    if not len(strings):
        return None
    if are_bracketed(strings):
        return BRACKETS
    for separator in _SEPARATORS:
        having = strings.filter(pc.match_substring(strings, separator))
        if len(having) < max(2, len(strings) / 10):
            continue
        parts = pc.unique(pc.split_pattern(strings, separator).flatten())
        numbers = pc.all(pc.match_substring_regex(parts, r"^(-?[0-9]+)?$")).as_py()
        if numbers or 2 * len(parts) <= len(strings):
            return separator
    return None
