"""Area under the ROC curve of the samples in the window, and its mean over groups of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchrec.metrics.metric_computation import MetricComputationReport, State
from torchrec.metrics.metrics_namespace import (
    MetricName,
    MetricNameBase,
    MetricNamespace,
    MetricPrefix,
)
from torchrec.metrics.ordering import areas_under_roc, by_task, curve
from torchrec.metrics.past_scores import PastScores, areas, compressed, packed_counts
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sample_metric import SampleMetricComputation, Samples
from torchrec.ops.metrics import roc_areas

GROUPING_KEYS = "grouping_keys"
_PAST = "past_scores"
_WINDOW = ("predictions", "labels", "weights")


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
    joined = [torch.cat(parts, -1).reshape(n_tasks, -1) for parts in (predictions, labels, weights)]
    return roc_areas(*joined).float()  # type: ignore[no-any-return]


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
    """AUC of tasks over the window, and over all samples if asked for.

    Fawcett 2006, https://doi.org/10.1016/j.patrec.2005.10.010.

    Args:
        *args: see `RecMetricComputation`.
        grouped_auc: report the mean over groups as well; ``required_inputs`` has ``grouping_keys`` then.
            Default: False.
        lifetime_auc: report the AUC of all samples as well, in constant memory: exact as long as they fit
            in the window, beyond it as exact as `torchrec.metrics.past_scores.PastScores`. Default: False.
        apply_bin: see `compute_auc`.
        fused_update_limit: see `RecMetricComputation`.
        **kwargs: see `RecMetricComputation`.
    """

    def __init__(
        self,
        *args: Any,
        grouped_auc: bool = False,
        lifetime_auc: bool = False,
        apply_bin: bool = False,
        fused_update_limit: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, extra_inputs=(GROUPING_KEYS,) if grouped_auc else (), **kwargs)
        self._grouped_auc = grouped_auc
        self._apply_bin = apply_bin
        # Of this rank since it began; and what a checkpoint brought, which is of all ranks and counts once.
        self._past = PastScores(self._n_tasks) if lifetime_auc else None
        self._restored: list[Tensor] = []
        if lifetime_auc:
            self._add_state(_PAST, [], False, dist_reduce_fx="cat")

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

    def _compute(self) -> list[MetricComputationReport]:
        reports = super()._compute()
        if self._past is not None:
            value = areas(self._all_counts(), self._n_tasks).to(reports[0].value)
            reports.append(MetricComputationReport(MetricName.AUC, MetricPrefix.LIFETIME, value))
        return reports

    def _passed(self, predictions: Tensor, labels: Tensor, weights: Tensor) -> None:
        if self._past is not None:
            self._past.add(predictions, labels, weights)

    def _all_counts(self) -> list[Tensor]:
        """Return all samples, packed: those that have left the window and those in it."""
        window = [torch.cat(self._list(name), -1) for name in _WINDOW if self._list(name)]
        return [*self._past_counts(), *([packed_counts(*window)] if window else [])]

    def _past_counts(self, sent: bool = False) -> list[Tensor]:
        if self._past is None:
            return []
        if self.is_synced:
            return self._list(_PAST)
        restored = self._restored if not sent or self._my_rank == 0 else []
        return [*restored, self._past.packed()]

    def _packed_states(self) -> dict[str, State]:
        states = super()._packed_states()
        return states if self._past is None else {**states, _PAST: self._past_counts()}

    def sent_states(self) -> dict[str, Tensor]:
        """Return what this rank adds to the states of all."""
        sent = super().sent_states()
        if self._past is not None:
            sent[_PAST] = torch.cat(self._past_counts(sent=True), -1).to(self._nothing.device)
        return sent

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._restored = []
        if self._past is not None:
            self._past.clear()

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._past is not None:
            destination[prefix + _PAST] = compressed(self._all_counts(), self._n_tasks)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        *args: Any,
    ) -> None:
        found, key = dict(state_dict), prefix + _PAST
        counts = None if self._past is None else found.pop(key, None)
        super()._load_from_state_dict(found, prefix, local_metadata, strict, missing_keys, *args)
        if self._past is None:
            return
        if isinstance(counts, Tensor):
            self.reset()
            self._restored = [counts.clone()]
        elif strict:
            missing_keys.append(key)


class AUCMetric(RecMetric):
    """Area under the ROC curve, see `AUCMetricComputation`."""

    _namespace = MetricNamespace.AUC
    _computation_class = AUCMetricComputation
