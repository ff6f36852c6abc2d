"""The tasks that an experiment describes."""

from __future__ import annotations

from collections.abc import Sequence

from torchrec.datasets.transform import Target
from torchrec.experiment.schema import Experiment
from torchrec.experiment.tasks import KINDS, TaskSection
from torchrec.training.task import Score, Task


def tasks_of(experiment: Experiment) -> list[Task]:
    """Return what is learned: one label, or each of the tasks.

    Args:
        experiment: says which.

    Example:
        >>> data = {"train": "/log.csv"}
        >>> tasks = {"click": {"label": "click"}, "seconds": {"label": "s", "kind": "regression"}}
        >>> experiment = Experiment.model_validate({"data": data, "tasks": tasks})
        >>> [(task.target, task.loss) for task in tasks_of(experiment)]
        [('click', 'binary_cross_entropy'), ('seconds', 'squared_error')]
    """
    if experiment.tasks is None:
        metrics = tuple(experiment.metrics)
        return [Task(negatives=experiment.data.negatives, group_metrics=metrics)]
    return [_task(name, section, experiment.metrics) for name, section in experiment.tasks.items()]


def _task(name: str, section: TaskSection, metrics: Sequence[str]) -> Task:
    target, weights = section.target, section.class_weights
    return Task(
        name,
        section.loss_name,
        _score(target),
        KINDS[section.kind].new_metrics,
        width=target.width,
        weight=section.weight,
        given=section.given,
        group=section.group,
        class_weights=None if weights is None else tuple(weights),
        group_metrics=tuple(metrics if section.metrics is None else section.metrics),
    )


def _score(target: Target) -> str | Score:
    """Return what the metrics are given: logits of clicks, numbers, or probabilities of classes."""
    if target.classes is None:
        return "identity"
    # Of two classes in order there is one number a sample.
    return lambda outputs: target.scores(outputs.reshape(len(outputs), -1))
