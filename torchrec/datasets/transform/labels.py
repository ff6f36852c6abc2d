"""Labels: 0 or 1, from a column or an expression."""

from __future__ import annotations

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


def _example(values: pa.Array) -> str:
    """Return a string that may stand for 1: the last of those that are there, as 'yes' or '1'."""
    found = values.unique().to_pylist()
    return max((one for one in found if isinstance(one, str) and len(one) < 40), default="yes")


class Label:
    """Reads the label.

    Args:
        text: a column, or an expression over columns.

    Attributes:
        columns: the columns that it reads.
    """

    def __init__(self, text: str) -> None:
        self.text = text
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
        """Return the labels of all samples, float32 ``(B,)``, each 0 or 1."""
        require_columns(table.column_names, self._sources)
        expression = self._expression
        values = table.column(self.text) if expression is None else expression.evaluate(table)
        if isinstance(values, pa.ChunkedArray):
            values = whole(values)
        if kind_of(values.type) not in ("integers", "numbers", "nulls"):
            raise ValueError(
                f"The label '{self.text}' should hold 0 and 1. Received {stored(values.type)}; an "
                f"expression such as `{self.text} == {_example(values)!r}` makes them."
            )
        numbers = read_numbers(values)
        if numbers.infinite:
            raise DataError(
                f"The label '{self.text}' should hold 0 and 1. Received {numbers.infinite} "
                f"infinite ones among {len(values)} labels.",
                {"drop": ""},
            )
        if numbers.missing is not None:
            missing = " or ".join(f"{column} is None" for column in self._written())
            raise DataError(
                f"The label '{self.text}' should hold 0 and 1. Received {len(numbers.missing)} "
                f"missing ones among {len(values)} labels.",
                {"drop": missing},
            )
        values = numbers.values
        right = (values == 0) | (values == 1)
        if not right.all():
            wrong = values[~right][0]
            idea = self.text if expression is None else f"({self.text})"
            raise ValueError(
                f"The label '{self.text}' should hold 0 and 1. Received {wrong:g}; an "
                f"expression such as `{idea} > {max(wrong - 1, 0):g}` makes them."
            )
        return values.astype(np.float32)

    def _written(self) -> list[str]:
        """Return the columns as an expression names them."""
        return [name if name.isidentifier() else f"`{name}`" for name in self.columns]
