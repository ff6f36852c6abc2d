"""Predicted over observed positives."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from torchrec.metrics.metrics_namespace import MetricName, MetricNameBase, MetricNamespace
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sum_metric import SumMetricComputation
from torchrec.metrics.task_batch import TaskBatch, Term, label_sum, prediction_sum
from torchrec.metrics.terms import ratio

CALIBRATION_NUM = "calibration_num"
CALIBRATION_DENOM = "calibration_denom"

_SUMS: dict[str, Term] = {CALIBRATION_NUM: (prediction_sum,), CALIBRATION_DENOM: (label_sum,)}


def compute_calibration(calibration_num: Tensor, calibration_denom: Tensor) -> Tensor:
    """Return predicted over observed positives, 0 where none was observed.

    Args:
        calibration_num: the sum of weight times prediction.
        calibration_denom: the sum of weight times label.

    Example:
        >>> compute_calibration(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 0.0]))
        tensor([1.5000, 0.0000])
    """
    return ratio(calibration_num, calibration_denom)


def get_calibration_states(
    labels: Tensor, predictions: Tensor, weights: Tensor
) -> dict[str, Tensor]:
    """Return what a batch adds to the sums: ``(T, B)`` each."""
    batch = TaskBatch(predictions, labels, weights)
    return {name: batch.get(*term) for name, term in _SUMS.items()}


class CalibrationMetricComputation(SumMetricComputation):
    """Sums of predictions and of labels. See `RecMetricComputation`."""

    def sums(self) -> Mapping[str, Term]:
        """See `SumMetricComputation.sums`."""
        return _SUMS

    def values(self, sums: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """See `SumMetricComputation.values`."""
        return {
            MetricName.CALIBRATION: compute_calibration(
                sums[CALIBRATION_NUM], sums[CALIBRATION_DENOM]
            )
        }


class CalibrationMetric(RecMetric):
    """Predicted over observed positives; 1 is right, 0 stands for no positives. See `RecMetric`."""

    _namespace = MetricNamespace.CALIBRATION
    _computation_class = CalibrationMetricComputation
