"""Normalised entropy of the positives alone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from torchrec.metrics.metrics_namespace import MetricName, MetricNameBase, MetricNamespace
from torchrec.metrics.ne import ETA, entropy_sums, entropy_values
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sum_metric import SumMetricComputation
from torchrec.metrics.task_batch import (
    TaskBatch,
    Term,
    weighted_sum,
)


def positive_cross_entropy_sum(batch: TaskBatch, eta: float) -> Tensor:
    """Return the sum of cross-entropies of positives, in bits."""
    bits = batch.predictions.clamp(eta, 1 - eta).log2()
    return -weighted_sum(batch, batch.labels * bits)


class NEPositiveMetricComputation(SumMetricComputation):
    """Sums of the cross-entropy of positives and of either class. See `RecMetricComputation`."""

    def sums(self) -> Mapping[str, Term]:
        """See `SumMetricComputation.sums`."""
        return entropy_sums("cross_entropy_positive_sum", (positive_cross_entropy_sum, ETA))

    def values(self, sums: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """See `SumMetricComputation.values`."""
        return entropy_values(
            MetricName.NE_POSITIVE, sums, self._allow_missing_label_with_zero_weight
        )


class NEPositiveMetric(RecMetric):
    """The part of the normalised entropy that comes from positives. See `RecMetric`."""

    _namespace = MetricNamespace.NE_POSITIVE
    _computation_class = NEPositiveMetricComputation
