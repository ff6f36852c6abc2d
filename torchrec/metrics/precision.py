"""The share of predicted positives that are some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from torchrec.metrics.metrics_namespace import MetricName, MetricNameBase, MetricNamespace
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sum_metric import SumMetricComputation
from torchrec.metrics.task_batch import Term
from torchrec.metrics.terms import false_positive_sum, ratio, true_positive_sum


class PrecisionMetricComputation(SumMetricComputation):
    """Sums of positives that are predicted, and of negatives that are. See `RecMetricComputation`.

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
            "true_pos_sum": (true_positive_sum, self._threshold),
            "false_pos_sum": (false_positive_sum, self._threshold),
        }

    def values(self, sums: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """See `SumMetricComputation.values`."""
        hits = sums["true_pos_sum"]
        return {MetricName.PRECISION: ratio(hits, hits + sums["false_pos_sum"])}


class PrecisionMetric(RecMetric):
    """The weighted share of samples that reach a threshold which are positives; 0 if none does. See `RecMetric`."""

    _namespace = MetricNamespace.PRECISION
    _computation_class = PrecisionMetricComputation
