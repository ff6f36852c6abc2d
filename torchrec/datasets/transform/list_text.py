"""Lists that were written as text: in brackets, as Python, JSON, NumPy and databases write them."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

BRACKETS = "[]"
"""The `separator` of such lists."""

_SINGLE, _DOUBLE = r"'(?:[^'\\]|\\.)*'", r'"(?:[^"\\]|\\.)*"'
_ENCLOSED = r"(?s)^(?:\[(.*)\]|\((.*)\)|\{(.*)\})$"
# What begins with a quote ends with it, unless the quote is a character like others ('n Sync).
_BY_COMMAS = rf"(?s)\s*({_SINGLE}|{_DOUBLE}|[^,]*?)\s*(?:,|$)"
_WORD = rf"(?:{_SINGLE}|{_DOUBLE}|[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?|nan|None)"
_BY_BLANKS, _ARE_SPACED = rf"(?s)({_WORD})(?:\s+|$)", rf"(?s)^{_WORD}(?:\s+{_WORD})+$"
_QUOTED = r"""(?s)^('.*'|".*")$"""
_MISSING = pa.array(["", "None", "null", "NULL", "nan", "NaN", "<NA>"])
_END = "\x1f"  # of a part; not used in text

_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|x[0-9a-fA-F]{2}|.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


def split_brackets(text: pa.Array) -> pa.ListArray:
    r"""Return the lists that strings write, as lists of strings.

    Round, square or curly brackets enclose a list; commas separate its parts, or blanks where these
    are all quoted or numbers, as NumPy writes them. Quotes around a part are left out, a whole number
    written as ``2.0`` is 2, and ``None``, ``null`` and ``nan`` without quotes are nulls.

    Args:
        text: strings; a null stays one.

    Example:
        >>> split_brackets(pa.array(["['a, b', \"it's\"]", "[1 2]", "[]", "[New York, None]"])).to_pylist()
        [['a, b', "it's"], ['1', '2'], [], ['New York', None]]
    """
    if pt.is_binary(text.type) or pt.is_large_binary(text.type):
        text = text.cast(pa.string())
    inner = pc.replace_substring_regex(pc.utf8_trim_whitespace(text), _ENCLOSED, r"\1\2\3")
    inner = pc.utf8_trim_whitespace(inner)
    ended = pc.replace_substring_regex(inner, _BY_COMMAS, rf"\1{_END}")
    spaced = pc.match_substring_regex(inner, _ARE_SPACED)
    if pc.any(spaced).as_py():
        by_blanks = pc.replace_substring_regex(inner, _BY_BLANKS, rf"\1{_END}")
        ended = pc.if_else(spaced, by_blanks, ended)
    ended = pc.if_else(pc.equal(inner, ""), None, pc.replace_substring_regex(ended, f"{_END}$", ""))
    lists = pc.split_pattern(ended, _END)  # without parts where there is no text
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), _ends(lists)])
    return pa.ListArray.from_arrays(offsets, _cleaned(lists.flatten()), mask=text.is_null())


def _ends(lists: pa.ListArray) -> pa.Array:
    return pc.cumulative_sum(pc.fill_null(pc.list_value_length(lists), 0)).cast(pa.int32())


def _cleaned(parts: pa.Array) -> pa.Array:
    """Return parts without quotes, those without as numbers and nulls are written elsewhere."""
    bare = pc.replace_substring_regex(parts, r"^([-+]?[0-9]+)\.0*$", r"\1")
    bare = pc.if_else(pc.is_in(bare, _MISSING.cast(parts.type)), None, bare)
    quoted = pc.match_substring_regex(parts, _QUOTED)
    if not pc.any(quoted).as_py():
        return bare
    inside = pc.utf8_slice_codeunits(parts, 1, -1)
    escaped = pc.and_(quoted, pc.match_substring(parts, "\\"))
    if pc.any(escaped).as_py():
        written = inside.filter(escaped).to_pylist()
        inside = pc.replace_with_mask(
            inside, escaped, pa.array(map(_unescaped, written), parts.type)
        )
    return pc.if_else(quoted, inside, bare)


def _unescaped(text: str) -> str:
    plain = _ESCAPE.sub(_character, text)
    # JSON writes a character beyond 16 bits as two halves.
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _character(match: re.Match[str]) -> str:
    code = match[1]
    return chr(int(code[1:], 16)) if len(code) > 1 else _ESCAPED.get(code, code)
