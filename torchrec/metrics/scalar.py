"""A number of each batch, handed over as the label: a loss, say, or a learning rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrec.metrics.metric_computation import MetricComputationReport, RecMetricComputation
from torchrec.metrics.metrics_namespace import MetricName, MetricNamespace, MetricPrefix
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.terms import ratio


class ScalarMetricComputation(RecMetricComputation):
    """The last number, and the sum of those in the window. See `RecMetricComputation`.

    Args:
        *args: see `RecMetricComputation`.
        **kwargs: see `RecMetricComputation`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        zeros = torch.zeros(self._n_tasks, dtype=torch.float64)
        for name in ("labels", "count"):
            self._add_state(name, zeros, add_window_state=True)

    def update(
        self,
        *,
        predictions: Tensor | None,
        labels: Tensor,
        weights: Tensor | None,
        **kwargs: Any,
    ) -> None:
        """Take the number of a batch in, see `RecMetricComputation.update`.

        Args:
            predictions: of no effect.
            labels: the number, ``(T, B)``; of several the mean.
            weights: of no effect.
            **kwargs: of no effect.
        """
        if not labels.shape[-1]:
            return
        last: Tensor = getattr(self, "labels")  # noqa: B009
        count: Tensor = getattr(self, "count")  # noqa: B009
        last.copy_(labels.double().mean(-1))
        count.fill_(1.0)
        # The window is as many batches, not samples: a batch has one number.
        self._aggregate_window_state("labels", last, 1)
        self._aggregate_window_state("count", count, 1)

    def _compute(self) -> list[MetricComputationReport]:
        lifetime, window = (values for _, values in self._by_prefix("labels", "count"))
        return [
            MetricComputationReport(MetricName.SCALAR, MetricPrefix.LIFETIME, ratio(*lifetime)),
            MetricComputationReport(MetricName.SCALAR, MetricPrefix.WINDOW, window[0] / window[1]),
        ]


class ScalarMetric(RecMetric):
    """The mean of the last ``window_size`` batches, and (as lifetime) the last one. See `RecMetric`.

    On several ranks, the mean over ranks. Neither predictions nor weights count.
    """

    _namespace = MetricNamespace.SCALAR
    _computation_class = ScalarMetricComputation
