"""Calibration of a model that was trained on a share of the negatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from torchrec.metrics.calibration import CALIBRATION_DENOM, CALIBRATION_NUM, compute_calibration
from torchrec.metrics.metrics_namespace import MetricName, MetricNameBase, MetricNamespace
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sum_metric import SumMetricComputation
from torchrec.metrics.task_batch import TaskBatch, Term, label_sum, weighted_sum
from torchrec.metrics.terms import recalibrated


def recalibrated_prediction_sum(batch: TaskBatch, coefficient: float) -> Tensor:
    """Return the sum of weight times recalibrated prediction."""
    return weighted_sum(batch, batch.get(recalibrated, coefficient))


class RecalibratedCalibrationMetricComputation(SumMetricComputation):
    """Sums of recalibrated predictions and of labels. See `RecMetricComputation`.

    Args:
        *args: see `RecMetricComputation`.
        recalibration_coefficient: the share of the negatives that the model was trained on.
            Default: 1.
        **kwargs: see `RecMetricComputation`.
    """

    def __init__(self, *args: Any, recalibration_coefficient: float = 1.0, **kwargs: Any) -> None:
        self._coefficient = recalibration_coefficient
        super().__init__(*args, **kwargs)

    def sums(self) -> Mapping[str, Term]:
        """See `SumMetricComputation.sums`."""
        return {
            CALIBRATION_NUM: (recalibrated_prediction_sum, self._coefficient),
            CALIBRATION_DENOM: (label_sum,),
        }

    def values(self, sums: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """See `SumMetricComputation.values`."""
        value = compute_calibration(sums[CALIBRATION_NUM], sums[CALIBRATION_DENOM])
        return {MetricName.CALIBRATION: value}


class RecalibratedCalibrationMetric(RecMetric):
    """Predicted over observed positives, of recalibrated predictions. See `RecMetric`."""

    _namespace = MetricNamespace.RECALIBRATED_CALIBRATION
    _computation_class = RecalibratedCalibrationMetricComputation
