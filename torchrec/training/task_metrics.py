"""What an evaluation measures of a task."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from torchrec.metrics import GroupedMetrics, Report, combine_reports
from torchrec.training.task import Prediction, Task


class TaskMetrics:
    """The metrics of a task, and those within the groups of its samples.

    Args:
        task: the task.

    Example:
        >>> import torch
        >>> task = Task(group_metrics=("mrr(user)",))
        >>> metrics = TaskMetrics(task)
        >>> outputs, targets = torch.tensor([2.0, -1.0, 0.0]), torch.tensor([0.0, 1.0, 1.0])
        >>> metrics.update(
        ...     Prediction(task, outputs, targets, None), {"user": torch.tensor([7, 7, 8])}
        ... )
        >>> report = metrics.compute()
        >>> report.auc, report["mrr(user)"]
        (0.0, 0.75)
    """

    def __init__(self, task: Task) -> None:
        self._metrics = task.metrics()
        self._grouped = GroupedMetrics(task.group_metrics)

    def update(self, prediction: Prediction, groups: Mapping[str, Tensor]) -> None:
        """Take in what a model said of a batch.

        Args:
            prediction: for the task.
            groups: of the batch, by name.

        Raises:
            ValueError: if groups that are asked for are missing.
        """
        prediction.measure(self._metrics)
        self._grouped.update(
            prediction.task.scores_of(prediction.outputs.detach()),
            prediction.targets,
            prediction.weights,
            groups=groups,
        )

    def merge(self, other: TaskMetrics) -> None:
        """Take in what another of the same task has seen; it is left as it is."""
        self._metrics.merge(other._metrics)
        self._grouped.merge(other._grouped)

    def compute(self, curves: bool = False) -> Report:
        """Report on everything, with what can be drawn, and intervals, if ``curves``."""
        return combine_reports(*(one.compute(curves) for one in (self._metrics, self._grouped)))
