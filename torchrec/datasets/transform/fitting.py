"""Learning from the training data what features and tables need to know."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from torchrec.datasets.transform.columns import (
    Array,
    Kind,
    Source,
    is_list,
    require_columns,
    stored,
)
from torchrec.datasets.transform.counts import FeatureCounts
from torchrec.datasets.transform.dense import DenseColumn, require_values
from torchrec.datasets.transform.ids import BagColumn, BucketColumn, SparseColumn
from torchrec.datasets.transform.sketches import DistinctCounter, Moments, Sample
from torchrec.datasets.transform.tables import TableSpec
from torchrec.datasets.transform.vectors import VectorColumn, update_moments
from torchrec.datasets.transform.vocabulary import IdCounter, Vocabulary

AnyColumn = DenseColumn | VectorColumn | SparseColumn | BagColumn | BucketColumn

# Tables whose rows nobody chose get no more of them.
MOST_ROWS = 1_000_000
# A table of more rows than this fits nowhere.
_LARGEST_PLAIN = 1 << 36


class Fitting:
    """Statistics of the training data, collected table by table: only those that are needed.

    Args:
        columns: the features.
        tables: the tables as declared.
    """

    def __init__(self, columns: Sequence[AnyColumn], tables: Sequence[TableSpec]) -> None:
        self._columns = columns
        self._tables = tables
        self._numbers: dict[str, Moments | list[Moments] | Sample] = {
            column.source.feature: column.statistics()
            for column in columns
            if isinstance(column, DenseColumn | VectorColumn | BucketColumn) and column.needs_fit
        }
        self._ids = {table.name: IdStatistics(table) for table in tables if lacks_rows(table)}
        self._table_of = {name: table for table in tables for name in table.features}
        self.kinds: dict[str, Kind] = {}

    @property
    def is_done(self) -> bool:
        """Whether more tables would teach nothing."""
        have_kinds = bool(self.kinds) and "nulls" not in self.kinds.values()
        return have_kinds and not self._numbers and not self._ids

    def update(self, table: pa.Table) -> None:
        """Add a table."""
        self._note_kinds(table)
        for column in self._columns:
            name = column.source.feature
            if isinstance(column, (SparseColumn, BagColumn)):
                if self._table_of[name].name in self._ids:
                    for piece in column.read(table, FeatureCounts()):
                        ids = piece.ids.astype(np.int64, copy=False)
                        self._ids[self._table_of[name].name].update(ids)
                continue
            statistics = self._numbers.get(name)
            if isinstance(column, VectorColumn) and isinstance(statistics, list):
                for vectors in column.read(table, FeatureCounts()):
                    update_moments(statistics, vectors)
            elif isinstance(column, DenseColumn | BucketColumn) and statistics is not None:
                assert not isinstance(statistics, list)
                read = column.read if isinstance(column, DenseColumn) else column.numbers
                for numbers in read(table, FeatureCounts()):
                    statistics.update(numbers.present())

    def _note_kinds(self, table: pa.Table) -> None:
        """Note what each feature's values are: always the same, and one in features of a table."""
        found = kinds_of(self._columns, table)
        if found == self.kinds:
            return
        if not self.kinds:
            self._read_as_integers(table, found)
        self.kinds = found | {name: kind for name, kind in self.kinds.items() if kind != "nulls"}
        for column in self._columns:
            name = column.source.feature
            if found[name] not in (self.kinds[name], "nulls"):
                raise unlike(column.source, self.kinds[name], "before in the training data", table)
        for spec in self._tables:
            with_values = [name for name in spec.features if self.kinds[name] != "nulls"]
            for name in with_values[1:]:
                first = with_values[0]
                if self.kinds[name] != self.kinds[first]:
                    raise ValueError(
                        f"Features '{first}' and '{name}' should hold ids of one kind, as they "
                        f"share table '{spec.name}'. Received {self.kinds[first]} and "
                        f"{self.kinds[name]}."
                    )

    def _read_as_integers(self, table: pa.Table, kinds: dict[str, Kind]) -> None:
        """Take the parts of strings for integers where their table is that of a column of integers too."""
        for column in self._columns:
            name, type = column.source.feature, table.schema.field(column.source.column).type
            if (
                not isinstance(column, BagColumn)
                or kinds[name] != "strings"
                or is_list(stored(type))
            ):
                continue
            if "integers" in map(kinds.get, self._table_of[name].features):
                column.as_integers, kinds[name] = True, "integers"

    def settle(self) -> tuple[list[TableSpec], dict[str, Vocabulary]]:
        """Settle the columns; return the tables, complete, and the vocabularies of some."""
        if not self.kinds:
            raise ValueError("`tables` should hold the training data. Received no table.")
        for column in self._columns:
            if self.kinds[column.source.feature] == "nulls":
                require_values(column.source, 0)
        for column in self._columns:
            statistics = self._numbers.get(column.source.feature)
            if isinstance(column, DenseColumn):
                if isinstance(statistics, Moments):
                    column.fit(statistics)
            elif isinstance(column, VectorColumn):
                if isinstance(statistics, list):
                    column.fit(statistics)
            elif isinstance(column, BucketColumn) and isinstance(statistics, Sample):
                column.fit(statistics)
        specs, vocabularies = [], {}
        for spec in self._tables:
            if spec.name in self._ids:
                rows, distinct, vocabulary = self._ids[spec.name].settle()
                spec = dataclasses.replace(spec, rows=rows, distinct=distinct)
                if vocabulary is not None:
                    vocabularies[spec.name] = vocabulary
            specs.append(spec)
        return specs, vocabularies


