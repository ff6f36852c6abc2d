"""Normalised entropy from which the effect of calibration is taken out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchrec.metrics.metrics_namespace import MetricName, MetricNameBase, MetricNamespace
from torchrec.metrics.ne import ETA, compute_ne, cross_entropy
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sum_metric import SumMetricComputation
from torchrec.metrics.task_batch import (
    Term,
    label_sum,
    negative_sum,
    prediction_sum,
    weighted_num_samples,
)


def compute_cali_free_ne(
    ce_sum: Tensor,
    weighted_num_samples: Tensor,
    pos_labels: Tensor,
    neg_labels: Tensor,
    weighted_sum_predictions: Tensor,
    eta: float,
    allow_missing_label_with_zero_weight: bool = False,
) -> Tensor:
    """Return the NE over the cross-entropy of always predicting the mean prediction.

    Args:
        ce_sum: the sum of cross-entropies, in bits.
        weighted_num_samples: the sum of weights.
        pos_labels: the sum of weight times label.
        neg_labels: the sum of weight times 1 minus label.
        weighted_sum_predictions: the sum of weight times prediction.
        eta: how near to 0 and 1 the means can be.
        allow_missing_label_with_zero_weight: return ``eta`` where nothing has a weight, not NaN.
            Default: False.

    Example:
        >>> one = torch.tensor([1.0], dtype=torch.float64)
        >>> compute_cali_free_ne(2 * one, 2 * one, one, one, one, 1e-12)
        tensor([0.5000], dtype=torch.float64)
    """
    ne = compute_ne(ce_sum, weighted_num_samples, pos_labels, neg_labels, eta)
    mean = (weighted_sum_predictions / weighted_num_samples).clamp(eta, 1 - eta)
    value = ne / (-pos_labels * mean.log2() - neg_labels * (1 - mean).log2())
    if allow_missing_label_with_zero_weight:
        return torch.where(weighted_num_samples == 0, eta, value)
    return value


class CaliFreeNEMetricComputation(SumMetricComputation):
    """Sums of cross-entropy, of either class and of predictions. See `RecMetricComputation`.

    Args:
        *args: see `RecMetricComputation`.
        allow_missing_label_with_zero_weight: see `compute_cali_free_ne`. Default: False.
        **kwargs: see `RecMetricComputation`.
    """

    def __init__(
        self, *args: Any, allow_missing_label_with_zero_weight: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._allow_missing_label_with_zero_weight = allow_missing_label_with_zero_weight

    def sums(self) -> Mapping[str, Term]:
        """See `SumMetricComputation.sums`."""
        return {
            "cross_entropy_sum": (cross_entropy, ETA),
            "weighted_num_samples": (weighted_num_samples,),
            "pos_labels": (label_sum,),
            "neg_labels": (negative_sum,),
            "weighted_sum_predictions": (prediction_sum,),
        }

    def values(self, sums: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """See `SumMetricComputation.values`."""
        value = compute_cali_free_ne(
            sums["cross_entropy_sum"],
            sums["weighted_num_samples"],
            sums["pos_labels"],
            sums["neg_labels"],
            sums["weighted_sum_predictions"],
            ETA,
            self._allow_missing_label_with_zero_weight,
        )
        return {MetricName.CALI_FREE_NE: value}


class CaliFreeNEMetric(RecMetric):
    """The NE over the cross-entropy of the mean prediction. See `RecMetric`.

    The denominator is the sum over samples, as the API has it, and not their mean: values fall with the
    number of samples, so compare those over the same window.
    """

    _namespace = MetricNamespace.CALI_FREE_NE
    _computation_class = CaliFreeNEMetricComputation
