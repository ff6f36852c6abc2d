"""Squared errors over those of a constant."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from torchrec.metrics.metrics_namespace import MetricName, MetricNameBase, MetricNamespace
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sum_metric import SumMetricComputation
from torchrec.metrics.task_batch import (
    TaskBatch,
    Term,
    squared_error_sum,
    weighted_num_samples,
    weighted_sum,
)
from torchrec.metrics.terms import ratio


def constant_error_sum(batch: TaskBatch) -> Tensor:
    """Return the weighted sum of squared errors of always predicting 1."""
    return weighted_sum(batch, (batch.labels - 1.0).square())


class NMSEMetricComputation(SumMetricComputation):
    """Sums of squared errors, and of those of always predicting 1. See `RecMetricComputation`."""

    def sums(self) -> Mapping[str, Term]:
        """See `SumMetricComputation.sums`."""
        return {
            "error_sum": (squared_error_sum,),
            "weighted_num_samples": (weighted_num_samples,),
            "const_pred_error_sum": (constant_error_sum,),
        }

    def values(self, sums: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """See `SumMetricComputation.values`."""
        value = ratio(sums["error_sum"], sums["const_pred_error_sum"])
        return {MetricName.NMSE: value, MetricName.NRMSE: value.sqrt()}


class NMSEMetric(RecMetric):
    """Squared errors over those of always predicting 1, and the root of that. See `RecMetric`."""

    _namespace = MetricNamespace.NMSE
    _computation_class = NMSEMetricComputation
