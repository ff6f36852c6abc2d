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
)
from torchrec.ops.metrics import cross_entropy_sums

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
    predictions = predictions.double().clamp(eta, 1 - eta)
    return -weights * torch.lerp((1 - predictions).log2_(), predictions.log2(), labels.double())


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
    terms = entropy_sums("cross_entropy_sum", (cross_entropy, eta))
    return {name: batch.get(*term) for name, term in terms.items()}


def cross_entropy(batch: TaskBatch, eta: float) -> Tensor:
    """Return the sum of cross-entropies, in bits."""
    return cross_entropy_sums(  # type: ignore[no-any-return]
        batch.raw_predictions, batch.raw_labels, batch.raw_weights, eta
    )


def entropy_sums(name: str, numerator: Term) -> dict[str, Term]:
    """Return a numerator by its name, and what the entropy of the mean label is made of."""
    return {
        name: numerator,
        "weighted_num_samples": (weighted_num_samples,),
        "pos_labels": (label_sum,),
        "neg_labels": (negative_sum,),
    }


def entropy_values(
    number: MetricNameBase, sums: Mapping[str, Tensor], allowed: bool, include_logloss: bool = False
) -> dict[MetricNameBase, Tensor]:
    """Return the numbers of the sums that `entropy_sums` names.

    Args:
        number: what the numerator over the entropy is called.
        sums: by name, the numerator first.
        allowed: see ``allow_missing_label_with_zero_weight`` of `compute_ne`.
        include_logloss: return the log loss as well. Default: False.
    """
    loss, weight, positives, negatives = list(sums.values())[:4]
    values = {number: compute_ne(loss, weight, positives, negatives, ETA, allowed)}
    if include_logloss:
        values[MetricName.LOG_LOSS] = compute_logloss(loss, positives, negatives, ETA)
    return values


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
        super().__init__(
            *args,
            allow_missing_label_with_zero_weight=allow_missing_label_with_zero_weight,
            **kwargs,
        )
        self._include_logloss = include_logloss

    def sums(self) -> Mapping[str, Term]:
        """Return what is summed."""
        return entropy_sums("cross_entropy_sum", (cross_entropy, ETA))

    def values(self, sums: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """Return the numbers of the sums."""
        allowed = self._allow_missing_label_with_zero_weight
        return entropy_values(MetricName.NE, sums, allowed, self._include_logloss)


class NEMetric(RecMetric):
    """Normalised entropy, see `NEMetricComputation`."""

    _namespace = MetricNamespace.NE
    _computation_class = NEMetricComputation
