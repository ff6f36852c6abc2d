"""What a model predicts for one task, for the rows that count for it: its metrics, and how sure they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from torchrec.datasets.transform import TargetKind
from torchrec.experiment.tasks import KINDS, TaskKind, TaskSection
from torchrec.metrics import Estimate, GroupedMetrics, Interval, Report, combine_reports

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class TaskPredictions:
    """What a model predicts for a task, for N rows that count: those with a weight, where its condition holds.

    Attributes:
        name: of the task; empty where there is one only.
        section: what it is.
        rows: which of the table, ascending, ``(N,)``.
        labels: ``(N,)``.
        scores: what its metrics are given: logits of clicks and numbers ``(N,)``, probabilities of classes
            ``(N, classes)``.
        weights: ``(N,)``; None: 1 each.
        groups: ids by column, ``(N,)``, where groups are whole.
        group_metrics: what is measured within them.
    """

    name: str
    section: TaskSection
    rows: Integers
    labels: Floats
    scores: Floats
    weights: Floats | None = None
    groups: Mapping[str, Integers] | None = None
    group_metrics: Sequence[str] = ()

    @property
    def kind(self) -> TargetKind:
        """What its labels are."""
        return self.section.kind

    @property
    def declared(self) -> TaskKind:
        """What goes with its kind."""
        return KINDS[self.kind]

    @property
    def prefix(self) -> str:
        """What stands before the names of its metrics."""
        return f"{self.name}." if self.name else ""

    @property
    def of(self) -> str:
        """How titles end that are of it."""
        return f" of {self.name}" if self.name else ""

    @property
    def weight(self) -> Floats:
        """How much each row counts, ``(N,)``."""
        return np.ones(len(self.rows)) if self.weights is None else self.weights

    def mean(self, values: Floats) -> float:
        """Return the mean of one value a row, by their weights; NaN without rows."""
        return float(np.average(values, weights=self.weights)) if len(values) else float("nan")

    @cached_property
    def report(self) -> Report:
        """The metrics, as training and ``torchrec evaluate`` measure them."""
        metrics = self.declared.new_metrics()
        metrics.update(*self._columns)
        return combine_reports(metrics.compute(), self._grouped.compute())

    @cached_property
    def _columns(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        scores, labels = (torch.from_numpy(x).float() for x in (self.scores, self.labels))
        weights = None if self.weights is None else torch.from_numpy(self.weights).float()
        return scores, labels, weights

    @cached_property
    def _grouped(self) -> GroupedMetrics:
        metrics = GroupedMetrics(self.group_metrics)
        groups = {column: torch.from_numpy(ids) for column, ids in (self.groups or {}).items()}
        metrics.update(*self._columns, groups=groups)
        return metrics

    def estimate(self, metric: str) -> Estimate:
        """Return a metric with how it varies with the rows, or with the groups."""
        estimators = self.declared.estimators
        if metric in estimators:
            return estimators[metric](self.scores, self.labels, self.weights)
        return self._grouped.estimates()[metric]

    def measured(self, metric: str) -> Estimate:
        """Return an estimate whose value is that of `report`, to the last digit."""
        return replace(self.estimate(metric), value=self.report[metric])

    def intervals(self) -> dict[str, Interval]:
        """Return the metrics with intervals of 95 %."""
        return {name: self.interval(name) for name in self.report}

    def interval(self, metric: str) -> Interval:
        """Return a metric with its interval of 95 %."""
        return replace(self.estimate(metric).interval(), value=self.report[metric])

    def at(self, rows: Integers) -> TaskPredictions:
        """Return those of some rows of the table, as far as they count.

        Args:
            rows: their places.
        """
        return self._chosen(np.flatnonzero(np.isin(self.rows, rows)))

    def _chosen(self, chosen: Integers) -> TaskPredictions:
        return replace(
            self,
            rows=self.rows[chosen],
            labels=self.labels[chosen],
            scores=self.scores[chosen],
            weights=None if self.weights is None else self.weights[chosen],
            groups=None,
            group_metrics=(),
        )
