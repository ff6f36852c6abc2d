"""Area under the curve of precision by recall, of the samples in the window and of groups of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchrec.metrics.metric_computation import MetricComputationReport
from torchrec.metrics.metrics_namespace import (
    MetricName,
    MetricNameBase,
    MetricNamespace,
    MetricPrefix,
)
from torchrec.metrics.ordering import average_precisions, by_task, curve
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sample_metric import SampleMetricComputation

GROUPING_KEYS = "grouping_keys"
LIFETIME_WEIGHTED_AUPRC = "lifetime_weighted_auprc"
LIFETIME_WEIGHT = "lifetime_weight"


def compute_auprc(n_tasks: int, predictions: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the mean, over positives, of the precision at their score; 0 where there are none.

    Samples with one score are found together.

    Args:
        n_tasks: T.
        predictions: ``(T, N)``.
        labels: from 0 to 1, ``(T, N)``.
        weights: ``(T, N)``.

    Returns:
        ``(T,)``, float64.

    Example:
        >>> compute_auprc(
        ...     1,
        ...     torch.tensor([[0.9, 0.1, 0.8, 0.85]]),
        ...     torch.tensor([[1.0, 0.0, 1.0, 0.0]]),
        ...     torch.ones(1, 4),
        ... )
        tensor([0.8333], dtype=torch.float64)
    """
    columns = [x.reshape(n_tasks, -1) for x in (predictions, labels, weights)]
    return torch.stack([average_precision(*rows) for rows in zip(*columns, strict=True)])


def average_precision(scores: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the AUPRC of one task, ``()`` in float64: ``(N,)`` each; NaN if anything is NaN."""
    order = scores.argsort(descending=True)
    scores = scores[order]
    # Runs of one score: all of one are found together.
    last = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    last[:-1] = scores[1:] != scores[:-1]
    hits = (weights * labels)[order].double().cumsum(0)[last]
    found = weights[order].double().cumsum(0)[last]
    here = torch.cat((hits[:1], hits.diff()))
    at_score = torch.where(here == 0, 0.0, here * hits / found)
    value = torch.where(hits[-1:] == 0, 0.0, at_score.sum() / hits[-1:]).sum()
    # A NaN is the first of the scores in descending order.
    return torch.where(scores[:1].isnan().any(), torch.nan, value)


def compute_auprc_per_group(
    n_tasks: int, predictions: Tensor, labels: Tensor, weights: Tensor, grouping_keys: Tensor
) -> Tensor:
    """Return the plain mean over groups of what `compute_auprc` returns.

    Args:
        n_tasks: T.
        predictions: ``(T, N)``.
        labels: from 0 to 1, ``(T, N)``.
        weights: ``(T, N)``.
        grouping_keys: the group of each sample, ``(N,)``.

    Returns:
        ``(T,)``, float64.

    Example:
        >>> compute_auprc_per_group(
        ...     1,
        ...     torch.tensor([[0.9, 0.95, 0.8, 0.75]]),
        ...     torch.tensor([[1.0, 0.0, 1.0, 0.0]]),
        ...     torch.ones(1, 4),
        ...     torch.tensor([0, 0, 1, 1]),
        ... )
        tensor([0.7500], dtype=torch.float64)
    """

    def areas(
        scores: Tensor, labels: Tensor, weights: Tensor, group: Tensor, groups: int
    ) -> Tensor:
        return average_precisions(curve(scores, labels, weights, group, groups, descending=True))

    return by_task(areas, n_tasks, predictions, labels, weights, grouping_keys, 0.0)


class AUPRCMetricComputation(SampleMetricComputation):
    """AUPRC of tasks over the window. Davis and Goadrich 2006, https://doi.org/10.1145/1143844.1143874.

    Over all samples (lifetime) it is the mean of the AUPRC of stretches of whole batches, as many as fit in
    a window, one after another, by their weights; before the first is complete, that of the window. As in the
    API it is not saved.

    Args:
        *args: see `RecMetricComputation`.
        grouped_auprc: report the mean over groups as well; ``required_inputs`` has ``grouping_keys``
            then. Default: False.
        fused_update_limit: see `RecMetricComputation`.
        **kwargs: see `RecMetricComputation`.
    """

    def __init__(
        self,
        *args: Any,
        grouped_auprc: bool = False,
        fused_update_limit: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, extra_inputs=(GROUPING_KEYS,) if grouped_auprc else (), **kwargs)
        self._grouped_auprc = grouped_auprc
        # How many of the last samples are in no stretch yet.
        self._since = 0
        for name in (LIFETIME_WEIGHTED_AUPRC, LIFETIME_WEIGHT):
            self._add_state(name, torch.zeros(self._n_tasks, dtype=torch.float64), False)

    def update(
        self, *, predictions: Tensor | None, labels: Tensor, weights: Tensor | None, **kwargs: Any
    ) -> None:
        """Take the samples of a batch in, see `SampleMetricComputation.update`.

        Args:
            predictions: ``(T, B)``.
            labels: ``(T, B)``.
            weights: ``(T, B)``; None: 1 each.
            **kwargs: see `SampleMetricComputation.update`.
        """
        size = labels.shape[-1]
        if self._since + size > self._window_size:
            self._end_stretch()
        super().update(predictions=predictions, labels=labels, weights=weights, **kwargs)
        self._since = min(self._since + size, self._window_size)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._since = 0

    def _end_stretch(self) -> None:
        if not self._since:
            return
        columns = [
            torch.cat(getattr(self, name), -1)[..., -self._since :]
            for name in ("predictions", "labels", "weights")
        ]
        weight = columns[2].double().sum(-1)
        weighted: Tensor = getattr(self, LIFETIME_WEIGHTED_AUPRC)
        weighted.add_(weight * compute_auprc(self._n_tasks, *columns))
        total: Tensor = getattr(self, LIFETIME_WEIGHT)
        total.add_(weight)
        self._since = 0

    def _compute(self) -> list[MetricComputationReport]:
        reports = super()._compute()
        weight: Tensor = getattr(self, LIFETIME_WEIGHT)
        mean = getattr(self, LIFETIME_WEIGHTED_AUPRC) / weight
        window = next(report.value for report in reports if report.name is MetricName.AUPRC)
        value = torch.where(weight == 0, window, mean)
        return [*reports, MetricComputationReport(MetricName.AUPRC, MetricPrefix.LIFETIME, value)]

    def values(self, samples: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """Return the numbers of the samples."""
        columns = samples["predictions"], samples["labels"], samples["weights"]
        values: dict[MetricNameBase, Tensor] = {
            MetricName.AUPRC: compute_auprc(self._n_tasks, *columns)
        }
        if self._grouped_auprc:
            values[MetricName.GROUPED_AUPRC] = compute_auprc_per_group(
                self._n_tasks, *columns, samples[GROUPING_KEYS]
            )
        return values


class AUPRCMetric(RecMetric):
    """Area under the curve of precision by recall, see `AUPRCMetricComputation` and `RecMetric`."""

    _namespace = MetricNamespace.AUPRC
    _computation_class = AUPRCMetricComputation
