"""What the values of a column of text are: lists, or numbers and dates as people write them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from torchrec.datasets.transform.list_text import BRACKETS, split_brackets
from torchrec.experiment.propose._roles import looks_like_number
from torchrec.experiment.propose._times import is_text_of_time

_BRACKETED = r"(?s)^\s*(\[.*\]|\(.*\)|\{.*\})\s*$"
_RECORD = r"""^\s*(\{\s*('[^']*'|"[^"]*"|[0-9]+)\s*:|[\[({]\s*[\[({])"""
_MEASURED = r"^[-+]?[0-9]*\.[0-9]+([eE][-+]?[0-9]+)?$|^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"
_SEPARATORS = ("|", ", ", ",", ";", " ")

# Numbers and dates that readers take for text: how they look, and what to do with the column.
_THOUSANDS = r"^\s*[-+]?[0-9]{1,3}(,[0-9]{3})*(\.[0-9]+)?\s*$"
_DECIMAL_COMMA = r"^\s*[-+]?([0-9]+|[0-9]{1,3}(\.[0-9]{3})+),[0-9]+\s*$"
_DAY = r"([0-9]{1,2}[./-][0-9]{1,2}[./-][0-9]{4}|[0-9]{4}[./][0-9]{1,2}[./][0-9]{1,2}|[0-9]{2}[./][0-9]{2}[./][0-9]{2})"
_DATE = rf"^\s*{_DAY}([ T]+[0-9]{{1,2}}:[0-9]{{2}}(:[0-9]{{2}})?( ?[AaPp][Mm])?)?\s*$"


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
    if are_bracketed(strings) and _share(split_brackets(strings).flatten(), _MEASURED) >= 0.5:
        return "lists of measured numbers are no feature: make a column of each"
    if _share(strings, _DATE) >= 0.9:
        return (
            "dates that are not written as in ISO 8601: convert them, e.g. with pandas.to_datetime"
        )
    if _share(strings, ",") < 0.1:
        return None
    short, numeric = r"^\s*[-+]?[0-9]{1,2}(,[0-9]{3})+(\.|\s*$)", looks_like_number(name)
    if _share(strings, _THOUSANDS) >= 0.9 and (
        numeric or _share(strings, short) > 0.05 or _share(strings, r",[0-9]{3}\.[0-9]") > 0.05
    ):
        return (
            "numbers with commas between thousands: convert them, e.g. with "
            'pandas.read_csv(..., thousands=",")'
        )
    if _share(strings, _DECIMAL_COMMA) >= 0.9 and (
        numeric or _share(strings, r",0[0-9]|\.[0-9]{3},") > 0.01
    ):
        return (
            "numbers with a decimal comma: convert them, e.g. with "
            'pandas.read_csv(..., decimal=",")'
        )
    return None


def are_bracketed(strings: pa.Array) -> bool:
    """Say whether strings are lists in brackets, as Python, JSON, NumPy and databases write them.

    Example:
        >>> are_bracketed(pa.array(["['a', 'b']", "[]"])), are_bracketed(pa.array(["Heat (1995)"]))
        (True, False)
    """
    return len(strings) > 0 and _share(strings, _BRACKETED) == 1


def _share(strings: pa.Array, pattern: str) -> float:
    """Return the share of strings in which a pattern is found."""
    found = pc.sum(pc.match_substring_regex(strings, pattern)).as_py()
    return (found or 0) / max(1, len(strings))


def text_of(values: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return a column of text as strings, however it is stored; None if it is none."""
    if pt.is_dictionary(values.type):  # as readers of Parquet give them
        values = values.cast(values.type.value_type)
    is_text = pt.is_string(values.type) or pt.is_large_string(values.type)
    return values if is_text else None


def separator_of(name: str, values: pa.ChunkedArray) -> str | None:
    """Return what separates the parts of a column of strings that are lists, None if they are none.

    A separator is in a tenth of the distinct strings or more, and the parts are few beside the
    strings that they make up: half as many, or all whole numbers. So it is with genres or ids, and
    not with titles.

    Example:
        >>> separator_of("tags", pa.chunked_array([["a|b", "b", "b|c", "a", "c|a", "a|b|c"]]))
        '|'
        >>> titles = pa.chunked_array([["Elephant Man, The", "Heat", "Son in Law"]])
        >>> separator_of("title", titles) is None
        True
    """
    strings = text_of(values)
    if strings is None or is_text_of_time(strings) or unconverted(name, strings):
        return None
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
