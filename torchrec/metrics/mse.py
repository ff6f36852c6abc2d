"""Mean squared error, its root, and the share of the variance that predictions explain."""

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
    squared_error_sum,
    weighted_num_samples,
    weighted_sum,
)


def compute_mse(error_sum: Tensor, weighted_num_samples: Tensor) -> Tensor:
    """Return the mean squared error; 0 where nothing has a weight.

    Example:
        >>> compute_mse(torch.tensor([3.0]), torch.tensor([2.0]))
        tensor([1.5000])
    """
    zero = torch.zeros_like(error_sum)
    return torch.where(weighted_num_samples == 0, zero, error_sum / weighted_num_samples)


def compute_rmse(error_sum: Tensor, weighted_num_samples: Tensor) -> Tensor:
    """Return the root of the mean squared error; 0 where nothing has a weight.

    Example:
        >>> compute_rmse(torch.tensor([8.0]), torch.tensor([2.0]))
        tensor([2.])
    """
    return compute_mse(error_sum, weighted_num_samples).sqrt()


def compute_r_squared(
    error_sum: Tensor, weighted_num_samples: Tensor, label_sum: Tensor, label_squared_sum: Tensor
) -> Tensor:
    """Return 1 minus the squared errors relative to those of the mean label; 1 where labels are all alike.

    Example:
        >>> compute_r_squared(*torch.tensor([[3.0], [2.0], [1.0], [5.0]]))
        tensor([0.3333])
    """
    total = label_squared_sum - label_sum.square() / weighted_num_samples
    # Of labels that are all alike, the sums leave their rounding, of either sign.
    alike = total <= _ROUNDING * torch.finfo(total.dtype).eps * label_squared_sum
    return torch.where(alike | (weighted_num_samples == 0), 1.0, 1.0 - error_sum / total)


def compute_error_sum(labels: Tensor, predictions: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of squared errors, over the last dimension.

    Example:
        >>> compute_error_sum(torch.tensor([3.0]), torch.tensor([1.0]), torch.tensor([2.0]))
        tensor(8., dtype=torch.float64)
    """
    return (weights.double() * (labels.double() - predictions.double()).square()).sum(-1)


def label_squared_sum(batch: TaskBatch) -> Tensor:
    """Return the weighted sum of squared labels."""
    return weighted_sum(batch, batch.labels.square())


# How many roundings of the sum of squares can be left of a variance of 0: a few for each of many batches.
_ROUNDING = 64

_ERRORS: dict[str, Term] = {
    "error_sum": (squared_error_sum,),
    "weighted_num_samples": (weighted_num_samples,),
}
_LABELS: dict[str, Term] = {
    "label_sum": (label_sum,),
    "label_squared_sum": (label_squared_sum,),
}


def get_mse_states(labels: Tensor, predictions: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Return what a batch adds to the sums: ``(T, B)`` each."""
    batch = TaskBatch(predictions, labels, weights)
    return {name: batch.get(*term) for name, term in {**_ERRORS, **_LABELS}.items()}


class MSEMetricComputation(SumMetricComputation):
    """Mean squared error of tasks and its root.

    Args:
        *args: see `RecMetricComputation`.
        include_r_squared: report the share of the variance that is explained as well. Default: False.
        **kwargs: see `RecMetricComputation`.
    """

    def __init__(self, *args: Any, include_r_squared: bool = False, **kwargs: Any) -> None:
        self._include_r_squared = include_r_squared
        super().__init__(*args, **kwargs)

    def sums(self) -> Mapping[str, Term]:
        """Return what is summed."""
        return {**_ERRORS, **_LABELS} if self._include_r_squared else _ERRORS

    def values(self, sums: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """Return the numbers of the sums."""
        errors, samples = sums["error_sum"], sums["weighted_num_samples"]
        values: dict[MetricNameBase, Tensor] = {
            MetricName.MSE: compute_mse(errors, samples),
            MetricName.RMSE: compute_rmse(errors, samples),
        }
        if self._include_r_squared:
            values[MetricName.R_SQUARED] = compute_r_squared(
                errors, samples, sums["label_sum"], sums["label_squared_sum"]
            )
        return values


class MSEMetric(RecMetric):
    """Mean squared error, see `MSEMetricComputation`."""

    _namespace = MetricNamespace.MSE
    _computation_class = MSEMetricComputation
