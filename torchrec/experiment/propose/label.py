"""What may be predicted from data, for those who have not said it."""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from torchrec.datasets.source import TableSource
from torchrec.datasets.transform.labels import Label
from torchrec.experiment._messages import listed
from torchrec.experiment.propose._roles import words_of

__all__ = ["columns_of_label", "label_advice", "require_label"]

_RATINGS = frozenset({"rating", "ratings", "stars", "score", "grade"})
_SAMPLE = 10_000  # rows looked at


def columns_of_label(label: str) -> list[str]:
    """List the columns that a label reads: those of the expression, or the column of that name.

    Example:
        >>> columns_of_label("rating > 3"), columns_of_label("1st click")
        (['rating'], ['1st click'])
    """
    try:
        return Label(label).columns
    except ValueError:  # no expression: the name of a column that is no word
        return [label]


def require_label(source: TableSource, label: str | None) -> str:
    """Return the label, or say what might be one where none was given."""
    if label:
        return label
    if label is not None:
        raise ValueError(
            "`--label` should name a column, or be an expression. Received an empty one."
        )
    raise ValueError(
        "`--label` should be a column of 0 and 1, or an expression over columns. Received none. "
        f"Columns: {listed(source.schema.names)}. {label_advice(source)}"
    )


def label_advice(source: TableSource) -> str:
    """Say which columns of the data may be a label, in a sentence or two."""
    sample = next(iter(source.scan()), None)
    if sample is None:
        return "The data have no rows."
    sample = sample.slice(0, _SAMPLE)
    binary = [name for name in sample.column_names if _is_binary(sample[name])]
    if binary:
        return f"Of 0 and 1: {listed(binary)}."
    rated = [n for n in sample.column_names if words_of(n) & _RATINGS and _is_numeric(sample[n])]
    if rated:
        middle = pc.approximate_median(sample[rated[0]]).as_py()
        return f"An expression would be '{rated[0]} >= {middle:g}'."
    return (
        "None is of 0 and 1. Where each row is something that happened, such as a purchase, a model needs rows "
        "of what did not happen as well: what was shown and left, and a column that tells both apart, or "
        "items drawn by chance, as `--draw-negatives USER:ITEM` does (`data.sampled_negatives`)."
    )


def _is_numeric(column: pa.ChunkedArray) -> bool:
    return bool(pt.is_integer(column.type) or pt.is_floating(column.type))


def _is_binary(column: pa.ChunkedArray) -> bool:
    if not (pt.is_boolean(column.type) or _is_numeric(column)):
        return False
    found: Collection[object] = set(column.drop_null().unique().to_pylist())
    return found == {0, 1}
