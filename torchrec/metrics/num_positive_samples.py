"""How many positives there were."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from torchrec.metrics.metrics_namespace import MetricName, MetricNameBase, MetricNamespace
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sum_metric import SumMetricComputation
from torchrec.metrics.task_batch import Term, label_sum


class NumPositiveSamplesMetricComputation(SumMetricComputation):
    """Sums of labels. See `RecMetricComputation`."""

    def sums(self) -> Mapping[str, Term]:
        """See `SumMetricComputation.sums`."""
        return {"weighted_pos_sum": (label_sum,)}

    def values(self, sums: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """See `SumMetricComputation.values`."""
        return {MetricName.NUM_POSITIVE_SAMPLES: sums["weighted_pos_sum"]}


class NumPositiveSamplesMetric(RecMetric):
    """The sum of weight times label. See `RecMetric`."""

    _namespace = MetricNamespace.NUM_POSITIVE_SAMPLES
    _computation_class = NumPositiveSamplesMetricComputation
