"""Samples a second of each task."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from torchrec.metrics.metric_computation import MetricComputationReport, RecMetricComputation
from torchrec.metrics.metrics_namespace import MetricName, MetricNamespace, MetricPrefix
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.terms import ratio

NUM_EXAMPLES = "num_examples"
WARMUP_EXAMPLES = "warmup_examples"
TIME_LAPSE = "time_lapse"
WARMUP_STEPS = 100


class TowerQPSMetricComputation(RecMetricComputation):
    """How many samples there were, and the time from one update to the next. See `RecMetricComputation`.

    Args:
        *args: see `RecMetricComputation`.
        warmup_steps: how many updates to leave out of the time, 1 at least: the first starts the clock.
            Default: 100.
        **kwargs: see `RecMetricComputation`.
    """

    def __init__(self, *args: Any, warmup_steps: int = WARMUP_STEPS, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._warmup_steps = max(warmup_steps, 1)
        self._steps = 0
        self._last = 0.0
        none = torch.zeros(self._n_tasks, dtype=torch.int64)
        self._add_state(NUM_EXAMPLES, none, add_window_state=True, persistent=True)
        self._add_state(WARMUP_EXAMPLES, none, add_window_state=False, persistent=True)
        # Ranks work at the same time: the slowest counts.
        self._add_state(
            TIME_LAPSE, none.double(), add_window_state=True, dist_reduce_fx="max", persistent=True
        )

    def update(
        self,
        *,
        predictions: Tensor | None,
        labels: Tensor,
        weights: Tensor | None,
        **kwargs: Any,
    ) -> None:
        """Count a batch, see `RecMetricComputation.update`.

        Args:
            predictions: of no effect.
            labels: ``(T, B)``; their values are of no effect.
            weights: of no effect.
            **kwargs: of no effect.
        """
        size = labels.shape[-1]
        last, self._last = self._last, time.monotonic()
        self._steps += 1
        if self._steps <= self._warmup_steps:
            warmup: Tensor = getattr(self, WARMUP_EXAMPLES)
            warmup.add_(size)
            return
        count: Tensor = getattr(self, NUM_EXAMPLES)
        lapse: Tensor = getattr(self, TIME_LAPSE)
        added = {
            NUM_EXAMPLES: torch.full_like(count, size),
            TIME_LAPSE: torch.full_like(lapse, self._last - last),
        }
        self._add_to_states(added, size)

    def reset(self) -> None:
        """Forget everything; the clock starts anew."""
        super().reset()
        self._steps = 0

    def _compute(self) -> list[MetricComputationReport]:
        reports = [
            MetricComputationReport(MetricName.TOWER_QPS, prefix, ratio(count.double(), lapse))
            for prefix, (count, lapse) in self._by_prefix(NUM_EXAMPLES, TIME_LAPSE)
        ]
        total = getattr(self, NUM_EXAMPLES) + getattr(self, WARMUP_EXAMPLES)
        name, prefix = MetricName.TOTAL_EXAMPLES, MetricPrefix.DEFAULT
        return [*reports, MetricComputationReport(name, prefix, total)]


class TowerQPSMetric(RecMetric):
    """Samples a second on all ranks, and how many there were in all. See `RecMetric`.

    0 until the updates of ``warmup_steps`` have been.
    """

    _namespace = MetricNamespace.TOWER_QPS
    _computation_class = TowerQPSMetricComputation
