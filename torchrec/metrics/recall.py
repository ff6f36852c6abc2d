"""The share of positives that are predicted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from torchrec.metrics.metrics_namespace import MetricName, MetricNameBase, MetricNamespace
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sum_metric import SumMetricComputation
from torchrec.metrics.task_batch import Term
from torchrec.metrics.terms import false_negative_sum, ratio, true_positive_sum


class RecallMetricComputation(SumMetricComputation):
    """Sums of positives that are predicted, and of those that are not. See `RecMetricComputation`.

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
            "false_neg_sum": (false_negative_sum, self._threshold),
        }

    def values(self, sums: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """See `SumMetricComputation.values`."""
        hits = sums["true_pos_sum"]
        return {MetricName.RECALL: ratio(hits, hits + sums["false_neg_sum"])}


class RecallMetric(RecMetric):
    """The weighted share of positives that reach a threshold; 0 if there are none. See `RecMetric`."""

    _namespace = MetricNamespace.RECALL
    _computation_class = RecallMetricComputation
