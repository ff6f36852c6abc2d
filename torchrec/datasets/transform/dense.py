"""Numbers: missing values, logarithm, scale, quantile buckets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from torchrec.datasets.features import DenseFeature
from torchrec.datasets.transform.columns import (
    LARGEST,
    TIMES,
    Array,
    Kind,
    Numbers,
    Source,
    are_finite,
    chunks_of,
    kind_of,
    read_numbers,
    stored,
)
from torchrec.datasets.transform.counts import FeatureCounts
from torchrec.datasets.transform.sketches import Moments


@dataclass(frozen=True)
class Scale:
    """What `fit` found out about a dense feature.

    Attributes:
        fill: what a missing number becomes, after the logarithm.
        mean: what is subtracted.
        deviation: what is then divided by.
    """

    fill: float
    mean: float = 0.0
    deviation: float = 1.0


def logarithm(values: Any) -> Any:
    """Return ``sign(x) log(1 + |x|)``: like x near 0, like the logarithm far away."""
    return np.copysign(np.log1p(np.abs(values)), values)


class DenseColumn:
    """Reads a dense feature.

    Args:
        name: of the feature.
        feature: its declaration.

    Attributes:
        columns: the columns that it reads.
        names: of its only number, as of several in a vector.
        needs_fit: whether the feature depends on statistics of the training data.
        scales: of its number; None until it is settled.
    """

    def __init__(self, name: str, feature: DenseFeature) -> None:
        self.feature = feature
        self.source = Source(name, feature.column or name)
        self.columns, self.names = [self.source.column], [name]
        self.needs_fit = feature.fill == "mean" or feature.standardise
        if feature.fill != "mean" and abs(feature.fill) > LARGEST:
            raise unfit_fill(self.source, feature.fill)
        self.scales: list[Scale] | None = None if self.needs_fit else [Scale(self._fill(0.0))]

    def kind(self, schema: pa.Schema) -> Kind:
        """Return what the numbers are, refusing what is none."""
        type = schema.field(self.source.column).type
        kind = kind_of(type)
        if kind not in ("integers", "numbers", "nulls") and kind not in TIMES:
            raise ValueError(
                f"{self.source} should hold numbers, as a dense feature does. "
                f"Received {stored(type)}."
            )
        return "numbers" if kind == "integers" else kind

    def read(self, table: pa.Table, counts: FeatureCounts) -> list[Numbers]:
        """Return the numbers after the logarithm, chunk by chunk."""
        return [self._read(chunk, counts) for chunk in chunks_of(table, self.source.column)]

    def _read(self, chunk: pa.Array, counts: FeatureCounts) -> Numbers:
        numbers = read_numbers(chunk)
        missing = 0 if numbers.missing is None else len(numbers.missing)
        counts.samples += len(chunk)
        counts.values += len(chunk) - missing
        counts.missing += missing - numbers.infinite
        counts.infinite += numbers.infinite
        if self.feature.log:
            numbers.values = logarithm(numbers.values)
        return numbers

    def statistics(self) -> Moments:
        """Return what collects the statistics that this feature needs."""
        return Moments()

    def fit(self, moments: Moments) -> None:
        """Settle the scale."""
        require_values(self.source, moments.count)
        # A constant column becomes 0, and is then left in its unit: nothing is known of its spread.
        constant = moments.is_constant
        mean = moments.least if constant else moments.mean
        if not self.feature.standardise:
            self.scales = [Scale(self._fill(mean))]
            return
        scale = Scale(self._fill(mean), mean, 1.0 if constant else moments.deviation)
        if abs(scale.fill - mean) > LARGEST * scale.deviation:
            raise unfit_fill(self.source, self.feature.fill)
        self.scales = [scale]

    def _fill(self, mean: float) -> float:
        fill = self.feature.fill
        if fill == "mean":
            return mean
        return float(logarithm(np.float64(fill))) if self.feature.log else fill

    def write(self, table: pa.Table, out: Array, counts: FeatureCounts) -> None:
        """Write the numbers of all samples to ``out``, float32 ``(B, 1)``."""
        assert self.scales is not None
        (scale,), at = self.scales, 0
        for numbers in self.read(table, counts):
            values = numbers.values
            if numbers.missing is not None:
                values[numbers.missing] = scale.fill
            if self.feature.standardise:
                self._standardise(values, scale, counts)
            out[at : at + len(values), 0] = values
            at += len(values)

    def _standardise(self, values: Array, scale: Scale, counts: FeatureCounts) -> None:
        """Scale in place; what only this makes infinite is missing, too."""
        values -= scale.mean
        with np.errstate(over="ignore"):
            values /= scale.deviation
        if not are_finite(values):
            infinite = np.abs(values) > LARGEST
            values[infinite] = (scale.fill - scale.mean) / scale.deviation
            counts.infinite += int(np.count_nonzero(infinite))
            counts.values -= int(np.count_nonzero(infinite))


def unfit_fill(source: Source, fill: float | str) -> ValueError:
    """Return the error for a ``fill`` that is too large."""
    return ValueError(
        f"`fill` of feature '{source.feature}' should be a number that float32 holds, also when it is "
        f"standardised. Received {fill}."
    )


def require_values(source: Source, count: int) -> None:
    """Refuse a feature of which the training data holds nothing."""
    if not count:
        raise ValueError(
            f"{source} should hold values. Received none in the training data: leave the feature "
            "out."
        )
