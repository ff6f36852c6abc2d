"""Area under the curve of precision by recall, of the samples in the window and of groups of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchrec.metrics.metrics_namespace import MetricName, MetricNameBase, MetricNamespace
from torchrec.metrics.ordering import average_precisions, by_task, curve
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sample_metric import SampleMetricComputation

GROUPING_KEYS = "grouping_keys"


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
    one_group = torch.zeros(1, labels.shape[-1], device=labels.device)
    return compute_auprc_per_group(n_tasks, predictions, labels, weights, one_group)


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
