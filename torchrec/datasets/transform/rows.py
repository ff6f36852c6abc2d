"""A few rows of plain Python values as a batch, without Arrow: what it costs to answer one question.

Building Arrow columns of one value each and reading them again takes longer than the model. Here a
transform is turned once into one reader a feature, and a reader takes what is plain: numbers, strings,
times, lists of ids, None. For anything else it raises `NotPlainError`, and the columns go the long way, which knows
every type and has every message. So there is one set of errors, and this file has nothing to decide: what it
does take, it takes as `columns.py`, `dense.py` and `ids.py` do, to the last bit.
"""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchrec.datasets.features import SequenceFeature
from torchrec.datasets.transform.columns import LARGEST, TIMES, Array, Kind
from torchrec.datasets.transform.counts import FeatureCounts
from torchrec.datasets.transform.dense import DenseColumn, Scale, logarithm
from torchrec.datasets.transform.fitting import AnyColumn
from torchrec.datasets.transform.ids import BagColumn, BucketColumn, SparseColumn
from torchrec.datasets.transform.list_text import BRACKETS
from torchrec.datasets.transform.vectors import VectorColumn
from torchrec.datasets.transform.vocabulary import Vocabulary
from torchrec.ops.hashing import hash_strings
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

Values = Sequence[Any]

_NONE = type(None)
_NUMBERS = {int, float, _NONE}
_TEXT = {str, float, _NONE}  # a float is NaN there, which pandas has for None
_LISTS = {list, tuple, _NONE}
# Whole numbers up to here are exact in float64, whichever way they come to be one.
_EXACT = 2.0**53
_WHOLE = re.compile(r"-?[0-9]{1,18}")
_MEASURED = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_MOMENT = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?(Z|[+-]\d\d:?\d\d)?", re.ASCII
)
_EPOCH = datetime.datetime(1970, 1, 1)
_MICROSECOND = datetime.timedelta(microseconds=1)
# Zones that moments of a kind do not have.
_WRONG_ZONES: dict[Kind, tuple[datetime.timezone | None, ...]] = {
    "zoned times": (None,), "local times": (datetime.timezone.utc,), "times": (),
}  # fmt: skip


class NotPlainError(Exception):
    """Values that only the reading of Arrow columns understands, or refuses with a message."""


class RowEncoder:
    """Turns few rows of plain Python values into the inputs of a model.

    Args:
        columns: what the features read, fitted.
        kinds: what the values of each feature were in the training data.
        vocabularies: by feature, of those that have one.
    """

    def __init__(
        self,
        columns: Sequence[AnyColumn],
        kinds: Mapping[str, Kind],
        vocabularies: Mapping[str, Vocabulary],
    ) -> None:
        dense = [column for column in columns if isinstance(column, DenseColumn | VectorColumn)]
        buckets = [column for column in columns if isinstance(column, BucketColumn)]
        self._numbers = _Numbers([*dense, *buckets], kinds)
        self._dense = sum(len(column.names) for column in dense)
        self._readers: list[_Buckets | _Single | _Bags] = []
        for column in columns:
            kind = kinds[column.source.feature]
            if isinstance(column, BucketColumn):
                self._readers.append(_Buckets(column, self._dense + buckets.index(column)))
            elif isinstance(column, SparseColumn):
                self._readers.append(_Single(column, kind))
            elif isinstance(column, BagColumn):
                self._readers.append(_Bags(column, kind))
        self._keys = [reader.name for reader in self._readers]
        self._vocabularies = vocabularies
        self._weighted = any(isinstance(c, BagColumn) and c.is_weighted for c in columns)

    def encode(
        self, values: Mapping[str, Values], rows: int
    ) -> tuple[Tensor, KeyedJaggedTensor, dict[str, FeatureCounts]]:
        """Return the inputs of a model.

        Args:
            values: by column, all that the features read, one value a row.
            rows: B.

        Returns:
            Dense features ``(B, F)``, sparse features, and by feature what differs from a sample with
            one value a row.

        Raises:
            NotPlainError: a value needs a closer look.
        """
        batch = _Batch(values, rows, self._weighted)
        self._numbers.read(batch)
        dense = self._numbers.scaled(batch.numbers[: self._dense])
        ends = []
        for reader in self._readers:
            reader.read(batch)
            ends.append(len(batch.ids))
        ids = batch.hashed()
        start = 0
        for reader, end in zip(self._readers, ends, strict=True):
            vocabulary = self._vocabularies.get(reader.name)
            if vocabulary is not None and end > start:
                places = vocabulary.rows_of_few(ids[start:end].tolist())
                ids[start:end] = places
                unknown = places.count(len(vocabulary))
                if unknown:
                    batch.count(reader.name).unknown += unknown
            start = end
        sparse = KeyedJaggedTensor(
            self._keys,
            torch.from_numpy(ids),
            torch.tensor(batch.weights, dtype=torch.float32) if self._weighted else None,
            lengths=torch.from_numpy(np.array(batch.lengths, np.int32)),
            stride=rows,
        )
        return torch.from_numpy(dense), sparse, batch.counts


