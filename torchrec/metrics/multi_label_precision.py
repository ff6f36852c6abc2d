"""Precision of each of several labels that a sample can have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrec.metrics.metric_computation import MetricComputationReport, RecMetricComputation
from torchrec.metrics.metrics_namespace import MetricName, MetricNamespace
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.required import sample_weights
from torchrec.metrics.terms import ratio


class MultiLabelPrecisionMetricComputation(RecMetricComputation):
    """Sums of the weights of samples that are predicted to have a label. See `RecMetricComputation`.

    Labels and predictions are whole numbers, of which each binary digit is a label.

    Args:
        *args: see `RecMetricComputation`.
        num_labels: how many labels there are, the lowest digits. Default: 1.
        label_names: what their numbers are called. Default: label_0, label_1 and so on.
        **kwargs: see `RecMetricComputation`.

    Raises:
        ValueError: if there is not a name for each label.
    """

    def __init__(
        self, *args: Any, num_labels: int = 1, label_names: list[str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._labels = label_names or [f"label_{i}" for i in range(num_labels)]
        if len(self._labels) != num_labels:
            raise ValueError(
                f"`label_names` should be {num_labels}, as `num_labels` says. Received "
                f"{len(self._labels)}."
            )
        for label in self._labels:
            for name in (f"true_pos_sum_{label}", f"false_pos_sum_{label}"):
                zeros = torch.zeros(self._n_tasks, dtype=torch.float64)
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
            predictions: ``(T, B)``, whole numbers of any dtype.
            labels: alike.
            weights: ``(T, B)``; None: 1 each.
            **kwargs: of no effect.

        Raises:
            ValueError: if there are no predictions.
        """
        if predictions is None:
            raise ValueError(
                "`predictions` of multi-label precision should be a tensor. Received None."
            )
        weight = sample_weights(weights, labels, predictions)
        predicted, there = predictions.long(), labels.long()
        added: dict[str, Tensor] = {}
        for digit, name in enumerate(self._labels):
            chosen = weight * (predicted >> digit & 1)
            hits = torch.linalg.vecdot(chosen, (there >> digit & 1).double())
            added[f"true_pos_sum_{name}"] = hits
            added[f"false_pos_sum_{name}"] = chosen.sum(-1) - hits
        self._add_to_states(added, labels.shape[-1])

    def _compute(self) -> list[MetricComputationReport]:
        return [
            MetricComputationReport(
                MetricName.MULTI_LABEL_PRECISION, prefix, ratio(hits, hits + wrong), label
            )
            for label in self._labels
            for prefix, (hits, wrong) in self._by_prefix(
                f"true_pos_sum_{label}", f"false_pos_sum_{label}"
            )
        ]


class MultiLabelPrecisionMetric(RecMetric):
    """Of samples predicted to have a label, the share that has it. See `RecMetric`.

    See `MultiLabelPrecisionMetricComputation` for ``num_labels`` and ``label_names``.
    """

    _namespace = MetricNamespace.MULTI_LABEL_PRECISION
    _computation_class = MultiLabelPrecisionMetricComputation
