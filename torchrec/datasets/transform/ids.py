"""Ids: one a sample, bags, sequences, and the buckets of numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from torchrec.datasets.features import DenseFeature, MultiHotFeature, SequenceFeature, SparseFeature
from torchrec.datasets.transform.columns import (
    Array,
    Kind,
    Lists,
    Numbers,
    Source,
    chunks_of,
    innermost,
    is_list,
    kind_of,
    positions,
    read_ids,
    read_lists,
    read_numbers,
    stored,
    whole,
)
from torchrec.datasets.transform.counts import FeatureCounts
from torchrec.datasets.transform.dense import DenseColumn, require_values
from torchrec.datasets.transform.sketches import Sample
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


@dataclass
class Piece:
    """Ids of consecutive samples.

    Attributes:
        ids: of any integer type, bag after bag.
        lengths: ids of each sample; None: one each.
        weights: float32, of each id; None: all 1.
    """

    ids: Array
    lengths: Array | None = None
    weights: Array | None = None


class SparseColumn:
    """Reads a feature with one id a sample; null is an empty bag.

    Args:
        name: of the feature.
        feature: its declaration.

    Attributes:
        columns: the columns that it reads.
    """

    def __init__(self, name: str, feature: SparseFeature) -> None:
        self.feature = feature
        self.source = Source(name, feature.column or name)
        self.columns = [self.source.column]

    def kind(self, schema: pa.Schema) -> Kind:
        """Return what the ids are, refusing what cannot be one."""
        type = schema.field(self.source.column).type
        if is_list(type):
            raise ValueError(
                f"{self.source} should hold one id a sample, as a sparse feature does. "
                f"Received {type}, for which there are multi_hot and sequence features."
            )
        return _id_kind(self.source, type, self.feature.ids == "plain")

    def read(self, table: pa.Table, counts: FeatureCounts) -> list[Piece]:
        """Return the ids of all samples."""
        return [self._piece(chunk, counts) for chunk in chunks_of(table, self.source.column)]

    def _piece(self, chunk: pa.Array, counts: FeatureCounts) -> Piece:
        ids, valid = read_ids(chunk, self.source)
        counts.samples += len(chunk)
        if valid is not None:
            ids = np.compress(valid, ids)
            counts.missing += len(chunk) - len(ids)
        counts.values += len(ids)
        return Piece(ids, None if valid is None else valid.view(np.uint8))


class BagColumn:
    """Reads a feature with any number of ids a sample; null is an empty bag, a null id dropped.

    Args:
        name: of the feature.
        feature: its declaration. Of a sequence the last ids are kept, of a bag the first.

    Attributes:
        columns: the columns that it reads.
        is_weighted: whether its ids have weights.
        as_integers: whether the parts of strings are whole numbers: plain ids, and those of a table
            that a column of integers reads as well.
    """

    def __init__(self, name: str, feature: MultiHotFeature | SequenceFeature) -> None:
        self.feature = feature
        self.source = Source(name, feature.column or name)
        self.columns, self.weights = [self.source.column], None
        if feature.weights is not None:
            self.weights = Source(name, feature.weights)
            self.columns.append(feature.weights)
        self.is_weighted = feature.weights is not None or feature.weight_separator is not None
        self._plain = self.as_integers = feature.ids == "plain"

    def kind(self, schema: pa.Schema) -> Kind:
        """Return what the ids are, refusing what cannot be one."""
        type = stored(schema.field(self.source.column).type)
        if self.weights is not None:
            self._check_weights(schema.field(self.weights.column).type)
        if is_list(type):
            type = innermost(type)
            if self.feature.weight_separator is None or kind_of(type) != "strings":
                return _id_kind(self.source, type, self._plain)
            return "integers" if self.as_integers else "strings"
        if kind_of(type) == "nulls":
            return "nulls"
        if self.feature.separator is None or kind_of(type) != "strings":
            raise ValueError(
                f"{self.source} should hold lists, or strings with a `separator` in the feature. "
                f"Received {type}."
            )
        return "integers" if self.as_integers else "strings"

    def _check_weights(self, type: pa.DataType) -> None:
        inner = innermost(type)
        text = not is_list(type) and kind_of(type) == "strings"
        if is_list(type) and kind_of(inner) in ("integers", "numbers", "nulls"):
            return
        if (text and self.feature.separator is not None) or kind_of(type) == "nulls":
            return
        raise ValueError(f"{self.weights} should hold lists of weights. Received {type}.")

    def read(self, table: pa.Table, counts: FeatureCounts) -> list[Piece]:
        """Return the ids of all samples."""
        column = self.source.column
        if self.weights is None:
            return [self._piece(chunk, None, counts) for chunk in chunks_of(table, column)]
        weights = whole(table.column(self.weights.column))
        return [self._piece(whole(table.column(column)), weights, counts)]

    def _piece(self, chunk: pa.Array, weights: pa.Array | None, counts: FeatureCounts) -> Piece:
        separator = self.feature.separator
        lists, numbers = read_lists(chunk, separator), None
        pairs = self.feature.weight_separator is not None
        if pairs and kind_of(lists.values.type) == "strings":
            lists.values, numbers = self._pairs(lists.values)
        is_text = separator is not None and not is_list(chunk.type)
        if (is_text or numbers is not None) and kind_of(chunk.type) != "nulls":
            lists.values = self._parts(lists.values)
        ids, valid = read_ids(lists.values, self.source)
        counts.samples += len(chunk)
        counts.missing += lists.missing
        counts.values += int(lists.lengths.sum())
        factors = None
        if weights is not None:
            factors = self._aligned(lists, len(ids), read_lists(weights, separator), counts)
        elif numbers is not None:
            given = Lists(lists.starts, lists.lengths, numbers, 0)
            factors = self._aligned(lists, len(ids), given, counts)
        if valid is not None:
            before = int(lists.lengths.sum())
            _keep(lists, valid)
            ids = ids[valid]
            factors = None if factors is None else factors[valid]
            if separator is None:
                counts.nulls += before - int(lists.lengths.sum())
        limit = self.feature.max_length
        if limit is not None:
            counts.truncated += _cut(lists, limit, last=isinstance(self.feature, SequenceFeature))
        return _gathered(lists, ids, factors)

    def _pairs(self, parts: pa.Array) -> tuple[pa.Array, pa.Array]:
        """Return the ids of strings, and their weights behind the last separator, null where there is none."""
        separator = self.feature.weight_separator
        halves = pc.split_pattern(parts, separator, max_splits=1, reverse=True)
        found, at = halves.flatten(), pc.list_value_length(halves)
        lengths = pc.fill_null(at, 0).to_numpy(zero_copy_only=False).astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        ids, weights = (
            found.take(pa.array(starts + place, mask=lengths <= place)) for place in (0, 1)
        )
        return ids, weights

    def _parts(self, parts: pa.Array) -> pa.Array:
        """Return the parts of strings: empty ones as nulls, plain ids as numbers."""
        parts = pc.if_else(pc.equal(pc.binary_length(parts), 0), None, parts)
        if not self.as_integers:
            return parts
        try:
            return parts.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"{self.source} should hold whole numbers between the separators, as "
                f"{'its ids are plain' if self._plain else 'other columns of its table do'}. {error}"
            ) from None

    def _aligned(self, lists: Lists, total: int, given: Lists, counts: FeatureCounts) -> Array:
        """Return the weights in the order of the ids, those of no use as 1."""
        wrong = np.flatnonzero(given.lengths != lists.lengths)
        if len(wrong):
            row = int(wrong[0])
            raise ValueError(
                f"{self.weights} should hold one weight an id. Received {given.lengths[row]} for "
                f"{lists.lengths[row]} ids in row {row}."
            )
        values = given.values
        if kind_of(values.type) == "strings":
            values = self._parsed_weights(values)
        numbers = read_numbers(values)
        index = positions(given.starts, given.lengths)
        if numbers.missing is not None:
            numbers.values[numbers.missing] = 1
            counts.nulls += int(np.isin(index, numbers.missing).sum())
        weights = np.ones(total, np.float32)
        weights[positions(lists.starts, lists.lengths)] = numbers.values[index]
        return weights

    def _parsed_weights(self, parts: pa.Array) -> pa.Array:
        parts = pc.if_else(pc.equal(pc.binary_length(parts), 0), None, parts)
        try:
            return parts.cast(pa.float64())
        except pa.ArrowInvalid as error:
            what = f"{self.weights} should hold numbers between the separators"
            if self.weights is None:
                what = f"{self.source} should hold numbers as weights behind its ids"
            raise ValueError(f"{what}. {error}") from None


class BucketColumn:
    """Reads a number as the id of its quantile; the last id is that of missing numbers.

    Args:
        name: of the feature.
        feature: its declaration, with ``buckets``.

    Attributes:
        columns: the columns that it reads.
    """

    needs_fit = True

    def __init__(self, name: str, feature: DenseFeature) -> None:
        assert feature.buckets is not None
        self.feature = feature
        self._dense = DenseColumn(name, feature)
        self._buckets = feature.buckets
        self.source, self.columns = self._dense.source, self._dense.columns
        self.boundaries: Array | None = None

    def kind(self, schema: pa.Schema) -> Kind:
        """Return what the numbers are, refusing what is none."""
        return self._dense.kind(schema)

    def statistics(self) -> Sample:
        """Return what collects the statistics that this feature needs."""
        return Sample()

    def numbers(self, table: pa.Table, counts: FeatureCounts) -> list[Numbers]:
        """Return the numbers, chunk by chunk."""
        return self._dense.read(table, counts)

    def fit(self, sample: Sample) -> None:
        """Settle the boundaries."""
        require_values(self.source, sample.count)
        self.boundaries = sample.boundaries(self._buckets)

    def read(self, table: pa.Table, counts: FeatureCounts) -> list[Piece]:
        """Return one id a sample."""
        assert self.boundaries is not None
        pieces = []
        for numbers in self.numbers(table, counts):
            ids = np.searchsorted(self.boundaries, numbers.values, side="right")
            if numbers.missing is not None:
                ids[numbers.missing] = self._buckets
            pieces.append(Piece(ids))
        return pieces


IdColumn = SparseColumn | BagColumn


def _id_kind(source: Source, type: pa.DataType, plain: bool) -> Kind:
    kind = kind_of(type)
    if kind not in ("integers", "numbers", "strings", "nulls"):
        raise ValueError(
            f"{source} should hold integers or strings, as ids are. Received {stored(type)}."
        )
    if plain and kind == "strings":
        raise ValueError(
            f"{source} should hold integers, as its `ids` are plain. Received {stored(type)}: strings take "
            "hash, vocabulary or managed ids."
        )
    return "integers" if kind == "numbers" else kind


def _keep(lists: Lists, valid: Array) -> None:
    """Leave out the values that are not valid."""
    before = np.zeros(len(valid) + 1, np.int64)
    np.cumsum(valid, out=before[1:])
    ends = before[lists.starts + lists.lengths]
    lists.starts = before[lists.starts]
    lists.lengths = ends - lists.starts


def _cut(lists: Lists, limit: int, last: bool) -> int:
    """Keep the first or the last values of each list; return how many were cut off."""
    excess = np.maximum(lists.lengths - limit, 0)
    cut = int(excess.sum())
    if cut:
        lists.lengths = lists.lengths - excess
        if last:
            lists.starts = lists.starts + excess
    return cut


def _gathered(lists: Lists, ids: Array, weights: Array | None) -> Piece:
    # If no value is left out, all of them are in order.
    if int(lists.lengths.sum()) != len(ids):
        index = positions(lists.starts, lists.lengths)
        ids = ids[index]
        weights = None if weights is None else weights[index]
    return Piece(ids, lists.lengths, weights)


def join(
    keys: list[str], columns: list[list[Piece]], rows: int, weighted: bool
) -> KeyedJaggedTensor:
    """Put the pieces of all features together, with one copy of each id.

    Args:
        keys: the features.
        columns: the pieces of each, in order.
        rows: B, the samples of each feature.
        weighted: give every id a weight.
    """
    pieces = [piece for column in columns for piece in column]
    values = np.empty(sum(len(piece.ids) for piece in pieces), np.int64)
    lengths = np.ones(len(keys) * rows, np.int32)
    weights = np.ones(len(values), np.float32) if weighted else None
    at = bag = 0
    for piece in pieces:
        end = at + len(piece.ids)
        values[at:end] = piece.ids
        if weights is not None and piece.weights is not None:
            weights[at:end] = piece.weights
        bags = len(piece.ids) if piece.lengths is None else len(piece.lengths)
        if piece.lengths is not None:
            lengths[bag : bag + bags] = piece.lengths
        at, bag = end, bag + bags
    return KeyedJaggedTensor(
        keys,
        torch.from_numpy(values),
        None if weights is None else torch.from_numpy(weights),
        lengths=torch.from_numpy(lengths),
        stride=rows,
    )
