"""The share of samples whose class is among the first that are predicted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrec.metrics.metric_computation import MetricComputationReport, RecMetricComputation
from torchrec.metrics.metrics_namespace import MetricName, MetricNamespace
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.required import sample_weights


class MulticlassRecallMetricComputation(RecMetricComputation):
    """Sums of the weights of samples whose class is among the first k. See `RecMetricComputation`.

    Args:
        *args: see `RecMetricComputation`.
        number_of_classes: C.
        **kwargs: see `RecMetricComputation`.
    """

    def __init__(self, *args: Any, number_of_classes: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._classes = number_of_classes
        for name, shape in (
            ("tp_at_k", (self._n_tasks, number_of_classes)),
            ("total_weights", (self._n_tasks,)),
        ):
            zeros = torch.zeros(shape, dtype=torch.float64)
            self._add_state(name, zeros, add_window_state=True, persistent=True)

    def update(
        self,
        *,
        predictions: Tensor | None,
        labels: Tensor,
        weights: Tensor | None,
        **kwargs: Any,
    ) -> None:
        """Add a batch to the sums, see `RecMetricComputation.update`.

        Args:
            predictions: a score of each class, ``(T, B, C)``; of equal ones the first class leads.
            labels: the class, ``(T, B)``.
            weights: ``(T, B)``; None: 1 each.
            **kwargs: of no effect.

        Raises:
            ValueError: if there is not a score for each class.
        """
        size = labels.shape[-1]
        if predictions is None or predictions.shape != (*labels.shape, self._classes):
            shape = None if predictions is None else tuple(predictions.shape)
            raise ValueError(
                f"`predictions` should be {(*labels.shape, self._classes)}, a score for each of "
                f"{self._classes} classes (`number_of_classes`). Received {shape}."
            )
        weight = sample_weights(weights, labels, predictions.sum(-1))
        classes = torch.arange(self._classes, device=labels.device)
        label = labels.unsqueeze(-1)
        of_label = torch.where(classes == label, predictions, 0.0).sum(-1, keepdim=True)
        ahead = (predictions > of_label) | ((predictions == of_label) & (classes < label))
        hits = ahead.sum(-1, keepdim=True) <= classes
        # A label that is no class is never hit.
        hits = hits & (classes == label).any(-1, keepdim=True)
        added = {
            "tp_at_k": torch.linalg.vecdot(weight.unsqueeze(-1), hits.double(), dim=1),
            "total_weights": weight.sum(-1),
        }
        self._add_to_states(added, size)

    def _compute(self) -> list[MetricComputationReport]:
        return [
            MetricComputationReport(
                MetricName.MULTICLASS_RECALL, prefix, hits / weights.unsqueeze(-1)
            )
            for prefix, (hits, weights) in self._by_prefix("tp_at_k", "total_weights")
        ]


class MulticlassRecallMetric(RecMetric):
    """For each k, the share of samples whose class is among the k predicted first. See `RecMetric`.

    A number is a tensor of as many as there are classes. ``number_of_classes`` says how many.
    """

    _namespace = MetricNamespace.MULTICLASS_RECALL
    _computation_class = MulticlassRecallMetricComputation
