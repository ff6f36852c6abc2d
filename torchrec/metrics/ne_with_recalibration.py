"""Normalised entropy of a model that was trained on a share of the negatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from torchrec.metrics.metrics_namespace import MetricName, MetricNameBase, MetricNamespace
from torchrec.metrics.ne import ETA, compute_cross_entropy, entropy_sums, entropy_values
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sum_metric import SumMetricComputation
from torchrec.metrics.task_batch import (
    TaskBatch,
    Term,
)
from torchrec.metrics.terms import recalibrated


def recalibrated_cross_entropy_sum(batch: TaskBatch, coefficient: float, eta: float) -> Tensor:
    """Return the sum of cross-entropies of recalibrated predictions, in bits."""
    predictions = batch.get(recalibrated, coefficient)
    return compute_cross_entropy(batch.labels, predictions, batch.weights, eta).sum(-1)


class RecalibratedNEMetricComputation(SumMetricComputation):
    """Sums of the cross-entropy of recalibrated predictions. See `RecMetricComputation`.

    Args:
        *args: see `RecMetricComputation`.
        include_logloss: report the mean cross-entropy as well. Default: False.
        recalibration_coefficient: the share of the negatives that the model was trained on.
            Default: 1.
        **kwargs: see `RecMetricComputation`.
    """

    def __init__(
        self,
        *args: Any,
        include_logloss: bool = False,
        recalibration_coefficient: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self._coefficient = recalibration_coefficient
        super().__init__(*args, **kwargs)
        self._include_logloss = include_logloss

    def sums(self) -> Mapping[str, Term]:
        """See `SumMetricComputation.sums`."""
        term = (recalibrated_cross_entropy_sum, self._coefficient, ETA)
        return entropy_sums("cross_entropy_sum", term)

    def values(self, sums: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """See `SumMetricComputation.values`."""
        return entropy_values(
            MetricName.NE, sums, self._allow_missing_label_with_zero_weight, self._include_logloss
        )


class RecalibratedNEMetric(RecMetric):
    """Normalised entropy of recalibrated predictions. See `RecMetric`.

    He et al. 2014, https://doi.org/10.1145/2648584.2648589, section 6.3.
    """

    _namespace = MetricNamespace.RECALIBRATED_NE
    _computation_class = RecalibratedNEMetricComputation
