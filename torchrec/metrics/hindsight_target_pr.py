"""The threshold that would have had a precision, and the recall there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrec.metrics.metric_computation import MetricComputationReport, RecMetricComputation
from torchrec.metrics.metrics_namespace import MetricName, MetricNamespace
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.required import sample_weights
from torchrec.metrics.terms import ratio

THRESHOLD_GRANULARITY = 1000

_SUMS = ("true_pos_sum", "false_pos_sum", "false_neg_sum")


class HindsightTargetPRMetricComputation(RecMetricComputation):
    """Sums of hits and mistakes at each of 1000 thresholds. See `RecMetricComputation`.

    Args:
        *args: see `RecMetricComputation`.
        target_precision: which precision is asked for. Default: 0.5.
        **kwargs: see `RecMetricComputation`.
    """

    def __init__(self, *args: Any, target_precision: float = 0.5, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._target_precision = target_precision
        for name in _SUMS:
            zeros = torch.zeros(self._n_tasks, THRESHOLD_GRANULARITY, dtype=torch.float64)
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
            predictions: ``(T, B)``, from 0 to 1.
            labels: ``(T, B)``.
            weights: ``(T, B)``; None: 1 each.
            **kwargs: of no effect.

        Raises:
            ValueError: if there are no predictions.
        """
        if predictions is None:
            raise ValueError(
                "`predictions` of hindsight target PR should be a tensor. Received None."
            )
        weight = sample_weights(weights, labels, predictions)
        positives = weight * labels
        # A NaN anywhere makes it NaN at all thresholds, also at those that no sample reaches.
        spoilt = 0.0 * positives.sum(-1, keepdim=True)
        thresholds = torch.linspace(
            0, 1, THRESHOLD_GRANULARITY, dtype=torch.float64, device=labels.device
        )
        # How many of the thresholds a prediction reaches: it is a hit at those, a miss at the others.
        reached = torch.searchsorted(thresholds, predictions.double(), right=True)
        hits = self._at_thresholds(reached, positives) + spoilt
        wrong = self._at_thresholds(reached, weight - positives) + spoilt
        missed = positives.sum(-1, keepdim=True) - hits
        self._add_to_states(dict(zip(_SUMS, (hits, wrong, missed), strict=True)), labels.shape[-1])

    def _at_thresholds(self, reached: Tensor, values: Tensor) -> Tensor:
        """Return, of each threshold, the sum of the values of samples that reach it."""
        counts = values.new_zeros(len(values), THRESHOLD_GRANULARITY + 1)
        counts.scatter_add_(-1, reached, values)
        return counts.flip(-1).cumsum(-1).flip(-1)[:, 1:]

    def _compute(self) -> list[MetricComputationReport]:
        reports = []
        for prefix, (hits, wrong, missed) in self._by_prefix(*_SUMS):
            precision, recall = ratio(hits, hits + wrong), ratio(hits, hits + missed)
            good = (precision >= self._target_precision).long()
            place = torch.where(good.any(-1), good.argmax(-1), THRESHOLD_GRANULARITY - 1)
            at = place.unsqueeze(-1)
            place = torch.where(precision.isnan().any(-1), torch.nan, place.double())
            for name, value in (
                (MetricName.HINDSIGHT_TARGET_PR, place),
                (MetricName.HINDSIGHT_TARGET_PRECISION, precision.gather(-1, at).squeeze(-1)),
                (MetricName.HINDSIGHT_TARGET_RECALL, recall.gather(-1, at).squeeze(-1)),
            ):
                reports.append(MetricComputationReport(name, prefix, value))
        return reports


class HindsightTargetPRMetric(RecMetric):
    """The lowest threshold that has a precision, and precision and recall there. See `RecMetric`.

    Thresholds are the 1000 numbers from 0 to 1 at equal distances; the first number is that of the
    threshold, from 0. Where none has the precision it is the last.
    """

    _namespace = MetricNamespace.HINDSIGHT_TARGET_PR
    _computation_class = HindsightTargetPRMetricComputation
