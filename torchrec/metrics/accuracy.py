"""The share of samples that a threshold puts on the right side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from torchrec.metrics.metrics_namespace import MetricName, MetricNameBase, MetricNamespace
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sum_metric import SumMetricComputation
from torchrec.metrics.task_batch import Term, weighted_num_samples
from torchrec.metrics.terms import ratio, right_sum


class AccuracyMetricComputation(SumMetricComputation):
    """Sums of weights, and of those of the samples that are right. See `RecMetricComputation`.

    Args:
        *args: see `RecMetricComputation`.
        threshold: the least prediction that counts as a 1. Default: 0.5.
        **kwargs: see `RecMetricComputation`.
    """

    def __init__(self, *args: Any, threshold: float = 0.5, **kwargs: Any) -> None:
        self._threshold = threshold
        super().__init__(*args, **kwargs)

    def sums(self) -> Mapping[str, Term]:
        """See `SumMetricComputation.sums`."""
        return {
            "accuracy_sum": (right_sum, self._threshold),
            "weighted_num_samples": (weighted_num_samples,),
        }

    def values(self, sums: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """See `SumMetricComputation.values`."""
        return {MetricName.ACCURACY: ratio(sums["accuracy_sum"], sums["weighted_num_samples"])}


class AccuracyMetric(RecMetric):
    """The weighted share of samples on the right side of a threshold. See `RecMetric`."""

    _namespace = MetricNamespace.ACCURACY
    _computation_class = AccuracyMetricComputation
