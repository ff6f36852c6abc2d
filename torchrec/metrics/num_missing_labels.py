"""How many labels were missing."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from torchrec.metrics.metrics_namespace import MetricName, MetricNameBase, MetricNamespace
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sum_metric import SumMetricComputation
from torchrec.metrics.task_batch import TaskBatch, Term, weighted_sum


def missing_label_sum(batch: TaskBatch) -> Tensor:
    """Return the sum of weights of samples whose label is NaN."""
    return weighted_sum(batch, batch.labels.isnan().double())


class NumMissingLabelsMetricComputation(SumMetricComputation):
    """Sums of weights of samples without a label. See `RecMetricComputation`."""

    def sums(self) -> Mapping[str, Term]:
        """See `SumMetricComputation.sums`."""
        return {"missing_label_sum": (missing_label_sum,)}

    def values(self, sums: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """See `SumMetricComputation.values`."""
        return {MetricName.NUM_MISSING_LABELS: sums["missing_label_sum"]}


class NumMissingLabelsMetric(RecMetric):
    """The sum of weights of samples whose label is NaN. See `RecMetric`."""

    _namespace = MetricNamespace.NUM_MISSING_LABELS
    _computation_class = NumMissingLabelsMetricComputation
