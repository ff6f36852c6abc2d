"""Normalised entropy in which every sample counts once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchrec.metrics.metrics_namespace import MetricName, MetricNameBase, MetricNamespace
from torchrec.metrics.ne import ETA, compute_cross_entropy, compute_ne
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sum_metric import SumMetricComputation
from torchrec.metrics.task_batch import TaskBatch, Term


def unweighted_cross_entropy_sum(batch: TaskBatch, eta: float) -> Tensor:
    """Return the sum of cross-entropies without weights, in bits."""
    ones = torch.ones_like(batch.labels)
    return compute_cross_entropy(batch.labels, batch.predictions, ones, eta).sum(-1)


def num_samples(batch: TaskBatch) -> Tensor:
    """Return how many samples there are."""
    return batch.labels.new_full((len(batch.labels),), batch.size)


def unweighted_label_sum(batch: TaskBatch) -> Tensor:
    """Return the sum of labels."""
    return batch.labels.sum(-1)


def unweighted_negative_sum(batch: TaskBatch) -> Tensor:
    """Return the sum of 1 minus label."""
    return (1.0 - batch.labels).sum(-1)


class UnweightedNEMetricComputation(SumMetricComputation):
    """Sums of cross-entropy and of either class without weights. See `RecMetricComputation`.

    Args:
        *args: see `RecMetricComputation`.
        allow_missing_label_with_zero_weight: see `torchrec.metrics.ne.compute_ne`. Default: False.
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
            "cross_entropy_sum": (unweighted_cross_entropy_sum, ETA),
            "weighted_num_samples": (num_samples,),
            "pos_labels": (unweighted_label_sum,),
            "neg_labels": (unweighted_negative_sum,),
        }

    def values(self, sums: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """See `SumMetricComputation.values`."""
        value = compute_ne(
            sums["cross_entropy_sum"],
            sums["weighted_num_samples"],
            sums["pos_labels"],
            sums["neg_labels"],
            ETA,
            self._allow_missing_label_with_zero_weight,
        )
        return {MetricName.UNWEIGHTED_NE: value}


class UnweightedNEMetric(RecMetric):
    """Normalised entropy in which weights are of no effect. See `RecMetric`."""

    _namespace = MetricNamespace.UNWEIGHTED_NE
    _computation_class = UnweightedNEMetricComputation
