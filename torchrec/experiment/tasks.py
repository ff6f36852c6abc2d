"""The section `tasks` of an experiment file: several things that are learned of a sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from torchrec.datasets.transform import Target, TargetKind
from torchrec.experiment.section import Section
from torchrec.metrics import BinaryMetrics, Metrics, MulticlassMetrics, RegressionMetrics
from torchrec.metrics.estimators import BINARY, MULTICLASS, REGRESSION, Estimator
from torchrec.metrics.names import parse_metric

LossName = Literal[
    "binary_cross_entropy",
    "focal",
    "pairwise",
    "squared_error",
    "huber",
    "cross_entropy",
    "continuation",
]


@dataclass(frozen=True)
class TaskKind:
    """What goes with a kind of task.

    Attributes:
        losses: by name; that of tasks that say nothing first.
        metrics: what early stopping can go by; the first is what a model is judged by.
        new_metrics: makes what is measured of a stream.
        estimators: of the same metrics, of samples that are at hand.
    """

    losses: tuple[LossName, ...]
    metrics: tuple[str, ...]
    new_metrics: Callable[[], Metrics]
    estimators: Mapping[str, Estimator]


_CLICK: tuple[LossName, ...] = ("binary_cross_entropy", "focal", "pairwise")
_NUMBER: tuple[LossName, ...] = ("squared_error", "huber", "pairwise")
_OF_CLASSES = ("accuracy", "logloss")
KINDS: Mapping[TargetKind, TaskKind] = {
    "click": TaskKind(_CLICK, ("auc", "ne", "logloss"), BinaryMetrics, BINARY),
    "regression": TaskKind(_NUMBER, ("mse", "mae"), RegressionMetrics, REGRESSION),
    "multiclass": TaskKind(("cross_entropy",), _OF_CLASSES, MulticlassMetrics, MULTICLASS),
    "ordinal": TaskKind(("continuation",), _OF_CLASSES, MulticlassMetrics, MULTICLASS),
}
"""Of each kind of task what it is learned and measured by."""


def metric_of_groups(text: str) -> str:
    """Return a metric within groups as it is written at its shortest.

    Args:
        text: as a person wrote it.

    Raises:
        ValueError: if it is none.

    Example:
        >>> metric_of_groups("ndcg @ 10( user )")
        'ndcg@10(user)'
    """
    spec = parse_metric(text)
    if spec.group is None:
        raise ValueError(f"`{spec}` is measured in any case, and should be left out.")
    return str(spec)


def with_shared_column(metrics: Sequence[str]) -> list[str]:
    """Return metrics with the column that some name, if it is one, for those that name none.

    Example:
        >>> with_shared_column(["gauc(user)", "hit@10"])
        ['gauc(user)', 'hit@10(user)']
    """
    columns = {one.partition("(")[2].rpartition(")")[0].strip() for one in metrics if "(" in one}
    if len(columns) != 1:
        return list(metrics)
    (column,) = columns
    return [f"{one}({column})" if _needs_column(one) else one for one in metrics]


def _needs_column(text: str) -> bool:
    if "(" in text:
        return False
    try:
        parse_metric(text)
    except ValueError:
        return True
    return False


def _complete(metrics: object) -> object:
    """Complete a list; what is none stays for the check to refuse."""
    is_list = isinstance(metrics, list) and all(isinstance(one, str) for one in metrics)
    return with_shared_column(metrics) if is_list else metrics  # type: ignore[arg-type]


GroupMetrics = Annotated[
    list[Annotated[str, AfterValidator(metric_of_groups)]], BeforeValidator(_complete)
]
"""Metrics within groups, as `[gauc(user), hit@10]`."""


class TaskSection(Section):
    """One of several things that are learned of a sample; the section's name is that of the task."""

    label: str = Field(
        min_length=1, description="the column to predict, or an expression such as `rating > 3`"
    )
    kind: TargetKind = Field(
        default="click",
        description="what the label holds: 0 and 1, a number, or one of `classes`, numbered from 0, "
        "which are in order if `ordinal`",
    )
    classes: PositiveInt | None = Field(
        default=None, description="how many classes there are, of multiclass and ordinal"
    )
    loss: LossName | None = Field(
        default=None,
        description="of click `binary_cross_entropy`, `focal` or `pairwise`, of regression "
        "`squared_error`, `huber` or `pairwise`; none: the first of these, and what suits classes",
    )
    group: str | None = Field(
        default=None, description="the column within whose values `pairwise` compares"
    )
    weight: PositiveFloat = Field(
        default=1.0, description="of the loss of the task in the sum of all"
    )
    given: str | None = Field(
        default=None,
        description="another task of kind click: samples count only where its label is 1",
    )
    metrics: GroupMetrics | None = Field(
        default=None,
        description="what is measured within groups of this task, in place of `metrics` of the experiment; "
        "none: those",
    )
    class_weights: list[NonNegativeFloat] | None = Field(
        default=None,
        description="how much samples count in the loss, by their label 0, 1...; none: all alike",
    )

    @property
    def target(self) -> Target:
        """What is to be read and predicted."""
        return Target(self.label, self.kind, self.classes)

    @property
    def loss_name(self) -> LossName:
        """The loss that is taken."""
        return self.loss or KINDS[self.kind].losses[0]

    @model_validator(mode="after")
    def _check(self) -> TaskSection:
        classes = self.target.classes or 2  # which checks that there are some
        if self.loss_name not in KINDS[self.kind].losses:
            raise ValueError(
                f"`loss` of a task of kind {self.kind} should be one of "
                f"{', '.join(KINDS[self.kind].losses)}. Received {self.loss}."
            )
        if (self.loss == "pairwise") != (self.group is not None):
            raise ValueError(
                "`group` should be given for `loss: pairwise`, and for no other. Received "
                f"{self.group} for {self.loss_name}."
            )
        weights = self.class_weights
        if weights is not None and (self.kind == "regression" or len(weights) != classes):
            raise ValueError(
                "`class_weights` should be one for each class, of tasks with classes. Received "
                f"{len(weights)} for kind {self.kind}."
            )
        return self


