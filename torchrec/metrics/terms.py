"""What several metrics sum over the samples of a batch, and the formula they share.

Each function is a term of `torchrec.metrics.task_batch`: metrics that ask for the same one share the work.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchrec.metrics.task_batch import TaskBatch, dot, label_sum, prediction_sum


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """Return above over below, 0 where below is 0.

    Example:
        >>> ratio(torch.tensor([1.0, 1.0]), torch.tensor([4.0, 0.0]))
        tensor([0.2500, 0.0000])
    """
    return torch.where(below == 0, torch.zeros_like(above), above / below)


def unknown(batch: TaskBatch) -> Tensor:
    """Return NaN for each task in which a prediction or a label is NaN, 0 for the others."""
    return (batch.get(prediction_sum) + batch.get(label_sum)) * 0.0


def weighted_positives(batch: TaskBatch) -> Tensor:
    """Return weight times label, of each sample."""
    return batch.weights * batch.labels


def weighted_negatives(batch: TaskBatch) -> Tensor:
    """Return weight times 1 minus label, of each sample."""
    return batch.weights - batch.get(weighted_positives)


def chosen(batch: TaskBatch, threshold: float) -> Tensor:
    """Return 1 for each sample whose prediction reaches a threshold, 0 for the others and for NaN."""
    predictions, dtype = batch.predictions, batch.raw_predictions.dtype
    # As floating predictions have the threshold; written as float64 at once, not as a bool in between.
    rounded = torch.tensor(threshold, dtype=dtype if dtype.is_floating_point else None).item()
    return torch.ge(predictions, rounded, out=torch.empty_like(predictions))


def true_positive_sum(batch: TaskBatch, threshold: float) -> Tensor:
    """Return the sum of weight times label of samples that reach a threshold."""
    found = dot(batch.get(chosen, threshold), batch.get(weighted_positives))
    return found + batch.get(unknown)


def false_positive_sum(batch: TaskBatch, threshold: float) -> Tensor:
    """Return the sum of weight times 1 minus label of samples that reach a threshold."""
    found = dot(batch.get(chosen, threshold), batch.get(weighted_negatives))
    return found + batch.get(unknown)


def false_negative_sum(batch: TaskBatch, threshold: float) -> Tensor:
    """Return the sum of weight times label of samples that do not reach a threshold."""
    left = 1.0 - batch.get(chosen, threshold)
    return dot(left, batch.get(weighted_positives)) + batch.get(unknown)


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
