"""Area under the ROC curve of the samples in the window, and its mean over groups of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchrec.metrics.metrics_namespace import MetricName, MetricNameBase, MetricNamespace
from torchrec.metrics.ordering import areas_under_roc, by_task, curve
from torchrec.metrics.packed_area import packed_areas
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sample_metric import SampleMetricComputation, Samples

GROUPING_KEYS = "grouping_keys"


def compute_auc(
    n_tasks: int,
    predictions: list[Tensor],
    labels: list[Tensor],
    weights: list[Tensor],
    apply_bin: bool = False,
) -> Tensor:
    """Return the AUC of each task: the share of pairs of a positive and a negative that are in order.

    A pair with one score counts half. With labels between 0 and 1, a sample is so much of a positive, and
    the rest of it a negative. 0.5 for a task without either class.

    Args:
        n_tasks: T.
        predictions: parts ``(T, N)``.
        labels: parts alike, from 0 to 1.
        weights: parts alike.
        apply_bin: of no effect, for scores are sorted exactly. Default: False.

    Returns:
        ``(T,)``, float32.

    Example:
        >>> compute_auc(
        ...     1,
        ...     [torch.tensor([[0.1, 0.2, 0.2, 0.4]])],
        ...     [torch.tensor([[0.0, 1.0, 0.0, 1.0]])],
        ...     [torch.ones(1, 4)],
        ... )
        tensor([0.8750])
    """
    packed = packed_areas(n_tasks, predictions, labels, weights)
    if packed is not None:
        return packed.float()
    joined = [torch.cat(parts, -1).reshape(n_tasks, -1) for parts in (predictions, labels, weights)]
    return torch.stack([area_under_curve(*rows) for rows in zip(*joined, strict=True)]).float()


def area_under_curve(scores: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the AUC of one task, ``()`` in float64: ``(N,)`` each; NaN if anything is NaN."""
    order = scores.argsort()
    scores = scores[order]
    positives = (weights * labels)[order].double()
    negatives = weights[order].double() - positives
    # Runs of one score: all of one count as tied.
    last = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    last[:-1] = scores[1:] != scores[:-1]
    below = torch.cat((negatives.new_zeros(1), negatives.cumsum(0)[last]))
    up_to = torch.cat((positives.new_zeros(1), positives.cumsum(0)[last]))
    area = (up_to.diff() * (below[1:] + below[:-1])).sum() / 2
    pairs = up_to[-1] * below[-1]
    value = torch.where(pairs == 0, 0.5, area / pairs)
    # A NaN is the last of the scores in order.
    return torch.where(scores[-1:].isnan().any(), torch.nan, value)


def compute_auc_per_group(
    n_tasks: int,
    predictions: list[Tensor],
    labels: list[Tensor],
    weights: list[Tensor],
    grouping_keys: Tensor,
) -> Tensor:
    """Return the mean of the AUC over groups of samples, of each task.

    Args:
        n_tasks: T.
        predictions: parts ``(T, N)``.
        labels: parts alike.
        weights: parts alike.
        grouping_keys: the group of each sample, ``(N,)``.

    Example:
        >>> compute_auc_per_group(
        ...     1,
        ...     [torch.tensor([[0.1, 0.2, 0.3, 0.1]])],
        ...     [torch.tensor([[0.0, 1.0, 0.0, 1.0]])],
        ...     [torch.ones(1, 4)],
        ...     torch.tensor([1, 1, 2, 2]),
        ... )
        tensor([0.5000])
    """
    scores, classes, counts = (torch.cat(x, -1) for x in (predictions, labels, weights))
    return by_task(_areas, n_tasks, scores, classes, counts, grouping_keys, 0.5).float()


def _areas(scores: Tensor, labels: Tensor, weights: Tensor, group: Tensor, groups: int) -> Tensor:
    return areas_under_roc(curve(scores, labels, weights, group, groups))


class AUCMetricComputation(SampleMetricComputation):
    """AUC of tasks over the window.

    Fawcett 2006, https://doi.org/10.1016/j.patrec.2005.10.010.

    Args:
        *args: see `RecMetricComputation`.
        grouped_auc: report the mean over groups as well; ``required_inputs`` has ``grouping_keys`` then.
            Default: False.
        apply_bin: see `compute_auc`.
        fused_update_limit: see `RecMetricComputation`.
        **kwargs: see `RecMetricComputation`.
    """

    def __init__(
        self,
        *args: Any,
        grouped_auc: bool = False,
        apply_bin: bool = False,
        fused_update_limit: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, extra_inputs=(GROUPING_KEYS,) if grouped_auc else (), **kwargs)
        self._grouped_auc = grouped_auc
        self._apply_bin = apply_bin

    def values(self, samples: Samples) -> Mapping[MetricNameBase, Tensor]:
        """Return the numbers of the samples."""
        predictions, labels, weights = map(samples.parts, ("predictions", "labels", "weights"))
        auc = compute_auc(self._n_tasks, predictions, labels, weights, self._apply_bin)
        values: dict[MetricNameBase, Tensor] = {MetricName.AUC: auc}
        if self._grouped_auc:
            values[MetricName.GROUPED_AUC] = compute_auc_per_group(
                self._n_tasks, predictions, labels, weights, samples[GROUPING_KEYS]
            )
        return values


class AUCMetric(RecMetric):
    """Area under the ROC curve, see `AUCMetricComputation`."""

    _namespace = MetricNamespace.AUC
    _computation_class = AUCMetricComputation
