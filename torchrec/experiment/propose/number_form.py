"""How text files write numbers: the sign before the decimals, and what stands for a number that is missing."""

from __future__ import annotations

import re
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from torchrec.datasets.number_text import MARKERS, Decimal, are_number_text
from torchrec.datasets.source import TableSource
from torchrec.experiment.propose._text import has_decimal_comma

_MANY = 100  # different numbers, beside which a word is no category
_FEW = 2  # words among numbers that stand for missing ones
_OFTEN = 2  # rows that they are in
_SENTINEL = r"^\s*-999+([.,]0*)?\s*$"  # as statistics programs write what was not asked


class NumberForm(NamedTuple):
    """How numbers are written.

    Attributes:
        decimal: the sign before the decimals.
        missing: texts that stand for missing numbers, beside those that do in every text file.
    """

    decimal: Decimal = "."
    missing: tuple[str, ...] = ()

    @property
    def notice(self) -> str:
        """What a person should look at; empty where nothing is unusual."""
        found = ["numbers with a decimal comma (`data.decimal`)"] if self.decimal == "," else []
        if self.missing:
            texts = " and ".join(f"'{text}'" for text in self.missing)
            found.append(f"{texts} for missing numbers (`data.missing`)")
        return f"The files are read as having {', and '.join(found)}." if found else ""


def number_form_of(source: TableSource) -> NumberForm:
    r"""Return how text files write numbers, by their first rows.

    Decimals follow a comma where numbers of a column cannot be written otherwise, and no column has
    decimals behind a point. A word stands for missing numbers where it comes again and again among many
    different numbers, alone or with one other; -999 and the like where no other number is below 0.

    Args:
        source: the files; of Parquet nothing is to be asked.

    Example:
        >>> import pathlib, tempfile
        >>> from torchrec.datasets.text_dialect import TextDialect
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "log.csv")
        ...     rows = [f"{i};{i},05;{'k.A.' if i % 9 == 0 else i}" for i in range(200)]
        ...     _ = path.write_text("\n".join(["user;price;age", *rows]))
        ...     number_form_of(TableSource(path, dialect=TextDialect(delimiter=";")))
        NumberForm(decimal=',', missing=('k.A.',))
    """
    table = next(source.scan(), None)
    if table is None or source.files[0].format == "parquet":
        return NumberForm()
    texts = {field.name: table[field.name] for field in table.schema if pt.is_string(field.type)}
    comma = any(has_decimal_comma(name, text) for name, text in texts.items())
    point = any(map(pt.is_floating, table.schema.types))
    decimal: Decimal = "," if comma and not point else "."
    missing: dict[str, None] = {}
    for text in texts.values():
        missing |= dict.fromkeys(_words_among_numbers(text, decimal))
    numbers = [name for name in table.column_names if _have_sentinel(table[name])]
    if numbers:
        as_written = next(source.retyped(dict.fromkeys(numbers, "string")).scan(numbers))
        for name in numbers:
            distinct = pc.unique(as_written[name])
            found = distinct.filter(pc.match_substring_regex(distinct, _SENTINEL))
            missing |= dict.fromkeys(found.to_pylist())
    return NumberForm(decimal, tuple(missing))


def _words_among_numbers(text: pa.ChunkedArray, decimal: Decimal) -> list[str]:
    """Return words that come among many different numbers, if they are few."""
    counts = pc.value_counts(text.drop_null())
    values, times = counts.field("values"), counts.field("counts")
    trimmed = pc.utf8_trim_whitespace(values)
    marked = pc.is_in(trimmed, pa.array(MARKERS))
    numbers = are_number_text(trimmed, decimal)
    words = values.filter(pc.invert(pc.or_(numbers, marked)))
    codes = pc.any(pc.match_substring_regex(values, r"^\s*[-+]?0[0-9]")).as_py()
    if not 0 < len(words) <= _FEW or pc.sum(numbers).as_py() < _MANY or codes:
        return []
    often = pc.greater_equal(times, _OFTEN).filter(pc.is_in(values, words))
    with_digits = pc.any(pc.match_substring_regex(words, "[0-9]")).as_py()
    found: list[str] = words.to_pylist()
    return [] if with_digits or not pc.all(often).as_py() else found


def _have_sentinel(numbers: pa.ChunkedArray) -> bool:
    """Say whether one number below 0, as -999, comes often among many that are not."""
    if not (pt.is_signed_integer(numbers.type) or pt.is_floating(numbers.type)):
        return False
    counts = pc.value_counts(numbers.drop_null())
    values, times = counts.field("values"), counts.field("counts")
    below = pc.less(values, 0)
    if len(values) <= _MANY or pc.sum(below).as_py() != 1:
        return False
    text = str(values.filter(below)[0].as_py())
    often: bool = times.filter(below)[0].as_py() >= _OFTEN
    return often and re.search(_SENTINEL, text) is not None
