"""What is chosen of each session, for metrics of sessions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from torchrec.metrics.metrics_config import RecTaskInfo, SessionMetricDef
from torchrec.metrics.ordering import group_numbers, rank
from torchrec.metrics.rec_metric import RecMetricException
from torchrec.metrics.required import per_sample, required_input, sample_weights


class Session(NamedTuple):
    """What a session is.

    Attributes:
        name: which of ``required_inputs`` has the session of each sample.
        top: how many samples of it are chosen.
        rank_labels: whether a sample is a positive where its label is among as many of the highest.
    """

    name: str
    top: int
    rank_labels: bool


def session_definition(
    metric: str, task_config: RecTaskInfo | list[RecTaskInfo]
) -> SessionMetricDef:
    """Return what a task says of its sessions.

    Raises:
        RecMetricException: if tasks are fused, or the task says nothing.
    """
    if isinstance(task_config, list):
        raise RecMetricException(
            f"`compute_mode` of {metric} session-level metrics should be unfused. Received fused tasks "
            f"{[task.name for task in task_config]}."
        )
    if task_config.session_metric_def is None:
        raise RecMetricException(
            f"`session_metric_def` of task '{task_config.name}' should be a SessionMetricDef. Received None."
        )
    return task_config.session_metric_def


def session_of(definition: SessionMetricDef) -> Session:
    """Return what a session is.

    Raises:
        RecMetricException: if the definition does not say how many samples are chosen.
    """
    top = definition.top_threshold
    if top is None or top < 1:
        raise RecMetricException(
            f"`top_threshold` of sessions '{definition.session_var_name}' should be at least 1. Received "
            f"{top}."
        )
    return Session(definition.session_var_name, top, definition.run_ranking_of_labels)


def session_choices(
    metric: object,
    session: Session,
    predictions: Tensor | None,
    labels: Tensor,
    weights: Tensor | None,
    required_inputs: Mapping[str, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return which samples are chosen (0 or 1), which are positives, and their weights, ``(T, B)`` each.

    A NaN among predictions or labels makes the weight NaN, and with it whatever is summed.

    Raises:
        ValueError: if predictions or sessions are missing, or sessions are not one for each sample.
    """
    if predictions is None:
        raise ValueError(
            f"`predictions` of {type(metric).__name__} should be a tensor. Received None."
        )
    keys = required_input(metric, session.name, required_inputs)
    group = group_numbers(per_sample(metric, session.name, keys, labels)).flatten()

    def among_first(scores: Tensor) -> Tensor:
        ranks = rank(scores.flatten(), group).tied_ranks()
        return (ranks < session.top).double().view(labels.shape)

    positives = among_first(labels) if session.rank_labels else labels.double()
    return among_first(predictions), positives, sample_weights(weights, labels, predictions)
