"""Mean label and mean prediction."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from torchrec.metrics.metrics_namespace import MetricName, MetricNameBase, MetricNamespace
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sum_metric import SumMetricComputation
from torchrec.metrics.task_batch import Term, label_sum, prediction_sum, weighted_num_samples
from torchrec.metrics.terms import ratio


class AverageMetricComputation(SumMetricComputation):
    """Sums of labels and of predictions. See `RecMetricComputation`."""

    def sums(self) -> Mapping[str, Term]:
        """See `SumMetricComputation.sums`."""
        return {
            "label_sum": (label_sum,),
            "prediction_sum": (prediction_sum,),
            "weighted_num_samples": (weighted_num_samples,),
        }

    def values(self, sums: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """See `SumMetricComputation.values`."""
        return {
            MetricName.LABEL_AVERAGE: ratio(sums["label_sum"], sums["weighted_num_samples"]),
            MetricName.PREDICTION_AVERAGE: ratio(
                sums["prediction_sum"], sums["weighted_num_samples"]
            ),
        }


class AverageMetric(RecMetric):
    """The weighted means of labels and of predictions. See `RecMetric`."""

    _namespace = MetricNamespace.AVERAGE
    _computation_class = AverageMetricComputation
