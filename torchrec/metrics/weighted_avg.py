"""Mean prediction."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from torchrec.metrics.metrics_namespace import MetricName, MetricNameBase, MetricNamespace
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sum_metric import SumMetricComputation
from torchrec.metrics.task_batch import Term, prediction_sum, weighted_num_samples


class WeightedAvgMetricComputation(SumMetricComputation):
    """Sums of predictions. See `RecMetricComputation`."""

    def sums(self) -> Mapping[str, Term]:
        """See `SumMetricComputation.sums`."""
        return {"weighted_sum": (prediction_sum,), "weighted_num_samples": (weighted_num_samples,)}

    def values(self, sums: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """See `SumMetricComputation.values`."""
        return {MetricName.WEIGHTED_AVG: sums["weighted_sum"] / sums["weighted_num_samples"]}


class WeightedAvgMetric(RecMetric):
    """The weighted mean of predictions; NaN where no sample has a weight. See `RecMetric`."""

    _namespace = MetricNamespace.WEIGHTED_AVG
    _computation_class = WeightedAvgMetricComputation