class _Batch:
    """Rows on their way to a batch.

    Attributes:
        values: by column.
        rows: B.
        numbers: of all features of numbers, float64 ``(F, B)``; NaN where missing.
        ids: feature after feature; 0 in the place of a string, all of which are hashed together.
        lengths: how many ids each row of each feature has.
        weights: of each id, where ids have weights.
        counts: by feature, what differs from one value a row.
    """

    def __init__(self, values: Mapping[str, Values], rows: int, weighted: bool) -> None:
        self.values = values
        self.rows = rows
        self.numbers: Array = np.empty((0, rows))
        self.ids: list[int] = []
        self.lengths: list[int] = []
        self.weights: list[float] = []
        self.counts: dict[str, FeatureCounts] = {}
        self._weighted = weighted
        self._texts: list[bytes] = []
        self._places: list[int] = []

    def count(self, name: str) -> FeatureCounts:
        """Return the counts of a feature."""
        return self.counts.setdefault(name, FeatureCounts())

    def add(self, ids: Values, weights: Sequence[float] | None = None) -> None:
        """Add ids, all integers or all strings, with their weights."""
        if ids and type(ids[0]) is str:
            self._places.extend(range(len(self.ids), len(self.ids) + len(ids)))
            try:
                self._texts.extend(map(str.encode, ids))
            except UnicodeEncodeError:
                raise NotPlainError from None
            self.ids.extend([0] * len(ids))
        else:
            self.ids.extend(ids)
        if self._weighted:
            self.weights.extend([1.0] * len(ids) if weights is None else weights)

    def hashed(self) -> Array:
        """Return the ids, int64."""
        try:
            found = np.array(self.ids, np.int64)
        except OverflowError:
            raise NotPlainError from None
        if self._texts:
            ends = np.array([0, *itertools.accumulate(map(len, self._texts))], np.int64)
            data = torch.frombuffer(bytearray(b"".join(self._texts) or b"\0"), dtype=torch.uint8)
            found[self._places] = hash_strings(data, torch.from_numpy(ends)).numpy()
        return found


class _Numbers:
    """All numbers of the rows as one matrix, a number a row: one call of numpy serves them all.

    Args:
        columns: the dense features and vectors, and behind them those that become buckets.
        kinds: what their values were in the training data.
    """

    def __init__(
        self, columns: list[DenseColumn | VectorColumn | BucketColumn], kinds: Mapping[str, Kind]
    ) -> None:
        self._vectors = [
            (column.source.column, column.feature.size)
            for column in columns
            if isinstance(column, VectorColumn)
        ]
        # Of each number: where it comes from, and its place in a vector.
        self._columns: list[tuple[str, str, Kind, int | None]] = []
        self._logs: list[int] = []
        scales: list[Scale] = []
        for column in columns:
            name, feature = column.source.column, column.source.feature
            if isinstance(column, VectorColumn):
                size = column.feature.size
                self._columns += [(name, feature, "numbers", at) for at in range(size)]
            else:
                if column.feature.log:
                    self._logs.append(len(self._columns))
                self._columns.append((name, feature, kinds[feature], None))
            if not isinstance(column, BucketColumn):
                assert column.scales is not None
                scales += column.scales
        self._fill, self._mean, self._deviation = (
            np.array([[getattr(scale, name)] for scale in scales], np.float64).reshape(-1, 1)
            for name in ("fill", "mean", "deviation")
        )

    def read(self, batch: _Batch) -> None:
        """Add the numbers, after the logarithm."""
        flat: list[object] = []
        for name, length in self._vectors:
            if not all(type(one) is list and len(one) == length for one in batch.values[name]):
                raise NotPlainError
        for column, _, kind, place in self._columns:
            given = batch.values[column]
            if place is not None:
                given = [vector[place] for vector in given]
            elif kind in TIMES:
                given = _seconds(given, kind)
            if not _NUMBERS.issuperset(map(type, given)):
                raise NotPlainError
            flat += given
        try:
            numbers = np.array(flat, np.float64).reshape(len(self._columns), batch.rows)
        except OverflowError:
            raise NotPlainError from None
        size = np.abs(numbers)
        if not np.maximum.reduce(size, None, initial=0) <= _EXACT:  # as it is not where one is NaN
            if (size > _EXACT).any():
                raise NotPlainError
            losses = np.isnan(numbers).sum(1)
            for (_, feature, _, place), lost in zip(self._columns, losses, strict=True):
                if lost and place is not None:
                    batch.count(feature).nulls += int(lost)
                elif lost:
                    count = batch.count(feature)
                    count.missing += int(lost)
                    count.values -= int(lost)
        if self._logs:
            numbers[self._logs] = logarithm(numbers[self._logs])
        batch.numbers = numbers

    def scaled(self, numbers: Array) -> Array:
        """Return the numbers of dense features as the model takes them, float32 ``(B, F)``."""
        numbers = np.where(np.isnan(numbers), self._fill, numbers)
        numbers -= self._mean
        with np.errstate(over="ignore"):
            numbers /= self._deviation
        if not np.maximum.reduce(np.abs(numbers), None, initial=0) <= LARGEST:
            raise NotPlainError
        return np.ascontiguousarray(numbers.T, np.float32)


