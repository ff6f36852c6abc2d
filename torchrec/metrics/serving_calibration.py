"""Calibration of predictions that were served, and how many there were."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from torchrec.metrics.calibration import CALIBRATION_DENOM, CALIBRATION_NUM, compute_calibration
from torchrec.metrics.metric_computation import MetricComputationReport
from torchrec.metrics.metrics_namespace import (
    MetricName,
    MetricNameBase,
    MetricNamespace,
    MetricPrefix,
)
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sum_metric import SumMetricComputation
from torchrec.metrics.task_batch import Term, label_sum, prediction_sum
from torchrec.metrics.terms import num_examples

NUM_EXAMPLES = "num_examples"


class ServingCalibrationMetricComputation(SumMetricComputation):
    """Sums of predictions and of labels, and a count. See `RecMetricComputation`."""

    def sums(self) -> Mapping[str, Term]:
        """See `SumMetricComputation.sums`."""
        return {
            CALIBRATION_NUM: (prediction_sum,),
            CALIBRATION_DENOM: (label_sum,),
            NUM_EXAMPLES: (num_examples,),
        }

    def values(self, sums: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """See `SumMetricComputation.values`."""
        value = compute_calibration(sums[CALIBRATION_NUM], sums[CALIBRATION_DENOM])
        return {MetricName.CALIBRATION: value}

    def _compute(self) -> list[MetricComputationReport]:
        count = self.state(NUM_EXAMPLES).long()
        total = MetricComputationReport(MetricName.TOTAL_EXAMPLES, MetricPrefix.DEFAULT, count)
        return [*super()._compute(), total]


class ServingCalibrationMetric(RecMetric):
    """Predicted over observed positives, and how many samples had a weight. See `RecMetric`."""

    _namespace = MetricNamespace.SERVING_CALIBRATION
    _computation_class = ServingCalibrationMetricComputation
