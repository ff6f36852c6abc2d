"""The share of pairs that predictions and labels put in the same order, of any labels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from torchrec.metrics.metrics_namespace import MetricName, MetricNameBase, MetricNamespace
from torchrec.metrics.ordering import changes_of, ordered_pairs, sums
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sum_metric import SumMetricComputation
from torchrec.metrics.task_batch import TaskBatch, Term
from torchrec.metrics.terms import ratio

ERROR_SUM = "error_sum"
WEIGHTED_NUM_PAIRS = "weighted_num_pairs"


def pair_sum(batch: TaskBatch) -> Tensor:
    """Return the weight of all pairs of samples: the product of their weights."""
    weights = batch.weights
    return (weights.sum(-1).square() - weights.square().sum(-1)) / 2


def same_order_sum(batch: TaskBatch) -> Tensor:
    """Return the weight of pairs in the same order by prediction and label; tied in both is the same."""
    tasks, size = batch.labels.shape
    rows = torch.arange(tasks, device=batch.labels.device).repeat_interleave(size)
    unknown = batch.labels.isnan() | batch.predictions.isnan() | batch.weights.isnan()
    # A NaN would spread to other tasks by cumulative sums.
    known = torch.where(unknown, 0.0, batch.weights)
    labels, scores, weights = (x.flatten() for x in (batch.labels, batch.predictions, known))
    same = ordered_pairs(labels, scores, weights, rows, tasks)
    same = same + _tied_in_both(labels, scores, weights, rows, tasks)
    return torch.where(unknown.any(-1), torch.nan, same)


def _tied_in_both(
    labels: Tensor, scores: Tensor, weights: Tensor, rows: Tensor, tasks: int
) -> Tensor:
    order = scores.argsort()
    for column in (labels, rows):
        order = order[column[order].argsort(stable=True)]
    labels, scores, weights, rows = labels[order], scores[order], weights[order], rows[order]
    run = changes_of(rows, labels, scores).cumsum(0) - 1
    weight = sums(weights, run, len(run)).square() - sums(weights.square(), run, len(run))
    row = torch.zeros_like(rows).scatter_(0, run, rows)
    return sums(weight, row, tasks) / 2


class XAUCMetricComputation(SumMetricComputation):
    """Sums of the weights of pairs, and of those in the same order. See `RecMetricComputation`.

    Pairs are of samples of one batch of one rank.
    """

    def sums(self) -> Mapping[str, Term]:
        """See `SumMetricComputation.sums`."""
        return {ERROR_SUM: (same_order_sum,), WEIGHTED_NUM_PAIRS: (pair_sum,)}

    def values(self, sums: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """See `SumMetricComputation.values`."""
        return {MetricName.XAUC: ratio(sums[ERROR_SUM], sums[WEIGHTED_NUM_PAIRS])}


class XAUCMetric(RecMetric):
    """The share of pairs that predictions and labels put in the same order. See `RecMetric`.

    The pairs are those within each batch. For watch times and the like: Zhan et al. 2022,
    https://doi.org/10.1145/3534678.3539092.
    """

    _namespace = MetricNamespace.XAUC
    _computation_class = XAUCMetricComputation
