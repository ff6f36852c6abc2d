"""Normalised entropy of a model that was trained on a share of the negatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from torchrec.metrics.metrics_namespace import MetricName, MetricNameBase, MetricNamespace
from torchrec.metrics.ne import ETA, compute_cross_entropy, compute_logloss, compute_ne
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sum_metric import SumMetricComputation
from torchrec.metrics.task_batch import (
    TaskBatch,
    Term,
    label_sum,
    negative_sum,
    weighted_num_samples,
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
        allow_missing_label_with_zero_weight: see `torchrec.metrics.ne.compute_ne`. Default: False.
        recalibration_coefficient: the share of the negatives that the model was trained on.
            Default: 1.
        **kwargs: see `RecMetricComputation`.
    """

    def __init__(
        self,
        *args: Any,
        include_logloss: bool = False,
        allow_missing_label_with_zero_weight: bool = False,
        recalibration_coefficient: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self._coefficient = recalibration_coefficient
        super().__init__(*args, **kwargs)
        self._include_logloss = include_logloss
        self._allow_missing_label_with_zero_weight = allow_missing_label_with_zero_weight

    def sums(self) -> Mapping[str, Term]:
        """See `SumMetricComputation.sums`."""
        return {
            "cross_entropy_sum": (recalibrated_cross_entropy_sum, self._coefficient, ETA),
            "weighted_num_samples": (weighted_num_samples,),
            "pos_labels": (label_sum,),
            "neg_labels": (negative_sum,),
        }

    def values(self, sums: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """See `SumMetricComputation.values`."""
        loss, positives, negatives = (
            sums[name] for name in ("cross_entropy_sum", "pos_labels", "neg_labels")
        )
        values: dict[MetricNameBase, Tensor] = {
            MetricName.NE: compute_ne(
                loss,
                sums["weighted_num_samples"],
                positives,
                negatives,
                ETA,
                self._allow_missing_label_with_zero_weight,
            )
        }
        if self._include_logloss:
            values[MetricName.LOG_LOSS] = compute_logloss(loss, positives, negatives, ETA)
        return values


class RecalibratedNEMetric(RecMetric):
    """Normalised entropy of recalibrated predictions. See `RecMetric`.

    He et al. 2014, https://doi.org/10.1145/2648584.2648589, section 6.3.
    """

    _namespace = MetricNamespace.RECALIBRATED_NE
    _computation_class = RecalibratedNEMetricComputation
