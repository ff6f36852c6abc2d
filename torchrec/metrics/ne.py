"""Normalised entropy: the log loss relative to that of a constant prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchrec.metrics.metrics_namespace import MetricName, MetricNameBase, MetricNamespace
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sum_metric import SumMetricComputation
from torchrec.metrics.task_batch import (
    TaskBatch,
    Term,
    label_sum,
    negative_sum,
    weighted_num_samples,
    weighted_sum,
)

ETA = 1e-12


def compute_cross_entropy(
    labels: Tensor, predictions: Tensor, weights: Tensor, eta: float
) -> Tensor:
    """Return the weighted cross-entropy of each sample, in bits.

    Args:
        labels: from 0 to 1.
        predictions: probabilities, which are taken to lie between ``eta`` and ``1 - eta``.
        weights: of the samples.
        eta: how near to 0 and 1 predictions can be.

    Example:
        >>> compute_cross_entropy(
        ...     torch.tensor([1.0]), torch.tensor([0.25]), torch.tensor([3.0]), 1e-12
        ... )
        tensor([6.], dtype=torch.float64)
    """
    return -weights * _log_likelihood(labels.double(), predictions.double(), eta)


def _log_likelihood(labels: Tensor, predictions: Tensor, eta: float) -> Tensor:
    predictions = predictions.clamp(eta, 1 - eta)
    return torch.lerp((1 - predictions).log2_(), predictions.log2(), labels)


def compute_ne(
    ce_sum: Tensor,
    weighted_num_samples: Tensor,
    pos_labels: Tensor,
    neg_labels: Tensor,
    eta: float,
    allow_missing_label_with_zero_weight: bool = False,
) -> Tensor:
    """Return the cross-entropy relative to that of always predicting the mean of the labels.

    Args:
        ce_sum: the sum of cross-entropies, in bits.
        weighted_num_samples: the sum of weights.
        pos_labels: the sum of weight times label.
        neg_labels: the sum of weight times 1 minus label.
        eta: how near to 0 and 1 the mean can be.
        allow_missing_label_with_zero_weight: return ``eta`` where nothing has a weight, not NaN.

    Example:
        >>> one = torch.tensor([1.0], dtype=torch.float64)
        >>> compute_ne(3 * one, 2 * one, one, one, 1e-12)
        tensor([1.5000], dtype=torch.float64)
    """
    mean = (pos_labels / weighted_num_samples).clamp(eta, 1 - eta)
    baseline = -pos_labels * mean.log2() - neg_labels * (1 - mean).log2()
    ne = ce_sum / baseline
    if allow_missing_label_with_zero_weight:
        return torch.where(weighted_num_samples == 0, eta, ne)
    return ne


def compute_logloss(ce_sum: Tensor, pos_labels: Tensor, neg_labels: Tensor, eta: float) -> Tensor:
    """Return the mean cross-entropy, in bits; 0 where nothing has a weight.

    Args:
        ce_sum: the sum of cross-entropies, in bits.
        pos_labels: the sum of weight times label.
        neg_labels: the sum of weight times 1 minus label.
        eta: the least that the sum of weights counts as.

    Example:
        >>> one = torch.tensor([1.0])
        >>> compute_logloss(3 * one, one, one, 1e-12)
        tensor([1.5000])
    """
    return ce_sum / (pos_labels + neg_labels).clamp(min=eta)


def get_ne_states(
    labels: Tensor, predictions: Tensor, weights: Tensor, eta: float
) -> dict[str, Tensor]:
    """Return what a batch adds to the sums.

    Args:
        labels: ``(T, B)``, from 0 to 1.
        predictions: ``(T, B)``, probabilities.
        weights: ``(T, B)``.
        eta: how near to 0 and 1 predictions can be.
    """
    batch = TaskBatch(predictions, labels, weights)
    return {name: batch.get(*term) for name, term in _sums(eta).items()}


def cross_entropy(batch: TaskBatch, eta: float) -> Tensor:
    """Return the sum of cross-entropies, in bits."""
    return -weighted_sum(batch, _log_likelihood(batch.labels, batch.predictions, eta))


def _sums(eta: float) -> dict[str, Term]:
    return {
        "cross_entropy_sum": (cross_entropy, eta),
        "weighted_num_samples": (weighted_num_samples,),
        "pos_labels": (label_sum,),
        "neg_labels": (negative_sum,),
    }


class NEMetricComputation(SumMetricComputation):
    """Normalised entropy of tasks, and their log loss if asked for.

    He et al. 2014, https://doi.org/10.1145/2648584.2648589, equation 1.

    Args:
        *args: see `RecMetricComputation`.
        include_logloss: report the log loss as well. Default: False.
        allow_missing_label_with_zero_weight: labels of samples without weight can be NaN, and a task
            without weights has a small number instead of NaN. Default: False.
        **kwargs: see `RecMetricComputation`.
    """

    def __init__(
        self,
        *args: Any,
        include_logloss: bool = False,
        allow_missing_label_with_zero_weight: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._include_logloss = include_logloss
        self._allow_missing_label_with_zero_weight = allow_missing_label_with_zero_weight

    def sums(self) -> Mapping[str, Term]:
        """Return what is summed."""
        return _sums(ETA)

    def values(self, sums: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """Return the numbers of the sums."""
        values: dict[MetricNameBase, Tensor] = {
            MetricName.NE: compute_ne(
                sums["cross_entropy_sum"],
                sums["weighted_num_samples"],
                sums["pos_labels"],
                sums["neg_labels"],
                ETA,
                self._allow_missing_label_with_zero_weight,
            )
        }
        if self._include_logloss:
            values[MetricName.LOG_LOSS] = compute_logloss(
                sums["cross_entropy_sum"], sums["pos_labels"], sums["neg_labels"], ETA
            )
        return values


class NEMetric(RecMetric):
    """Normalised entropy, see `NEMetricComputation`."""

    _namespace = MetricNamespace.NE
    _computation_class = NEMetricComputation
