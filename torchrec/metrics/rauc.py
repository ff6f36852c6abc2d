"""The share of pairs that are not in the wrong order, of any labels, in the window and in groups of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchrec.metrics.metrics_namespace import MetricName, MetricNameBase, MetricNamespace
from torchrec.metrics.ordering import by_task, ordered_pairs, sums
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sample_metric import SampleMetricComputation

GROUPING_KEYS = "grouping_keys"


def compute_rauc(
    n_tasks: int, predictions: list[Tensor], labels: list[Tensor], weights: list[Tensor]
) -> Tensor:
    """Return the share of pairs of samples that predictions do not put in the wrong order.

    A pair that is tied by prediction or label is not. 0.5 where there are no pairs.

    Args:
        n_tasks: T.
        predictions: parts ``(T, N)``.
        labels: parts alike, any numbers.
        weights: parts alike, of no effect.

    Returns:
        ``(T,)``, float64.

    Example:
        >>> compute_rauc(
        ...     1,
        ...     [torch.tensor([[0.9, 0.1, 0.8, 0.85]])],
        ...     [torch.tensor([[1.0, 2.0, 3.0, 4.0]])],
        ...     [torch.ones(1, 4)],
        ... )
        tensor([0.5000], dtype=torch.float64)
    """
    one_group = torch.zeros(1, sum(part.shape[-1] for part in labels), device=labels[0].device)
    return compute_rauc_per_group(n_tasks, predictions, labels, weights, one_group)


def compute_rauc_per_group(
    n_tasks: int,
    predictions: list[Tensor],
    labels: list[Tensor],
    weights: list[Tensor],
    grouping_keys: Tensor,
) -> Tensor:
    """Return the plain mean over groups of what `compute_rauc` returns.

    Args:
        n_tasks: T.
        predictions: parts ``(T, N)``.
        labels: parts alike, any numbers.
        weights: parts alike, of no effect.
        grouping_keys: the group of each sample, ``(N,)``.

    Returns:
        ``(T,)``, float64.
    """
    scores, targets = (torch.cat(parts, -1).double() for parts in (predictions, labels))
    ones = torch.ones_like(targets)
    return by_task(_shares, n_tasks, scores, targets, ones, grouping_keys, 0.5)


def _shares(scores: Tensor, labels: Tensor, weights: Tensor, group: Tensor, groups: int) -> Tensor:
    wrong = ordered_pairs(labels, -scores, weights, group, groups)
    size = sums(weights, group, groups)
    pairs = size * (size - 1.0) / 2.0
    unknown = sums((scores.isnan() | labels.isnan()).double(), group, groups) > 0
    return torch.where(unknown, torch.nan, torch.where(pairs == 0, 0.5, 1.0 - wrong / pairs))


class RAUCMetricComputation(SampleMetricComputation):
    """RAUC of tasks over the window.

    Args:
        *args: see `RecMetricComputation`.
        grouped_rauc: report the mean over groups as well; ``required_inputs`` has ``grouping_keys``
            then. Default: False.
        fused_update_limit: see `RecMetricComputation`.
        **kwargs: see `RecMetricComputation`.
    """

    def __init__(
        self,
        *args: Any,
        grouped_rauc: bool = False,
        fused_update_limit: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, extra_inputs=(GROUPING_KEYS,) if grouped_rauc else (), **kwargs)
        self._grouped_rauc = grouped_rauc

    def values(self, samples: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """Return the numbers of the samples."""
        parts = [samples["predictions"]], [samples["labels"]], [samples["weights"]]
        values: dict[MetricNameBase, Tensor] = {
            MetricName.RAUC: compute_rauc(self._n_tasks, *parts)
        }
        if self._grouped_rauc:
            values[MetricName.GROUPED_RAUC] = compute_rauc_per_group(
                self._n_tasks, *parts, samples[GROUPING_KEYS]
            )
        return values


class RAUCMetric(RecMetric):
    """The share of pairs in the window that are not in the wrong order, of any labels. See `RecMetric`."""

    _namespace = MetricNamespace.RAUC
    _computation_class = RAUCMetricComputation
