"""Vectors: several numbers a sample, each filled and scaled by itself."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from torchrec.datasets.features import VectorFeature
from torchrec.datasets.transform.columns import (
    LARGEST,
    Array,
    Kind,
    Lists,
    Source,
    chunks_of,
    is_list,
    kind_of,
    read_lists,
    read_numbers,
    stored,
)
from torchrec.datasets.transform.counts import FeatureCounts
from torchrec.datasets.transform.dense import Scale, require_values, unfit_fill
from torchrec.datasets.transform.sketches import Moments


class VectorColumn:
    """Reads a feature with as many numbers a sample as its ``size`` says.

    Args:
        name: of the feature.
        feature: its declaration.

    Attributes:
        columns: the columns that it reads.
        names: of the numbers, in the order in which batches have them.
        needs_fit: whether the feature depends on statistics of the training data.
        scales: of each number; None until they are settled.
    """

    def __init__(self, name: str, feature: VectorFeature) -> None:
        self.feature = feature
        self.source = Source(name, feature.column or name)
        self.columns = [self.source.column]
        self.names = [f"{name}[{i}]" for i in range(feature.size)]
        self.needs_fit = feature.fill == "mean" or feature.standardise
        self.scales: list[Scale] | None = None
        if feature.fill != "mean":
            if abs(feature.fill) > LARGEST:
                raise unfit_fill(self.source, feature.fill)
            if not feature.standardise:
                self.scales = [Scale(feature.fill)] * feature.size

    def kind(self, schema: pa.Schema) -> Kind:
        """Return that these are numbers, refusing what is no list of them."""
        type = stored(schema.field(self.source.column).type)
        if kind_of(type) == "nulls":
            return "nulls"
        if is_list(type):
            if kind_of(type.value_type) in ("integers", "numbers", "nulls"):
                return "numbers"
        elif kind_of(type) == "strings" and self.feature.separator is not None:
            return "numbers"
        raise ValueError(
            f"{self.source} should hold lists of numbers, as a vector does, or strings with a "
            f"`separator` in the feature. Received {type}."
        )

    def read(self, table: pa.Table, counts: FeatureCounts) -> list[Array]:
        """Return the numbers of all samples, chunk by chunk: float64 ``(B, size)``, NaN where missing."""
        return [self._read(chunk, counts) for chunk in chunks_of(table, self.source.column)]

    def _read(self, chunk: pa.Array, counts: FeatureCounts) -> Array:
        size = self.feature.size
        lists = read_lists(chunk, self.feature.separator)
        if kind_of(lists.values.type) == "strings":
            self._parse(lists)
        wrong = np.flatnonzero((lists.lengths != size) & (lists.lengths != 0))
        if len(wrong):
            raise ValueError(
                f"{self.source} should hold vectors of {size} numbers, as its `size` says. Received "
                f"{lists.lengths[wrong[0]]} in row {wrong[0]}."
            )
        numbers = read_numbers(lists.values)
        if numbers.missing is not None:
            numbers.values[numbers.missing] = np.nan
        there = lists.lengths != 0
        counts.samples += len(chunk)
        counts.missing += len(chunk) - int(there.sum())
        counts.values += int(there.sum())
        counts.infinite += numbers.infinite
        vectors: Array
        if there.all() and len(numbers.values) == size * len(chunk):  # in order, without gaps
            vectors = numbers.values.reshape(len(chunk), size)
        else:
            vectors = np.full((len(chunk), size), np.nan)
            vectors[there] = numbers.values[lists.starts[there, None] + np.arange(size)]
        lost = int(np.isnan(vectors[there]).sum())
        counts.nulls += lost - numbers.infinite
        return vectors

    def _parse(self, lists: Lists) -> None:
        """Turn the parts of strings into numbers, empty ones into missing ones; an empty string has none."""
        is_empty = pc.fill_null(pc.equal(pc.binary_length(lists.values), 0), False)
        single = np.flatnonzero(lists.lengths == 1)
        lists.lengths[single[is_empty.to_numpy(zero_copy_only=False)[lists.starts[single]]]] = 0
        try:
            lists.values = pc.if_else(is_empty, None, lists.values).cast(pa.float64())
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"{self.source} should hold numbers between the separators. {error}"
            ) from None

    def statistics(self) -> list[Moments]:
        """Return what collects the statistics that this feature needs."""
        return [Moments() for _ in range(self.feature.size)]

    def fit(self, moments: list[Moments]) -> None:
        """Settle the scales."""
        require_values(self.source, max(one.count for one in moments))
        self.scales = [self._scale(one) for one in moments]

    def _scale(self, moments: Moments) -> Scale:
        # A constant becomes 0, and is left in its unit, as that of a dense feature.
        constant = moments.is_constant
        mean = (moments.least if constant else moments.mean) if moments.count else 0.0
        fill = mean if self.feature.fill == "mean" else self.feature.fill
        if not self.feature.standardise:
            return Scale(fill)
        scale = Scale(fill, mean, 1.0 if constant else moments.deviation)
        if abs(scale.fill - mean) > LARGEST * scale.deviation:
            raise unfit_fill(self.source, fill)
        return scale

    def write(self, table: pa.Table, out: Array, counts: FeatureCounts) -> None:
        """Write the numbers of all samples to ``out``, float32 ``(B, size)``."""
        assert self.scales is not None
        fill, mean, deviation = np.array([(s.fill, s.mean, s.deviation) for s in self.scales]).T
        filled = (fill - mean) / deviation
        at = 0
        for vectors in self.read(table, counts):
            vectors -= mean
            with np.errstate(over="ignore"):
                vectors /= deviation
            lost = ~(np.abs(vectors) <= LARGEST)
            if lost.any():
                counts.infinite += int((lost & ~np.isnan(vectors)).sum())
                vectors = np.where(lost, filled, vectors)
            out[at : at + len(vectors)] = vectors
            at += len(vectors)


def update_moments(moments: list[Moments], vectors: Array) -> None:
    """Add vectors ``(B, size)`` to the moments of each of their numbers, but for those that are NaN."""
    for one, values in zip(moments, vectors.T, strict=True):
        one.update(values[~np.isnan(values)])
