"""Numbers that a model puts out itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchrec.metrics.metric_computation import MetricComputationReport, RecMetricComputation
from torchrec.metrics.metrics_namespace import MetricName, MetricNamespace, MetricPrefix
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.required import required_input
from torchrec.metrics.terms import ratio

_OUTPUTS = ("latest_imp", "total_latest_imp")
_BATCHES = "num_batches"


class OutputMetricComputation(RecMetricComputation):
    """The means of two outputs over the last batch. See `RecMetricComputation`.

    Args:
        *args: see `RecMetricComputation`.
        **kwargs: see `RecMetricComputation`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in (*_OUTPUTS, _BATCHES):
            zeros = torch.zeros(self._n_tasks, dtype=torch.float64)
            self._add_state(name, zeros, add_window_state=False)

    @property
    def required_inputs(self) -> set[str]:
        """The outputs."""
        return set(_OUTPUTS)

    def update(
        self,
        *,
        predictions: Tensor | None,
        labels: Tensor,
        weights: Tensor | None,
        required_inputs: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take the outputs of a batch, see `RecMetricComputation.update`.

        Args:
            predictions: of no effect.
            labels: of no effect.
            weights: of no effect.
            required_inputs: has ``latest_imp`` and ``total_latest_imp``, of any shape; without samples they are of
                no effect.
            **kwargs: of no effect.

        Raises:
            ValueError: if an output is not there.
        """
        outputs = [required_input(self, name, required_inputs) for name in _OUTPUTS]
        if not all(x.numel() for x in outputs):
            return
        for name, output in zip(_OUTPUTS, outputs, strict=True):
            state: Tensor = getattr(self, name)
            state.copy_(output.double().mean().expand_as(state))
        batches: Tensor = getattr(self, _BATCHES)
        batches.fill_(1.0)

    def _compute(self) -> list[MetricComputationReport]:
        return [
            MetricComputationReport(
                MetricName.OUTPUT,
                MetricPrefix.DEFAULT,
                ratio(getattr(self, name), getattr(self, _BATCHES)),
                f"_{name}",
            )
            for name in _OUTPUTS
        ]


class OutputMetric(RecMetric):
    """The means of the outputs ``latest_imp`` and ``total_latest_imp`` over the last batch of each rank.

    A batch without samples is of no effect. All tasks have the same. See `RecMetric`.
    """

    _namespace = MetricNamespace.OUTPUT
    _computation_class = OutputMetricComputation
