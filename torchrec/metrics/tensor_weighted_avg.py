"""The mean of a tensor that a model puts out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchrec.metrics.metric_computation import MetricComputationReport, RecMetricComputation
from torchrec.metrics.metrics_config import RecTaskInfo
from torchrec.metrics.metrics_namespace import MetricName, MetricNamespace
from torchrec.metrics.rec_metric import RecMetric, RecMetricException
from torchrec.metrics.required import required_input

_SUMS = ("weighted_sum", "weighted_num_samples")


class TensorWeightedAvgMetricComputation(RecMetricComputation):
    """Sums of the tensors of tasks. See `RecMetricComputation`.

    Args:
        *args: see `RecMetricComputation`.
        tasks: what they are; each names its tensor, and says whether weights count.
        description: what the names of the numbers end with. Default: nothing.
        **kwargs: see `RecMetricComputation`.

    Raises:
        RecMetricException: if a task names no tensor.
    """

    def __init__(
        self,
        *args: Any,
        tasks: list[RecTaskInfo],
        description: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._names: list[str] = []
        for task in tasks:
            if task.tensor_name is None:
                raise RecMetricException(
                    f"`tensor_name` of task '{task.name}' should be the name of an output. Received None."
                )
            self._names.append(task.tensor_name)
        self._weighted = [task.weighted for task in tasks]
        self._description = description
        for name in _SUMS:
            zeros = torch.zeros(self._n_tasks, dtype=torch.float64)
            self._add_state(name, zeros, add_window_state=True, persistent=True)

    @property
    def required_inputs(self) -> set[str]:
        """The tensors."""
        return set(self._names)

    def update(
        self,
        *,
        predictions: Tensor | None,
        labels: Tensor,
        weights: Tensor | None,
        required_inputs: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add a batch to the sums, see `RecMetricComputation.update`.

        Args:
            predictions: of no effect.
            labels: ``(T, B)``; their values are of no effect.
            weights: ``(T, B)``; None: 1 each.
            required_inputs: has the tensors, ``(B,)`` each.
            **kwargs: of no effect.

        Raises:
            ValueError: if a tensor is not there, or not as many as labels.
        """
        tensors = [required_input(self, name, required_inputs).flatten() for name in self._names]
        for name, tensor in zip(self._names, tensors, strict=True):
            if len(tensor) != labels.shape[-1]:
                raise ValueError(
                    f"`{name}` should have one for each of {labels.shape[-1]} samples. Received "
                    f"{len(tensor)}."
                )
        counts = torch.ones_like(labels, dtype=torch.float64)
        if weights is not None:
            weighted = torch.tensor(self._weighted, device=labels.device).unsqueeze(-1)
            counts = torch.where(weighted, weights.double(), counts)
        sums = (torch.linalg.vecdot(counts, torch.stack(tensors).double()), counts.sum(-1))
        self._add_to_states(dict(zip(_SUMS, sums, strict=True)), labels.shape[-1])

    def _compute(self) -> list[MetricComputationReport]:
        return [
            MetricComputationReport(
                MetricName.WEIGHTED_AVG, prefix, total / samples, self._description
            )
            for prefix, (total, samples) in self._by_prefix(*_SUMS)
        ]


class TensorWeightedAvgMetric(RecMetric):
    """The mean of the tensor that a task names, weighted where it says so. See `RecMetric`.

    NaN where no sample has a weight.
    """

    _namespace = MetricNamespace.WEIGHTED_AVG
    _computation_class = TensorWeightedAvgMetricComputation

    def _get_task_kwargs(self, task_config: RecTaskInfo | list[RecTaskInfo]) -> dict[str, Any]:
        return {"tasks": task_config if isinstance(task_config, list) else [task_config]}
