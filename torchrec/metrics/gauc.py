"""Area under the ROC curve of lists of candidates, on average."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrec.metrics.metric_computation import MetricComputationReport, RecMetricComputation
from torchrec.metrics.metrics_namespace import MetricName, MetricNamespace
from torchrec.metrics.ordering import areas_under_roc, curve
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.required import sample_weights
from torchrec.metrics.terms import ratio


def areas_of_lists(
    scores: Tensor, labels: Tensor, weights: Tensor, group: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    """Return the AUC of each list, and which lists count: those with both classes and more than one score.

    Args:
        scores: ``(N,)``.
        labels: from 0 to 1, ``(N,)``.
        weights: ``(N,)``.
        group: the list of each sample, below ``groups``, ``(N,)``.
        groups: how many lists there are.

    Returns:
        ``(groups,)`` each; a list with a NaN counts, and is one.
    """
    samples = curve(scores, labels, weights, group, groups)
    left_out = (samples.positive_sum == 0) | (samples.negative_sum == 0) | (samples.scores < 2)
    return areas_under_roc(samples), ~left_out | samples.unknown


class GAUCMetricComputation(RecMetricComputation):
    """Sums of the AUC of lists, and how many there were. See `RecMetricComputation`.

    A list counts where it has weight of both classes and more than one score. A pair of samples with one
    score counts half. Zhu et al. 2017, https://doi.org/10.1145/3097983.3098134, without weights by list.

    Args:
        *args: see `RecMetricComputation`.
        **kwargs: see `RecMetricComputation`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in ("auc_sum", "num_samples"):
            zeros = torch.zeros(self._n_tasks, dtype=torch.float64)
            self._add_state(name, zeros, add_window_state=True, persistent=True)

    def update(
        self,
        *,
        predictions: Tensor | None,
        labels: Tensor,
        weights: Tensor | None,
        num_candidates: Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the lists of a batch, see `RecMetricComputation.update`.

        Args:
            predictions: ``(T, B)``, list after list.
            labels: ``(T, B)``.
            weights: ``(T, B)``; None: 1 each.
            num_candidates: how many samples each list has; they sum to B.
            **kwargs: of no effect.

        Raises:
            ValueError: if predictions or lists are missing, or lists do not sum to the samples.
        """
        if predictions is None or num_candidates is None:
            missing = "predictions" if predictions is None else "num_candidates"
            raise ValueError(f"`{missing}` of GAUC should be a tensor. Received None.")
        tasks, size = labels.shape
        lists = num_candidates.numel()
        if num_candidates.device.type == "cpu" and int(num_candidates.sum()) != size:
            raise ValueError(
                f"`num_candidates` should sum to the samples of the batch ({size}). Received "
                f"{int(num_candidates.sum())}."
            )
        numbers = torch.arange(lists, device=labels.device)
        group = numbers.repeat_interleave(num_candidates.flatten(), output_size=size)
        rows = torch.arange(tasks, device=labels.device).unsqueeze(-1) * lists
        areas, counts = areas_of_lists(
            predictions.double().flatten(),
            labels.double().flatten(),
            sample_weights(weights, labels, predictions).flatten(),
            (group + rows).flatten(),
            tasks * lists,
        )
        added = {
            "auc_sum": torch.where(counts, areas, 0.0).view(tasks, lists).sum(-1),
            "num_samples": counts.double().view(tasks, lists).sum(-1),
        }
        self._add_to_states(added, size)

    def _compute(self) -> list[MetricComputationReport]:
        reports = []
        for prefix, (areas, lists) in self._by_prefix("auc_sum", "num_samples"):
            reports.append(MetricComputationReport(MetricName.GAUC, prefix, ratio(areas, lists)))
            reports.append(MetricComputationReport(MetricName.GAUC_NUM_SAMPLES, prefix, lists))
        return reports


class GAUCMetric(RecMetric):
    """The mean AUC of lists of candidates. See `GAUCMetricComputation` and `RecMetric`.

    Its update takes ``num_candidates``, the lengths of the lists.
    """

    _namespace = MetricNamespace.GAUC
    _computation_class = GAUCMetricComputation
