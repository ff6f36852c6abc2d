"""Groups that rows belong to, beside what a transform makes of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from torchrec.datasets._batch import Batch
from torchrec.datasets.transform.columns import Source, is_list, read_ids, require_columns, whole
from torchrec.metrics.grouped import NO_GROUP


class GroupedTransform:
    """A transform whose batches have groups: of each of some columns an id that rows of one value share.

    Args:
        transform: from tables to batches, with ``columns`` that it reads.
        groups: the columns, which need not be those of features.

    Attributes:
        columns: what is read, each column once.

    Example:
        >>> from torchrec.datasets.features import SparseFeature
        >>> from torchrec.datasets.transform import FeatureTransform
        >>> clicks = pa.table({"ad": [5, 6, 5], "user": [7, 7, None], "click": [0, 1, 1]})
        >>> transform = FeatureTransform({"ad": SparseFeature(rows=9)}, label="click").fit([clicks])
        >>> GroupedTransform(transform, ["user"])(clicks).groups["user"].tolist()
        [7, 7, -9223372036854775808]
    """

    def __init__(self, transform: Callable[[pa.Table], Batch], groups: Sequence[str]) -> None:
        self._transform = transform
        self._groups = list(dict.fromkeys(groups))
        read: list[str] = getattr(transform, "columns", [])
        self.columns = list(dict.fromkeys([*read, *self._groups]))

    def __call__(self, table: pa.Table) -> Batch:
        """Return a table as one batch.

        Raises:
            ValueError: as the transform does; a column is missing, or is no ids.
        """
        batch = self._transform(table)
        groups = {name: group_ids(table, name) for name in self._groups}
        return dataclasses.replace(batch, groups={**batch.groups, **groups})


def group_ids(table: pa.Table, column: str) -> Tensor:
    """Return the groups of rows: integers as they are, strings hashed, nulls `NO_GROUP`; ``(B,)`` int64.

    Args:
        table: B rows.
        column: whose values are the groups.

    Raises:
        ValueError: it is missing, or holds what cannot be ids.
    """
    source = Source("groups", column)
    require_columns(table.column_names, [source])
    array = whole(table.column(column))
    if is_list(array.type):
        raise ValueError(f"Groups should be one a row. Received column '{column}' of {array.type}.")
    ids, valid = read_ids(array, source)
    groups = ids.astype(np.int64)
    if valid is not None:
        groups[~valid] = NO_GROUP
    return torch.from_numpy(groups)