def lacks_rows(spec: TableSpec) -> bool:
    """Say whether a table as declared depends on the ids of the training data."""
    return spec.rows is None or spec.ids == "vocabulary"


def kinds_of(columns: Sequence[AnyColumn], table: pa.Table) -> dict[str, Kind]:
    """Return what each feature's values are in this table, refusing what they cannot be."""
    names = table.column_names
    sources = [column.source for column in columns]
    sources += [c.weights for c in columns if isinstance(c, BagColumn) and c.weights is not None]
    require_columns(names, sources)
    return {column.source.feature: column.kind(table.schema) for column in columns}


def unlike(source: Source, kind: Kind, when: str, table: pa.Table) -> ValueError:
    """Return the error for a column that does not hold what it held before."""
    type = stored(table.schema.field(source.column).type)
    return ValueError(f"{source} should hold {kind}, as {when}. Received {type}.")


class IdStatistics:
    """Statistics of the ids of a table over the training data: only those that it needs.

    Args:
        spec: the table.
    """

    def __init__(self, spec: TableSpec) -> None:
        self._spec = spec
        self._largest = -1
        self._counter: IdCounter | DistinctCounter = DistinctCounter()
        if spec.ids == "vocabulary":
            self._counter = IdCounter(max(1 << 20, 4 * (spec.rows or 0)))

    def update(self, ids: Array) -> None:
        """Add int64 ids."""
        self._counter.update(ids)
        if len(ids):
            self._largest = max(self._largest, int(ids.max()))

    def settle(self) -> tuple[int, int, Vocabulary | None]:
        """Return the rows of the table, the number of distinct ids, and the vocabulary."""
        spec, distinct = self._spec, self._counter.estimate()
        if not distinct:
            names = ", ".join(f"'{name}'" for name in spec.features)
            raise ValueError(
                f"Features {names} of table '{spec.name}' should have ids. Received none in the "
                "training data: leave them out."
            )
        if isinstance(self._counter, IdCounter):
            vocabulary = Vocabulary(self._counter.most_frequent(spec.rows, spec.min_count))
            return len(vocabulary) + 1, distinct, vocabulary
        if spec.ids == "plain":
            if self._largest > _LARGEST_PLAIN:
                raise ValueError(
                    f"Ids of table '{spec.name}' should be small, as `ids: plain` makes a row for "
                    f"each up to the largest. Received {self._largest}: other `ids` take any."
                )
            return max(self._largest + 1, 1), distinct, None
        return min(2 * distinct if spec.ids == "hash" else distinct, MOST_ROWS), distinct, None
