"""Normalised entropy of the positives alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from torchrec.metrics.metrics_namespace import MetricName, MetricNameBase, MetricNamespace
from torchrec.metrics.ne import ETA, compute_ne
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sum_metric import SumMetricComputation
from torchrec.metrics.task_batch import (
    TaskBatch,
    Term,
    label_sum,
    negative_sum,
    weighted_num_samples,
    weighted_sum,
)


def positive_cross_entropy_sum(batch: TaskBatch, eta: float) -> Tensor:
    """Return the sum of cross-entropies of positives, in bits."""
    bits = batch.predictions.clamp(eta, 1 - eta).log2()
    return -weighted_sum(batch, batch.labels * bits)


class NEPositiveMetricComputation(SumMetricComputation):
    """Sums of the cross-entropy of positives and of either class. See `RecMetricComputation`.

    Args:
        *args: see `RecMetricComputation`.
        allow_missing_label_with_zero_weight: see `torchrec.metrics.ne.compute_ne`. Default: False.
        **kwargs: see `RecMetricComputation`.
    """

    def __init__(
        self, *args: Any, allow_missing_label_with_zero_weight: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._allow_missing_label_with_zero_weight = allow_missing_label_with_zero_weight

    def sums(self) -> Mapping[str, Term]:
        """See `SumMetricComputation.sums`."""
        return {
            "cross_entropy_positive_sum": (positive_cross_entropy_sum, ETA),
            "weighted_num_samples": (weighted_num_samples,),
            "pos_labels": (label_sum,),
            "neg_labels": (negative_sum,),
        }

    def values(self, sums: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """See `SumMetricComputation.values`."""
        value = compute_ne(
            sums["cross_entropy_positive_sum"],
            sums["weighted_num_samples"],
            sums["pos_labels"],
            sums["neg_labels"],
            ETA,
            self._allow_missing_label_with_zero_weight,
        )
        return {MetricName.NE_POSITIVE: value}


class NEPositiveMetric(RecMetric):
    """The part of the normalised entropy that comes from positives. See `RecMetric`."""

    _namespace = MetricNamespace.NE_POSITIVE
    _computation_class = NEPositiveMetricComputation
