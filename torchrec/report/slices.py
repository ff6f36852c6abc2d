"""Rows by the value of a column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from torchrec.datasets.features import AnyFeature, DenseFeature, SparseFeature, VectorFeature
from torchrec.datasets.transform.columns import is_list

if TYPE_CHECKING:
    import pyarrow as pa

Integers = NDArray[np.int64]

_FEW = 30  # distinct numbers of a dense feature that are values like those of ids


@dataclass(frozen=True)
class Values:
    """The values of a column: which there are, and which row has which.

    Attributes:
        feature: that reads the column.
        names: of the distinct values.
        codes: positions in the names, one for each value of a row, ``(V,)``.
        rows: that have them, ``(V,)``; a row may have several or none.
    """

    feature: str
    names: pa.Array
    codes: Integers
    rows: Integers

    def name(self, code: int) -> str:
        """Return how a value is written."""
        value = self.names[code].as_py()
        return "(none)" if value is None else str(value)

    def largest(self, count: int) -> list[tuple[str, Integers]]:
        """Return the values that most rows have, with these rows."""
        sizes = np.bincount(self.codes, minlength=len(self.names))
        order = np.argsort(-sizes, kind="stable")[:count]
        return [(self.name(code), self.rows[self.codes == code]) for code in order if sizes[code]]


def values_of(name: str, feature: AnyFeature, table: pa.Table) -> Values | None:
    """Return the values of what a feature reads; None for numbers, which are no categories.

    Args:
        name: of the feature.
        feature: its declaration.
        table: rows with its column.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(feature, VectorFeature):
        return None
    column = table[feature.column or name].combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    rows = np.arange(table.num_rows, dtype=np.int64)
    is_text = not is_list(column.type)
    while is_list(column.type):
        parents = pc.list_parent_indices(column).to_numpy(zero_copy_only=False).astype(np.int64)
        rows, column = rows[parents], pc.list_flatten(column)
    if is_text and not isinstance(feature, DenseFeature | SparseFeature):
        return None  # several ids in one text
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    encoded = column.dictionary_encode(null_encoding="encode")
    if isinstance(feature, DenseFeature) and len(encoded.dictionary) > _FEW:
        return None
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return Values(name, encoded.dictionary, codes, rows)
