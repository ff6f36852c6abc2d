"""Labels: 0 or 1, numbers or classes, from a column or an expression."""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
import pyarrow as pa

from torchrec.datasets.data_error import DataError
from torchrec.datasets.expression import Expression, parse_expression
from torchrec.datasets.transform.columns import (
    Array,
    Source,
    kind_of,
    read_numbers,
    require_columns,
    stored,
    whole,
)

_YES_WORDS = """1 yes y true t positive pos click clicked clk buy bought purchase purchased order
conversion converted like liked good won success active churned fraud"""
_YES = frozenset(_YES_WORDS.split())
_NO = re.compile(
    r"(no|not|non|un|dis|false|neg|never|none|0|n|f|-)([^a-z]|$)|(no|not|non|un|dis)[_ -]?"
)
_FEW = 8  # values that a message lists

TargetKind = Literal["click", "regression", "multiclass", "ordinal"]


def _positive(values: pa.Array) -> str:
    """Return the string that most likely stands for 1: one that says so, or not the contrary."""
    found = [one for one in values.unique().to_pylist() if isinstance(one, str) and len(one) < 40]
    if not found:
        return "yes"

    def doubt(text: str) -> tuple[bool, bool, int]:
        word = text.strip().lower()
        negated = _NO.match(word) is not None and word not in _YES
        return (negated, word not in _YES, found.index(text))

    return min(found, key=doubt)


def _threshold(values: Array) -> float:
    """Return the number above which about half of the values are, some of them and not all."""
    distinct = np.unique(values)
    above = 1 - np.searchsorted(np.sort(values), distinct[:-1], side="right") / len(values)
    threshold: float = distinct[int(np.abs(above - 0.5).argmin())].item()
    return threshold


class Label:
    """Reads the label.

    Args:
        text: a column, or an expression over columns.
        kind: what its values should be: 0 and 1, numbers, or classes. Default 0 and 1.
        classes: how many classes there are, numbered from 0.

    Attributes:
        columns: the columns that it reads.
    """

    def __init__(self, text: str, kind: TargetKind = "click", classes: int | None = None) -> None:
        self.text, self._kind, self._classes = text, kind, classes
        self._expression: Expression | None = None
        self.columns = [text]
        if not text.isidentifier():
            self._expression = parse_expression(text)
            self.columns = sorted(self._expression.columns)
            if not self.columns:
                raise ValueError(
                    "The label should read a column; one whose name is no word stands in "
                    f"backticks, as in `{text}`. Received {text!r}."
                )
        self._sources = [Source("label", column) for column in self.columns]

    def read(self, table: pa.Table) -> Array:
        """Return the labels of all samples, float32 ``(B,)``: 0 or 1, or what the kind asks for."""
        require_columns(table.column_names, self._sources)
        expression = self._expression
        values = table.column(self.text) if expression is None else expression.evaluate(table)
        if isinstance(values, pa.ChunkedArray):
            values = whole(values)
        if kind_of(values.type) not in ("integers", "numbers", "nulls"):
            raise ValueError(self._no_numbers(values))
        numbers = read_numbers(values)
        if numbers.infinite:
            raise DataError(
                f"{self._should()} Received {numbers.infinite} "
                f"infinite ones among {len(values)} labels.",
                {"drop": ""},
            )
        if numbers.missing is not None:
            missing = " or ".join(f"{column} is None" for column in self._written())
            raise DataError(
                f"{self._should()} Received {len(numbers.missing)} "
                f"missing ones among {len(values)} labels.",
                {"drop": missing},
            )
        values = numbers.values
        if self._kind == "click":
            right = (values == 0) | (values == 1)
            if not right.all():
                raise ValueError(self._other_numbers(values[~right][0], values))
        elif self._classes is not None:
            right = (values >= 0) & (values < self._classes) & (values == np.floor(values))
            if not right.all():
                raise ValueError(f"{self._should()} Received {values[~right][0]:g}.")
        return values.astype(np.float32)

    def _should(self) -> str:
        """Say what the label should hold."""
        what = "0 and 1"
        if self._kind == "regression":
            what = "numbers"
        elif self._classes is not None:
            what = f"classes, whole numbers from 0 to {self._classes - 1}"
        return f"The label '{self.text}' should hold {what}."

    def _no_numbers(self, values: pa.Array) -> str:
        """Say which expression makes labels of text, or of what else there is."""
        message = f"{self._should()} Received {stored(values.type)}"
        if self._kind != "click":
            return f"{message}; an expression over columns makes them."
        if kind_of(values.type) != "strings":
            return f"{message}; an expression over columns makes them."
        found = [repr(one) for one in values.unique()[: _FEW + 1].to_pylist() if one is not None]
        if len(found) <= _FEW:
            message = f"{message} ({', '.join(found)})"
        idea = self.text if self._expression is None else f"({self.text})"
        return f"{message}; an expression such as `{idea} == {_positive(values)!r}` makes them."

    def _other_numbers(self, wrong: float, values: Array) -> str:
        """Say which expression makes labels of other numbers."""
        message = f"{self._should()} Received {wrong:g}"
        if len(np.unique(values)) == 1:
            return f"{message}, and nothing else so far; an expression over columns makes them."
        idea = self.text if self._expression is None else f"({self.text})"
        return f"{message}; an expression such as `{idea} > {_threshold(values):g}` makes them."

    def _written(self) -> list[str]:
        """Return the columns as an expression names them."""
        return [name if name.isidentifier() else f"`{name}`" for name in self.columns]
