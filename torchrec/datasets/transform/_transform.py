"""The transform: from Arrow tables to batches."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import TypeAdapter

from torchrec.datasets._batch import Batch
from torchrec.datasets.features import AnyFeature, DenseFeature, SparseFeature, VectorFeature
from torchrec.datasets.transform import storage
from torchrec.datasets.transform.columns import (
    Array,
    Kind,
    Source,
    chunks_of,
    fits,
    kind_of,
    read_ids,
    read_numbers,
    stored,
)
from torchrec.datasets.transform.counts import FeatureCounts, TransformCounts
from torchrec.datasets.transform.dense import DenseColumn, Scale
from torchrec.datasets.transform.fitting import AnyColumn, Fitting, kinds_of, lacks_rows, unlike
from torchrec.datasets.transform.ids import BagColumn, BucketColumn, SparseColumn, join
from torchrec.datasets.transform.labels import Label
from torchrec.datasets.transform.rows import NotPlainError, RowEncoder
from torchrec.datasets.transform.tables import TableSpec, declared_tables
from torchrec.datasets.transform.targets import LABELS, Outcomes, Target
from torchrec.datasets.transform.vectors import VectorColumn
from torchrec.datasets.transform.vocabulary import Vocabulary
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


@dataclass(frozen=True)
class RawBatch:
    """What a table holds of features, before scales and vocabularies.

    Attributes:
        numbers: float64 ``(B, F)``, of dense features and vectors, and then of those with buckets; NaN
            where missing.
        ids: int64 ``(N,)``, feature after feature, and of each row after row.
        lengths: int64 ``(F, B)``, how many ids each row of each feature has.
        weights: float32 ``(N,)``, where ids have weights.
    """

    numbers: torch.Tensor
    ids: torch.Tensor
    lengths: torch.Tensor
    weights: torch.Tensor | None


class FeatureTransform:
    """Turns the columns of Arrow tables into batches, the same in training and in serving.

    It works column by column on whole tables, in native code that leaves the interpreter to other
    threads, and may be called from several of them. What it has to do with the data on its own
    (missing numbers, unknown ids, ...) it counts: see `counts`.

    Args:
        features: declarations by name, in the order in which the batches have them.
        label: a column of 0 and 1, or an expression such as ``"rating > 3"``. None: no labels.
        targets: several things to predict, by name, in place of one label. Default: none.
        weight: a column of how much each sample counts. Default: 1 each.
        groups: columns of what the samples belong to, ``Batch.groups``. Default: nothing.

    Attributes:
        targets: what is to be predicted; the label is the target ``"labels"``.
        columns: what features, targets, weights and groups read, each column once.

    Raises:
        ValueError: features that contradict one another, or that read a label; label and targets.

    Example:
        >>> import pyarrow as pa
        >>> from torchrec.datasets.features import DenseFeature, SparseFeature
        >>> clicks = pa.table({"price": [1.0, 3.0], "user": ["ann", None], "click": [0, 1]})
        >>> features = {"price": DenseFeature(), "user": SparseFeature(rows=100)}
        >>> transform = FeatureTransform(features, label="click").fit([clicks])
        >>> batch = transform(clicks)
        >>> batch.dense_features.tolist(), batch.labels.tolist()
        ([[-1.0], [1.0]], [0.0, 1.0])
        >>> batch.sparse_features["user"].lengths().tolist()
        [1, 0]
    """

    def __init__(
        self,
        features: Mapping[str, AnyFeature],
        label: str | None = None,
        targets: Mapping[str, Target] | None = None,
        weight: str | None = None,
        groups: Sequence[str] = (),
    ) -> None:
        if not features:
            raise ValueError("`features` should have one or more features. Received none.")
        if label is not None and targets:
            raise ValueError(
                f"`targets` should be given in place of `label`. Received both, label '{label}'."
            )
        self.features = dict(features)
        self.counts = TransformCounts(list(features))
        self.label = label
        self.weight, self.groups = weight, list(groups)
        self.targets = dict(targets or {}) if label is None else {LABELS: Target(label)}
        self._outcomes = Outcomes(self.targets, weight, groups)
        self._columns = {name: _column(name, feature) for name, feature in features.items()}
        of_numbers = (DenseColumn, VectorColumn)
        self._dense = [c for c in self._columns.values() if isinstance(c, of_numbers)]
        self._sparse = [c for c in self._columns.values() if not isinstance(c, of_numbers)]
        self._declared = declared_tables(features)
        self._tables = self._declared
        self._vocabularies: dict[str, Vocabulary] = {}
        self._kinds: dict[str, Kind] = {}
        self._encoder: RowEncoder | None = None
        self._input_columns: dict[str, None] = {}  # for their order
        for name, column in self._columns.items():
            read = column.columns
            self._input_columns |= dict.fromkeys(read)
            for source in read:
                self._require_no_label(name, source)
        self.columns = list(dict.fromkeys([*self._input_columns, *self._outcomes.columns]))

    def _require_no_label(self, feature: str, column: str) -> None:
        for name, label in self._outcomes.labels.items():
            if column in label.columns:
                of = f" of target '{name}'" if self.label is None else ""
                raise ValueError(
                    f"Feature '{feature}' should not read column '{column}', which the label "
                    f"'{label.text}'{of} is made from: the model would be told the answer."
                )

    @property
    def labels(self) -> dict[str, Label]:
        """What reads each target, by name."""
        return dict(self._outcomes.labels)

    @property
    def outputs(self) -> list[int]:
        """How many numbers a model gives for each target; for one of yes and no without any."""
        return [target.width for target in self.targets.values()] or [1]

    @property
    def input_columns(self) -> list[str]:
        """The columns that the features read, each once."""
        return list(self._input_columns)

    @property
    def dense_names(self) -> list[str]:
        """Names of the columns of ``Batch.dense_features``: features, and ``image[0]`` and so on of vectors."""
        return [name for column in self._dense for name in column.names]

    @property
    def sparse_keys(self) -> list[str]:
        """Names of the features that are keys of ``Batch.sparse_features``."""
        return [column.source.feature for column in self._sparse]

    @property
    def tables(self) -> list[TableSpec]:
        """The tables that the sparse features read; complete once fitted."""
        return list(self._tables)

    @property
    def is_weighted(self) -> bool:
        """Whether ids have weights: all have if those of one feature do, 1 where none are given."""
        return any(isinstance(c, BagColumn) and c.is_weighted for c in self._sparse)

    @property
    def kinds(self) -> dict[str, Kind]:
        """What the values of each feature were in the training data; empty before `fit`."""
        return dict(self._kinds)

    @property
    def scales(self) -> dict[str, Scale]:
        """What each of `dense_names` is filled with, lessened and divided by; of those that are settled."""
        settled = [column for column in self._dense if column.scales is not None]
        return {
            name: scale
            for c in settled
            for name, scale in zip(c.names, c.scales or (), strict=True)
        }

    @property
    def boundaries(self) -> dict[str, Array]:
        """Where the buckets of a feature begin but the first, ascending, float64; of those that are settled."""
        buckets = [column for column in self._sparse if isinstance(column, BucketColumn)]
        return {c.source.feature: c.boundaries for c in buckets if c.boundaries is not None}

    @property
    def vocabularies(self) -> dict[str, Vocabulary]:
        """The vocabulary of each feature that has one, also of the hashes of strings."""
        names = dict(zip(self.sparse_keys, self._spec_names(), strict=True))
        found = {key: self._vocabularies.get(name) for key, name in names.items()}
        return {key: vocabulary for key, vocabulary in found.items() if vocabulary is not None}

    @property
    def needs_fit(self) -> bool:
        """Whether statistics of the training data are missing still."""
        return (
            any(column.scales is None for column in self._dense)
            or any(isinstance(c, BucketColumn) and c.boundaries is None for c in self._sparse)
            or any(spec.distinct is None for spec in self._tables if lacks_rows(spec))
        )

    def fit(self, tables: Iterable[pa.Table]) -> FeatureTransform:
        """Learn from the training data what the features need: scales, quantiles, vocabularies.

        Goes through the tables once, in bounded memory; only looks at the first, or the first few if
        columns hold nothing but nulls there, if no statistics are needed. It also notes what kind
        of values there are, to refuse others later.

        Args:
            tables: the training data, piece by piece, with the columns `columns`; those of the
                label may be left out, else labels are checked too.

        Returns:
            This transform.

        Raises:
            ValueError: columns are missing, of a wrong type or hold nothing; labels are not 0 and 1.
        """
        fitting = Fitting(list(self._columns.values()), self._declared)
        for table in tables:
            fitting.update(table)
            if self.targets and set(self._outcomes.columns) <= set(table.column_names):
                self._outcomes.read(table)
            if fitting.is_done:
                break
        self._tables, self._vocabularies = fitting.settle()
        self._kinds = fitting.kinds
        self._encoder = None
        return self

    def grown_from(self, before: FeatureTransform) -> FeatureTransform:
        """Return this transform, fitted to further data, with all that another has learned before it.

        Numbers are scaled and cut as they were, ids that were known keep their rows, and ids that were
        not are given rows behind them, as far as `rows` goes; the row of unknown ids is the last. Hashed
        and managed tables keep their sizes.

        Args:
            before: fitted to earlier data, of the same features.

        Raises:
            ValueError: features differ, or hold values of another kind.

        Example:
            >>> import pyarrow as pa
            >>> features = {"user": SparseFeature(ids="vocabulary")}
            >>> first = FeatureTransform(features).fit([pa.table({"user": ["ann", "ben"]})])
            >>> second = FeatureTransform(features).fit([pa.table({"user": ["eve", "ben"]})])
            >>> both = second.grown_from(first)
            >>> both.transform(pa.table({"user": ["ann", "ben", "eve", "?"]})).sparse_features.values()
            tensor([1, 0, 2, 3])
        """
        if self.features != before.features:
            unlike_features = [
                name
                for name in {**before.features, **self.features}
                if self.features.get(name) != before.features.get(name)
            ]
            raise ValueError(
                "`features` should be those of the model that training goes on from. Received other "
                f"ones: {', '.join(unlike_features)}."
            )
        for name, kind in before.kinds.items():
            if not fits(self._kinds.get(name, kind), kind):
                raise ValueError(
                    f"Feature '{name}' should hold {kind}, as where training goes on from. Received "
                    f"{self._kinds[name]}."
                )
        grown = copy.copy(self)
        grown.counts = TransformCounts(list(self.features))
        grown._encoder = None
        grown._columns, grown._kinds = before._columns, {**self._kinds, **before._kinds}
        grown._dense, grown._sparse = before._dense, before._sparse
        grown._vocabularies = {
            name: self._vocabularies[name].after(own, _room(self._declared, name))
            for name, own in before._vocabularies.items()
        }
        own = {spec.name: spec for spec in self._tables}
        grown._tables = [
            _grown_spec(spec, own[spec.name], grown._vocabularies.get(spec.name))
            for spec in before._tables
        ]
        return grown

    def transform(self, table: pa.Table | pa.RecordBatch, labels: bool = True) -> Batch:
        """Return a table as one batch.

        Args:
            table: B rows with the columns `columns`, and maybe others.
            labels: False: the table needs no label, weight or group; labels are NaN. Default True.

        Returns:
            Dense features float32 ``(B, len(dense_names))``, sparse features with int64 ids,
            targets and weights float32 ``(B,)``, groups int64 ``(B,)``.

        Raises:
            ValueError: a column is missing, or does not hold what it held in training; labels are
                not 0 and 1; the transform needs to be fitted first.
        """
        if self.needs_fit:
            raise ValueError("The transform should be fitted to the training data first: `fit`.")
        if isinstance(table, pa.RecordBatch):
            table = pa.Table.from_batches([table])
        self._check_kinds(table)
        counts = {name: FeatureCounts() for name in self._columns}
        dense, sparse = self._read_dense(table, counts), self._read_sparse(table, counts)
        if labels and self.targets:
            targets, weights, groups = self._outcomes.read(table)
            batch = Batch(dense, sparse, targets=targets, weights=weights, groups=groups)
        else:
            batch = Batch(dense, sparse, targets=self._outcomes.unknown(table.num_rows))
        self.counts.add(counts)
        return batch

    __call__ = transform

    def read_raw(self, table: pa.Table) -> RawBatch:
        """Return the numbers and ids of a table before anything that was learned is applied to them.

        Strings are hashed, lists cut, nulls left out: what an exported model is given (see
        `torchrec.inference.export`).

        Args:
            table: B rows with the columns `input_columns`, and maybe others.

        Raises:
            ValueError: a column is missing, or does not hold what it held in training.
        """
        self._check_kinds(table)
        counts = FeatureCounts()
        buckets = [column for column in self._sparse if isinstance(column, BucketColumn)]
        numbers = [_raw_numbers(column, table) for column in (*self._dense, *buckets)]
        others = [column for column in self._sparse if not isinstance(column, BucketColumn)]
        keys = [column.source.feature for column in others]
        pieces = [column.read(table, counts) for column in others]
        joined = join(keys, pieces, table.num_rows, self.is_weighted)
        return RawBatch(
            torch.from_numpy(np.hstack([np.empty((table.num_rows, 0)), *numbers])),
            joined.values(),
            joined.lengths().view(len(keys), table.num_rows).long(),
            joined.weights_or_none(),
        )

    def encode(self, values: Mapping[str, Sequence[Any]], rows: int) -> Batch:
        """Return few rows of plain Python values as the batch that `transform` makes of them.

        It is the quick way for a row or some dozens: there is no Arrow table.

        Args:
            values: the values of each of `input_columns`, one a row: numbers, strings, times, lists,
                None.
            rows: B, at least 1.

        Returns:
            The same batch, to the last bit; labels are NaN.

        Raises:
            NotPlainError: there are values that only `transform` reads, or refuses; or the transform was never
                fitted. Nothing is counted then.
        """
        if self._encoder is None:
            self._encoder = self._new_encoder()
        dense, sparse, counts = self._encoder.encode(values, rows)
        self.counts.add_rows(rows, counts)
        return Batch(dense, sparse, targets=self._outcomes.unknown(rows))

    def _new_encoder(self) -> RowEncoder:
        if self.needs_fit or not self._kinds or "nulls" in self._kinds.values():
            raise NotPlainError
        return RowEncoder(list(self._columns.values()), self._kinds, self.vocabularies)

    def _check_kinds(self, table: pa.Table) -> None:
        for name, kind in kinds_of(list(self._columns.values()), table).items():
            trained = self._kinds.get(name, kind)
            if not fits(kind, trained):
                raise unlike(self._columns[name].source, trained, "in training", table)

    def _read_dense(self, table: pa.Table, counts: dict[str, FeatureCounts]) -> torch.Tensor:
        dense = np.empty((table.num_rows, len(self.dense_names)), np.float32)
        position = 0
        for column in self._dense:
            width = len(column.names)
            part = dense[:, position : position + width]
            column.write(table, part, counts[column.source.feature])
            position += width
        return torch.from_numpy(dense)

    def _read_sparse(self, table: pa.Table, counts: dict[str, FeatureCounts]) -> KeyedJaggedTensor:
        keys = self.sparse_keys
        pieces = []
        for spec_name, column in zip(self._spec_names(), self._sparse, strict=True):
            count = counts[column.source.feature]
            read = column.read(table, count)
            vocabulary = self._vocabularies.get(spec_name)
            if vocabulary is not None:
                for piece in read:
                    piece.ids = vocabulary.rows(piece.ids)
                    count.unknown += int(np.count_nonzero(piece.ids == len(vocabulary)))
            pieces.append(read)
        return join(keys, pieces, table.num_rows, self.is_weighted)

    def rows_of(self, spec: TableSpec, ids: pa.Array) -> Array:
        """Return the row that each of some ids has in a table, int64; -1 for those that have none.

        Args:
            spec: one of `tables`, of ids that are plain or have a vocabulary.
            ids: integers or strings, as in the training data.

        Raises:
            ValueError: they are of another kind than those of the table.
        """
        source = Source(spec.features[0], spec.name)
        known = {self._kinds[name] for name in spec.features if name in self._kinds} - {"nulls"}
        kind = kind_of(ids.type)
        if known and kind not in known:
            raise ValueError(
                f"Ids of table '{spec.name}' should be {known.pop()}, as in training. Received "
                f"{stored(ids.type)}."
            )
        found, valid = read_ids(ids, source)
        vocabulary = self._vocabularies.get(spec.name)
        if vocabulary is not None:
            rows = vocabulary.rows(found)
            rows = np.where(rows == len(vocabulary), -1, rows)
        else:
            rows = found.astype(np.int64)
            rows = np.where((rows < 0) | (rows >= (spec.rows or 0)), -1, rows)
        return rows if valid is None else np.where(valid, rows, -1)

    def _spec_names(self) -> list[str]:
        names = {name: spec.name for spec in self._tables for name in spec.features}
        return [names[key] for key in self.sparse_keys]

    def save(self, folder: str | Path) -> None:
        """Write this transform to a folder: ``transform.json`` and ``transform.arrow``.

        Args:
            folder: is made if it is not there. Not written atomically: what saves a whole model
                writes beside and renames.
        """
        scales = {name: list(dataclasses.astuple(scale)) for name, scale in self.scales.items()}
        arrays = {f"table:{name}": v.ids for name, v in self._vocabularies.items()}
        for column in self._sparse:
            if isinstance(column, BucketColumn) and column.boundaries is not None:
                arrays[f"buckets:{column.source.feature}"] = column.boundaries
        state = storage.State(
            features={name: f.model_dump(mode="json") for name, f in self.features.items()},
            label=self.label,
            kinds=self._kinds,
            scales=scales,
            tables={s.name: storage.TableState(s.rows, s.distinct) for s in self._tables},
            targets={}
            if self.label is not None
            else {name: dataclasses.asdict(target) for name, target in self.targets.items()},
            weight=self.weight,
            groups=self.groups,
        )
        storage.save(folder, state, arrays)

    @classmethod
    def load(cls, folder: str | Path) -> FeatureTransform:
        """Read what `save` wrote: a transform whose batches are the same to the last bit.

        Args:
            folder: as given to `save`.

        Raises:
            ValueError: the files are missing, damaged, or of a newer version of this library.
        """
        state, arrays = storage.load(folder)
        features = TypeAdapter(dict[str, AnyFeature]).validate_python(state.features)
        targets = TypeAdapter(dict[str, Target]).validate_python(state.targets)
        transform = cls(features, state.label, targets, state.weight, state.groups)
        transform._kinds = state.kinds
        for column in transform._columns.values():
            name = column.source.feature
            if isinstance(column, DenseColumn | VectorColumn):
                if set(column.names) <= state.scales.keys():
                    column.scales = [Scale(*state.scales[number]) for number in column.names]
            elif isinstance(column, BucketColumn):
                column.boundaries = arrays.get(f"buckets:{name}")
            elif isinstance(column, BagColumn) and column.feature.separator is not None:
                column.as_integers |= state.kinds.get(name) == "integers"
        transform._tables = [
            dataclasses.replace(spec, **vars(state.tables[spec.name])) for spec in transform._tables
        ]
        transform._vocabularies = {
            spec.name: Vocabulary(arrays[f"table:{spec.name}"])
            for spec in transform._tables
            if f"table:{spec.name}" in arrays
        }
        return transform


def _raw_numbers(column: DenseColumn | VectorColumn | BucketColumn, table: pa.Table) -> Array:
    """Return the numbers of a column as they are, float64 ``(B, numbers)``, NaN where missing."""
    if isinstance(column, VectorColumn):
        return np.concatenate(column.read(table, FeatureCounts()))
    read = [read_numbers(chunk) for chunk in chunks_of(table, column.source.column)]
    for part in read:
        if part.missing is not None:
            part.values[part.missing] = np.nan
    return np.concatenate([part.values for part in read])[:, None]


def _room(declared: Sequence[TableSpec], name: str) -> int | None:
    """Return how many ids the vocabulary of a table may have; None: any number."""
    return next(spec.rows for spec in declared if spec.name == name)


def _grown_spec(before: TableSpec, new: TableSpec, vocabulary: Vocabulary | None) -> TableSpec:
    """Return a table that has room for what came before and what is new."""
    if vocabulary is not None:
        return dataclasses.replace(before, rows=len(vocabulary) + 1, distinct=len(vocabulary))
    if before.ids == "plain" and before.rows is not None and new.rows is not None:
        return dataclasses.replace(before, rows=max(before.rows, new.rows))
    return before


def _column(name: str, feature: AnyFeature) -> AnyColumn:
    if isinstance(feature, DenseFeature):
        return BucketColumn(name, feature) if feature.buckets else DenseColumn(name, feature)
    if isinstance(feature, VectorFeature):
        return VectorColumn(name, feature)
    if isinstance(feature, SparseFeature):
        return SparseColumn(name, feature)
    return BagColumn(name, feature)
