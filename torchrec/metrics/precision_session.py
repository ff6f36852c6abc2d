"""Precision of what is predicted for a session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchrec.metrics.metric_computation import MetricComputationReport, RecMetricComputation
from torchrec.metrics.metrics_config import RecTaskInfo, SessionMetricDef
from torchrec.metrics.metrics_namespace import MetricName, MetricNamespace
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sessions import session_choices, session_definition, session_of
from torchrec.metrics.terms import ratio

NUM_TRUE_POS = "num_true_pos"
NUM_FALSE_POS = "num_false_pos"


class PrecisionSessionMetricComputation(RecMetricComputation):
    """Sums of weights of positives that are chosen, and of negatives that are. See `RecMetricComputation`.

    Chosen are the samples of a session that fewer than ``top_threshold`` others have a higher prediction
    than: of samples with one prediction all or none. A session lies within one batch.

    Args:
        *args: see `RecMetricComputation`.
        session_metric_def: what a session is, how many samples of it are chosen, and whether labels
            are whether a sample is among as many with the highest labels.
        **kwargs: see `RecMetricComputation`.

    Raises:
        RecMetricException: if it does not say how many are chosen.
    """

    def __init__(self, *args: Any, session_metric_def: SessionMetricDef, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._session = session_of(session_metric_def)
        for name in (NUM_TRUE_POS, NUM_FALSE_POS):
            zeros = torch.zeros(self._n_tasks, dtype=torch.float64)
            self._add_state(name, zeros, add_window_state=True, persistent=True)

    @property
    def required_inputs(self) -> set[str]:
        """The sessions."""
        return {self._session.name}

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
            predictions: ``(T, B)``.
            labels: ``(T, B)``.
            weights: ``(T, B)``; None: 1 each.
            required_inputs: has the session of each sample, ``(B,)``.
            **kwargs: of no effect.

        Raises:
            ValueError: if predictions or sessions are missing, or sessions are not one for each sample.
        """
        chosen, positives, weight = session_choices(
            self, self._session, predictions, labels, weights, required_inputs
        )
        added = {
            NUM_TRUE_POS: torch.linalg.vecdot(chosen, weight * positives),
            NUM_FALSE_POS: torch.linalg.vecdot(chosen, weight * (1.0 - positives)),
        }
        self._add_to_states(added, labels.shape[-1])

    def _compute(self) -> list[MetricComputationReport]:
        return [
            MetricComputationReport(
                MetricName.PRECISION_SESSION_LEVEL, prefix, ratio(hits, hits + wrong)
            )
            for prefix, (hits, wrong) in self._by_prefix(NUM_TRUE_POS, NUM_FALSE_POS)
        ]


class PrecisionSessionMetric(RecMetric):
    """The share of positives among what is chosen of sessions; 0 where nothing has a weight.

    Each task says by ``session_metric_def`` what a session is; tasks cannot be fused. See the computation.
    """

    _namespace = MetricNamespace.PRECISION_SESSION_LEVEL
    _computation_class = PrecisionSessionMetricComputation

    def _get_task_kwargs(self, task_config: RecTaskInfo | list[RecTaskInfo]) -> dict[str, Any]:
        return {"session_metric_def": session_definition("precision", task_config)}