def _seconds(values: Values, kind: Kind) -> list[float | None]:
    """Return moments, or text of ISO 8601, as seconds since 1970: with a zone or without, as in training."""
    if kind not in _WRONG_ZONES:  # durations and times of day
        raise NotPlainError
    moments = [_moment(value) if type(value) is str else value for value in values]
    seconds: list[float | None] = []
    zones = set()
    for moment in moments:
        if moment is None:
            seconds.append(None)
            continue
        if type(moment) is not datetime.datetime or moment.tzinfo not in (
            None,
            datetime.timezone.utc,
        ):
            raise NotPlainError
        zones.add(moment.tzinfo)
        seconds.append((moment.replace(tzinfo=None) - _EPOCH) // _MICROSECOND / 1e6)
    wrong = not zones.isdisjoint(_WRONG_ZONES[kind])
    if len(zones) > 1 or wrong or len({type(value) for value in values} - {_NONE}) > 1:
        raise NotPlainError
    return seconds


def _moment(text: str) -> datetime.datetime:
    found = _MOMENT.fullmatch(text)
    if found is None:
        raise NotPlainError
    fraction, zone = found.group(7, 8)
    year, month, day, hour, minute, second = map(int, found.group(1, 2, 3, 4, 5, 6))
    microsecond = int((fraction or "0").ljust(6, "0"))
    try:
        moment = datetime.datetime(year, month, day, hour, minute, second, microsecond)
    except ValueError:
        raise NotPlainError from None
    if zone is None:
        return moment
    if zone != "Z":
        hours, minutes = int(zone[1:3]), int(zone[-2:])
        if hours > 23 or minutes > 59:
            raise NotPlainError
        shift = datetime.timedelta(hours=hours, minutes=minutes)
        try:
            moment = moment + shift if zone[0] == "-" else moment - shift
        except OverflowError:
            raise NotPlainError from None
    return moment.replace(tzinfo=datetime.timezone.utc)


class _Buckets:
    def __init__(self, column: BucketColumn, position: int) -> None:
        assert column.boundaries is not None
        self.name = column.source.feature
        self._boundaries = column.boundaries
        self._missing = column.feature.buckets
        self._position = position

    def read(self, batch: _Batch) -> None:
        """Add the bucket of each row."""
        given = batch.numbers[self._position]
        found = np.searchsorted(self._boundaries, given, side="right")
        found[np.isnan(given)] = self._missing
        batch.add(found.tolist())
        batch.lengths.extend([1] * batch.rows)


class _Single:
    def __init__(self, column: SparseColumn, kind: Kind) -> None:
        self._column, self.name = column.source.column, column.source.feature
        self._present = _present_of(kind)

    def read(self, batch: _Batch) -> None:
        """Add the id of each row."""
        given = batch.values[self._column]
        present = self._present(given)
        batch.add(present)
        missing = batch.rows - len(present)
        if not missing:
            batch.lengths.extend([1] * batch.rows)
            return
        batch.lengths.extend([0 if value is None or value != value else 1 for value in given])
        count = batch.count(self.name)
        count.missing += missing
        count.values -= missing


def _present_of(kind: Kind) -> Callable[[Values], Values]:
    return _strings if kind == "strings" else _integers


def _strings(values: Values) -> Values:
    """Return the strings among values that are strings or missing."""
    types = set(map(type, values))
    if types == {str}:
        return values
    if not _TEXT.issuperset(types):
        raise NotPlainError
    return _present(values, str)


def _integers(values: Values) -> Values:
    """Return the integers among values that are integers, floats that are whole, or missing."""
    types = set(map(type, values))
    if types == {int}:
        return values
    if not _NUMBERS.issuperset(types):
        raise NotPlainError
    if float not in types:
        return _present(values, int)
    whole = []
    for value in values:
        if value is None or value != value:
            continue
        if not -_EXACT <= value <= _EXACT or value != int(value):
            raise NotPlainError
        whole.append(int(value))
    return whole


def _present(values: Values, wanted: type) -> Values:
    present = []
    for value in values:
        if type(value) is wanted:
            present.append(value)
        elif value is not None and value == value:
            raise NotPlainError
    return present


class _Bags:
    def __init__(self, column: BagColumn, kind: Kind) -> None:
        feature = column.feature
        self._column, self.name = column.source.column, column.source.feature
        self._weights = None if column.weights is None else column.weights.column
        self._separator, self._pairs = feature.separator, feature.weight_separator is not None
        self._text = "integers" if column.as_integers else "strings"
        self._kind = kind
        self._id = str if kind == "strings" else int
        self._limit, self._last = feature.max_length, isinstance(feature, SequenceFeature)

    def read(self, batch: _Batch) -> None:
        """Add the ids of each row's bag."""
        if self._pairs:
            raise NotPlainError
        count = batch.counts[self.name] = FeatureCounts(values=-batch.rows)
        weights = None if self._weights is None else self._weights_of(batch.values[self._weights])
        for row, bag in enumerate(self._lists(batch.values[self._column])):
            if bag is None:
                count.missing += 1
                bag = ()
            factors = None if weights is None else self._aligned(weights[row], len(bag), count)
            self._add(bag, factors, batch, count)

    def _lists(self, given: Values) -> Sequence[Values | None]:
        """Return the bags as they came, strings cut to parts; an empty part is missing."""
        types = set(map(type, given))
        if _LISTS.issuperset(types):
            return given
        if self._separator in (None, BRACKETS) or not types <= {str, _NONE}:
            raise NotPlainError
        if self._kind != self._text:
            raise NotPlainError
        bags: list[Values | None] = []
        for text in given:
            parts: list[Any] | None = None
            if text is not None:
                parts = [part or None for part in text.split(self._separator)]
                if self._text == "integers":
                    parts = [None if part is None else _whole(part) for part in parts]
            bags.append(parts)
        return bags

    def _weights_of(self, given: Values) -> Sequence[Values | None]:
        types = set(map(type, given))
        if _LISTS.issuperset(types):
            return given
        if self._separator in (None, BRACKETS) or not types <= {str, _NONE}:
            raise NotPlainError
        return [
            None if text is None else [_measured(part) for part in text.split(self._separator)]
            for text in given
        ]

    def _aligned(self, weights: Values | None, ids: int, count: FeatureCounts) -> list[float]:
        """Return the weights of a bag, missing ones as 1."""
        given = () if weights is None else weights
        if len(given) != ids or not _NUMBERS.issuperset(map(type, given)):
            raise NotPlainError
        aligned = []
        for weight in given:
            if weight is None or weight != weight:
                count.nulls += 1
                aligned.append(1.0)
            elif -_EXACT <= weight <= _EXACT:
                aligned.append(float(weight))
            else:
                raise NotPlainError
        return aligned

    def _add(
        self, bag: Values, weights: list[float] | None, batch: _Batch, count: FeatureCounts
    ) -> None:
        """Add the ids of a bag, without those that are missing and those beyond the limit."""
        count.values += len(bag)
        present = bag
        types = set(map(type, bag))
        if types and types != {self._id}:
            if types - {self._id, _NONE}:
                raise NotPlainError
            kept = [i for i, value in enumerate(bag) if value is not None]
            present = [bag[i] for i in kept]
            weights = None if weights is None else [weights[i] for i in kept]
            if self._separator is None:
                count.nulls += len(bag) - len(kept)
        if self._limit is not None and len(present) > self._limit:
            count.truncated += len(present) - self._limit
            part = slice(-self._limit, None) if self._last else slice(self._limit)
            present = present[part]
            weights = None if weights is None else weights[part]
        batch.add(present, weights)
        batch.lengths.append(len(present))


def _whole(part: object) -> int:
    if not isinstance(part, str) or _WHOLE.fullmatch(part) is None:
        raise NotPlainError
    return int(part)


def _measured(part: str) -> float:
    if _MEASURED.fullmatch(part) is None:
        raise NotPlainError
    return float(part)
