"""Normalised discounted cumulative gain of sessions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchrec.metrics.metric_computation import MetricComputationReport, RecMetricComputation
from torchrec.metrics.metrics_config import RecTaskInfo
from torchrec.metrics.metrics_namespace import MetricName, MetricNamespace
from torchrec.metrics.ordering import group_numbers, rank, sums
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.required import per_sample, required_input, sample_weights
from torchrec.metrics.terms import ratio

SESSION_KEY = "session_id"
SUM_NDCG = "sum_ndcg"
NUM_SESSIONS = "num_sessions"


class NDCGComputation(RecMetricComputation):
    r"""Sums of the NDCG of sessions, and how many there were. See `RecMetricComputation`.

    The gain of a session is :math:`\sum_i g_i / \log_2(i + 2)` over its samples in descending order of
    prediction, i from 0; samples with one prediction stay in the order of the input. Its NDCG is that
    over the gain in descending order of label, 0 where that is 0. It counts as much as the largest weight
    in the session, and the sum is divided by the number of sessions, as the API has it: weights that are
    not 1 on average scale the number. A session lies within one batch. Järvelin and Kekäläinen 2002,
    https://doi.org/10.1145/582415.582418.

    Args:
        *args: see `RecMetricComputation`.
        exponential_gain: :math:`g = 2^y - 1` instead of the label y. Default: False.
        session_key: which of ``required_inputs`` has the session of each sample. Default: session_id.
        k: how many samples of a session count; -1: all. Default: -1.
        report_ndcg_as_decreasing_curve: report 1 minus the NDCG, of which less is better. Default: True.
        remove_single_length_sessions: leave sessions of one sample out. Default: False.
        scale_by_weights_tensor: multiply labels and predictions by the weights, instead of sessions.
            Default: False.
        is_negative_task_mask: which tasks count the negatives: 1 minus label in the order of 1 minus
            prediction. Default: none.
        **kwargs: see `RecMetricComputation`.

    Raises:
        ValueError: if ``k`` is neither -1 nor positive, or the mask is not one for each task.
    """

    _negative: Tensor

    def __init__(
        self,
        *args: Any,
        exponential_gain: bool = False,
        session_key: str = SESSION_KEY,
        k: int = -1,
        report_ndcg_as_decreasing_curve: bool = True,
        remove_single_length_sessions: bool = False,
        scale_by_weights_tensor: bool = False,
        is_negative_task_mask: list[bool] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if k != -1 and k < 1:
            raise ValueError(f"`k` should be -1 or at least 1. Received {k}.")
        mask = is_negative_task_mask or [False] * self._n_tasks
        if len(mask) != self._n_tasks:
            raise ValueError(
                f"`is_negative_task_mask` should have one for each of {self._n_tasks} tasks. Received "
                f"{len(mask)}."
            )
        self._exponential_gain = exponential_gain
        self._session_key = session_key
        self._k = k
        self._as_loss = report_ndcg_as_decreasing_curve
        self._without_single = remove_single_length_sessions
        self._scale_by_weights = scale_by_weights_tensor
        self.register_buffer("_negative", torch.tensor(mask).unsqueeze(-1), persistent=False)
        for name in (SUM_NDCG, NUM_SESSIONS):
            zeros = torch.zeros(self._n_tasks, dtype=torch.float64)
            self._add_state(name, zeros, add_window_state=True, persistent=True)

    @property
    def required_inputs(self) -> set[str]:
        """The key of the sessions."""
        return {self._session_key}

    def update(
        self,
        *,
        predictions: Tensor | None,
        labels: Tensor,
        weights: Tensor | None,
        required_inputs: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the sessions of a batch, see `RecMetricComputation.update`.

        Args:
            predictions: ``(T, B)``.
            labels: ``(T, B)``.
            weights: ``(T, B)``; None: 1 each.
            required_inputs: has the sessions, ``(B,)`` or ``(T, B)``.
            **kwargs: of no effect.

        Raises:
            ValueError: if predictions or sessions are missing, or sessions are not one for each sample.
        """
        if predictions is None:
            raise ValueError("`predictions` of NDCGComputation should be a tensor. Received None.")
        keys = required_input(self, self._session_key, required_inputs)
        group = group_numbers(per_sample(self, self._session_key, keys, labels))
        scores, gains = predictions.double(), labels.double()
        scores = torch.where(self._negative, 1.0 - scores, scores)
        gains = torch.where(self._negative, 1.0 - gains, gains)
        weight = sample_weights(weights, labels, predictions)
        if self._scale_by_weights:
            scores, gains, weight = scores * weight, gains * weight, torch.ones_like(weight)
        columns = [x.flatten() for x in (scores, gains, weight, group)]
        ndcg, there = self._of_sessions(*columns)
        shape = labels.shape
        added = {SUM_NDCG: ndcg.view(shape).sum(-1), NUM_SESSIONS: there.view(shape).sum(-1)}
        self._add_to_states(added, labels.shape[-1])

    def _of_sessions(
        self, scores: Tensor, labels: Tensor, weights: Tensor, group: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what each session adds to the sums, by its number, ``(T * B,)``."""
        size = len(group)
        reached = self._gain(labels, rank(scores, group).ranks(), group)
        ideal = self._gain(labels, rank(labels, group).ranks(), group)
        value = ratio(reached, ideal)
        if self._as_loss:
            value = 1.0 - value
        least = torch.full_like(value, -torch.inf)
        weight = least.scatter_reduce(0, group, weights, "amax")
        count = sums(torch.ones_like(weights), group, size)
        there = (count > (1 if self._without_single else 0)).double()
        return torch.where(there > 0, weight * value, 0.0), there

    def _gain(self, labels: Tensor, ranks: Tensor, group: Tensor) -> Tensor:
        gains = labels.exp2() - 1.0 if self._exponential_gain else labels
        gains = gains / (ranks.double() + 2.0).log2()
        if self._k > 0:
            gains = torch.where(ranks < self._k, gains, 0.0)
        return sums(gains, group, len(group))

    def _compute(self) -> list[MetricComputationReport]:
        return [
            MetricComputationReport(MetricName.NDCG, prefix, total / sessions)
            for prefix, (total, sessions) in self._by_prefix(SUM_NDCG, NUM_SESSIONS)
        ]


class NDCGMetric(RecMetric):
    """Normalised discounted cumulative gain. See `NDCGComputation` and `RecMetric`.

    Tasks with ``is_negative_task`` count the negatives.
    """

    _namespace = MetricNamespace.NDCG
    _computation_class = NDCGComputation

    def _get_task_kwargs(self, task_config: RecTaskInfo | list[RecTaskInfo]) -> dict[str, Any]:
        tasks = task_config if isinstance(task_config, list) else [task_config]
        return {"is_negative_task_mask": [task.is_negative_task for task in tasks]}
