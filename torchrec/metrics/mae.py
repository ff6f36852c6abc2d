"""Mean absolute error."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from torchrec.metrics.metrics_namespace import MetricName, MetricNameBase, MetricNamespace
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sum_metric import SumMetricComputation
from torchrec.metrics.task_batch import Term, absolute_error_sum, weighted_num_samples
from torchrec.metrics.terms import ratio


class MAEMetricComputation(SumMetricComputation):
    """Sums of absolute errors. See `RecMetricComputation`."""

    def sums(self) -> Mapping[str, Term]:
        """See `SumMetricComputation.sums`."""
        return {"error_sum": (absolute_error_sum,), "weighted_num_samples": (weighted_num_samples,)}

    def values(self, sums: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """See `SumMetricComputation.values`."""
        return {MetricName.MAE: ratio(sums["error_sum"], sums["weighted_num_samples"])}


class MAEMetric(RecMetric):
    """Mean absolute error: the sum of weight times distance over that of weights. See `RecMetric`."""

    _namespace = MetricNamespace.MAE
    _computation_class = MAEMetricComputation
