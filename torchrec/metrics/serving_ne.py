"""Normalised entropy of predictions that were served, and how many there were."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from torchrec.metrics.metric_computation import MetricComputationReport
from torchrec.metrics.metrics_namespace import (
    MetricName,
    MetricNameBase,
    MetricNamespace,
    MetricPrefix,
)
from torchrec.metrics.ne import ETA, cross_entropy, entropy_sums, entropy_values
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sum_metric import SumMetricComputation
from torchrec.metrics.task_batch import Term
from torchrec.metrics.terms import num_examples

NUM_EXAMPLES = "num_examples"


class ServingNEMetricComputation(SumMetricComputation):
    """Sums of cross-entropy and of either class, and a count. See `RecMetricComputation`."""

    def sums(self) -> Mapping[str, Term]:
        """See `SumMetricComputation.sums`."""
        terms = entropy_sums("cross_entropy_sum", (cross_entropy, ETA))
        return {**terms, NUM_EXAMPLES: (num_examples,)}

    def values(self, sums: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """See `SumMetricComputation.values`."""
        return entropy_values(MetricName.NE, sums, self._allow_missing_label_with_zero_weight)

    def _compute(self) -> list[MetricComputationReport]:
        count = self.state(NUM_EXAMPLES).long()
        total = MetricComputationReport(MetricName.TOTAL_EXAMPLES, MetricPrefix.DEFAULT, count)
        return [*super()._compute(), total]


class ServingNEMetric(RecMetric):
    """Normalised entropy, and how many samples had a weight since the start. See `RecMetric`."""

    _namespace = MetricNamespace.SERVING_NE
    _computation_class = ServingNEMetricComputation