def metrics_of(
    tasks: Mapping[str, TaskSection] | None, within_groups: Sequence[str] = ()
) -> list[str]:
    """Return what early stopping can go by: metrics, of several tasks with their names.

    Args:
        tasks: by name; None: one label.
        within_groups: metrics that are measured besides of each task without its own. Default: none.
    """
    if tasks is None:
        return [*KINDS["click"].metrics, *within_groups]
    of_tasks = {
        name: [
            *KINDS[task.kind].metrics,
            *(within_groups if task.metrics is None else task.metrics),
        ]
        for name, task in tasks.items()
    }
    if len(of_tasks) == 1:
        return next(iter(of_tasks.values()))
    return [f"{name}.{metric}" for name, found in of_tasks.items() for metric in found]


def check_within_groups(metrics: Sequence[str], tasks: Mapping[str, TaskSection] | None) -> None:
    """Refuse metrics within groups that are there twice, or of tasks whose scores are several a sample.

    Args:
        metrics: as they are written.
        tasks: by name; None: one label.

    Raises:
        ValueError: if so.
    """
    _check_differ("metrics", metrics)
    for name, task in (tasks or {}).items():
        key, own = f"tasks.{name}.metrics", metrics if task.metrics is None else task.metrics
        _check_differ(key, own)
        if own and task.target.classes is not None:
            raise ValueError(
                f"`{key if task.metrics else 'metrics'}` should be left out with tasks of classes, as they "
                f"order samples by one score. Received {own[0]} with task '{name}' of kind {task.kind}: "
                f"`{key}` of [] measures none of it."
            )


def _check_differ(key: str, metrics: Sequence[str]) -> None:
    if len(set(metrics)) < len(metrics):
        raise ValueError(f"`{key}` should differ. Received {', '.join(metrics)}.")
