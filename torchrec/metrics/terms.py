"""What several metrics sum over the samples of a batch, and the formula they share.

Each function is a term of `torchrec.metrics.task_batch`: metrics that ask for the same one share the work.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchrec.metrics.task_batch import TaskBatch
from torchrec.ops.metrics import threshold_sums


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """Return above over below, 0 where below is 0.

    Example:
        >>> ratio(torch.tensor([1.0, 1.0]), torch.tensor([4.0, 0.0]))
        tensor([0.2500, 0.0000])
    """
    return torch.where(below == 0, torch.zeros_like(above), above / below)


def _sides(batch: TaskBatch, threshold: float) -> Tensor:
    return threshold_sums(  # type: ignore[no-any-return]
        batch.raw_predictions, batch.raw_labels, batch.raw_weights, threshold
    )


def true_positive_sum(batch: TaskBatch, threshold: float) -> Tensor:
    """Return the sum of weight times label of samples that reach a threshold."""
    return batch.get(_sides, threshold)[0]


def false_positive_sum(batch: TaskBatch, threshold: float) -> Tensor:
    """Return the sum of weight times 1 minus label of samples that reach a threshold."""
    return batch.get(_sides, threshold)[1]


def false_negative_sum(batch: TaskBatch, threshold: float) -> Tensor:
    """Return the sum of weight times label of samples that do not reach a threshold."""
    return batch.get(_sides, threshold)[2]


def right_sum(batch: TaskBatch, threshold: float) -> Tensor:
    """Return the sum of weights of samples whose label is that of their side of a threshold."""
    return batch.get(_sides, threshold)[3]


def recalibrated(batch: TaskBatch, coefficient: float) -> Tensor:
    """Return predictions as they would be had the model seen all negatives, not a share of them.

    He et al. 2014, https://doi.org/10.1145/2648584.2648589, section 6.3.

    Args:
        batch: the batch.
        coefficient: the share of the negatives that the model was trained on.
    """
    predictions = batch.predictions
    return predictions / (predictions + (1.0 - predictions) / coefficient)


def num_examples(batch: TaskBatch) -> Tensor:
    """Return how many samples have a weight."""
    return (batch.weights != 0).sum(-1, dtype=torch.float64)
