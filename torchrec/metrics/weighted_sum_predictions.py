"""The sum of predictions."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from torchrec.metrics.metrics_namespace import MetricName, MetricNameBase, MetricNamespace
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sum_metric import SumMetricComputation
from torchrec.metrics.task_batch import Term, prediction_sum


class WeightedSumPredictionsMetricComputation(SumMetricComputation):
    """Sums of predictions. See `RecMetricComputation`."""

    def sums(self) -> Mapping[str, Term]:
        """See `SumMetricComputation.sums`."""
        return {"weighted_predictions_sum": (prediction_sum,)}

    def values(self, sums: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """See `SumMetricComputation.values`."""
        return {MetricName.WEIGHTED_SUM_PREDICTIONS: sums["weighted_predictions_sum"]}


class WeightedSumPredictionsMetric(RecMetric):
    """The sum of weight times prediction. See `RecMetric`."""

    _namespace = MetricNamespace.WEIGHTED_SUM_PREDICTIONS
    _computation_class = WeightedSumPredictionsMetricComputation
