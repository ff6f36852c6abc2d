"""Vectors that another model made, by id, as the first weights of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from torchrec.checks import did_you_mean
from torchrec.datasets.files import suffixes_of
from torchrec.datasets.initial_weights import Pretrained
from torchrec.datasets.source import TableSource
from torchrec.datasets.transform.columns import (
    Array,
    is_list,
    kind_of,
    read_lists,
    read_numbers,
    whole,
)
from torchrec.datasets.transform.tables import TableSpec

RowsOf: TypeAlias = Callable[[TableSpec, pa.Array], Array]
_ROWS = 65_536  # of a matrix at once


class PretrainedRows:
    """Fills a table: the rows of ids with a vector by it, the others as the rule says.

    The file is read when the table is filled, piece by piece: a model that is loaded does not need it.

    Args:
        rule: where the vectors are.
        spec: the table, of ids that are plain or have a vocabulary.
        rows_of: returns the row of each of some ids in the table, -1 for those without.
    """

    def __init__(self, rule: Pretrained, spec: TableSpec, rows_of: RowsOf) -> None:
        self._rule, self._spec, self._rows_of = rule, spec, rows_of

    def __call__(self, weight: Tensor) -> Tensor:
        """Fill all rows of a table, ``(E, D)``, in place.

        Raises:
            ValueError: the file is not as the rule says, its vectors have another dimension, are no
                finite numbers, an id of the table has two, or none has one.
        """
        if weight.is_meta:
            return weight
        sums, count = np.zeros(weight.size(1)), 0
        has_vector = torch.zeros(weight.size(0), dtype=torch.bool)
        for ids, vectors in self._pieces():
            self._check(vectors, weight.size(1))
            sums += vectors.sum(axis=0, dtype=np.float64)
            count += len(vectors)
            rows = torch.from_numpy(self._rows_of(self._spec, ids))
            found = rows >= 0
            self._check_distinct(ids, rows, has_vector)
            has_vector[rows[found]] = True
            given = torch.from_numpy(vectors)[found]
            weight[rows[found]] = given.to(weight.device, weight.dtype)
        if not has_vector.any():
            raise ValueError(
                f"'{self._rule.file}' should have vectors of ids of table '{self._spec.name}'. Received "
                f"{count:,} of other ids."
            )
        others = torch.zeros(weight.size(1), dtype=torch.float64)
        if self._rule.missing == "mean":
            others = torch.from_numpy(sums / count)
        weight[~has_vector] = others.to(weight.device, weight.dtype)
        return weight

    def _pieces(self) -> Iterator[tuple[pa.Array, Array]]:
        """Yield ids, and their vectors, float32 ``(N, D)``."""
        if self._rule.file.endswith(".npy"):
            yield from self._pieces_of_matrix()
            return
        if suffixes_of(self._rule.file)[0] != "parquet":
            raise ValueError(
                f"`file` of pretrained vectors should be Parquet or .npy. Received '{self._rule.file}'."
            )
        rule, source = self._rule, TableSource(self._rule.file)
        for key, column in (("id", rule.id), ("vector", rule.vector)):
            if column not in source.names:
                near = did_you_mean(column, source.names, quote="`") or "."
                raise ValueError(
                    f"`{key}` of pretrained vectors should name a column of '{rule.file}'. Received "
                    f"'{column}'{near} Columns: {', '.join(source.names)}."
                )
        type = source.schema.field(rule.vector).type
        if not is_list(type) or kind_of(type.value_type) not in ("integers", "numbers", "nulls"):
            raise ValueError(
                f"Column '{rule.vector}' of '{rule.file}' should hold lists of numbers. Received {type}."
            )
        for table in source.scan([rule.id, rule.vector]):
            lists = read_lists(whole(table[rule.vector]), None)
            shortest, longest = lists.lengths.min(), lists.lengths.max()
            if shortest != longest:
                raise ValueError(
                    f"Column '{rule.vector}' of '{rule.file}' should hold a vector in each row, all of "
                    f"one length. Received lengths from {shortest} to {longest}."
                )
            numbers = read_numbers(lists.values)
            if numbers.missing is not None:
                numbers.values[numbers.missing] = np.nan
            vectors = numbers.values.reshape(table.num_rows, -1)
            yield whole(table[rule.id]), vectors.astype(np.float32)

    def _pieces_of_matrix(self) -> Iterator[tuple[pa.Array, Array]]:
        try:
            matrix = np.load(self._rule.file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"'{self._rule.file}' should be a matrix of NumPy. Received: {error}."
            ) from None
        if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
            raise ValueError(
                f"'{self._rule.file}' should be a matrix of numbers, whose row is the vector of that id. "
                f"Received shape {matrix.shape} of {matrix.dtype}."
            )
        for start in range(0, len(matrix), _ROWS):
            part = np.array(matrix[start : start + _ROWS], np.float32)
            yield pa.array(np.arange(start, start + len(part))), part

    def _check_distinct(self, ids: pa.Array, rows: Tensor, has_vector: Tensor) -> None:
        """Refuse a second vector of an id: nothing tells which one is meant."""
        order = rows.argsort(stable=True)
        again = torch.zeros(len(rows), dtype=torch.bool)
        again[order[1:]] = rows[order[1:]] == rows[order[:-1]]
        twice = ((again | has_vector[rows.clamp(min=0)]) & (rows >= 0)).nonzero()
        if len(twice):
            raise ValueError(
                f"'{self._rule.file}' should have one vector of each id. Received another of "
                f"{ids[int(twice[0])].as_py()!r}."
            )

    def _check(self, vectors: Array, dim: int) -> None:
        if vectors.shape[1] != dim:
            raise ValueError(
                f"Table '{self._spec.name}' should have the dimension of the vectors in "
                f"'{self._rule.file}', {vectors.shape[1]}: `dim`, or `model.dim` for all tables. "
                f"Received {dim}."
            )
        if not np.isfinite(vectors).all():
            raise ValueError(
                f"'{self._rule.file}' should hold finite numbers. Received others, or missing ones."
            )
