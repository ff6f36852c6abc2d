"""What a kind of task has to say for the page, and what several kinds draw alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchrec.metrics import Interval
from torchrec.metrics.interval import metric_text, normal_interval
from torchrec.report.card import Card
from torchrec.report.charts import Axis, Chart, Estimate, Mark, Series, interval_chart, line_chart
from torchrec.report.scale import UNKNOWN, extent, short
from torchrec.report.task_predictions import TaskPredictions

Floats = NDArray[np.float64]
Slices = Sequence[tuple[str, TaskPredictions]]
"""Names of slices, and what is predicted for their rows."""

MEANS = (
    "Dashed: what is predicted is what is observed. Groups of rows by prediction, of equal weight."
)
_GROUPS = 20  # of ascending prediction
_BARS = 40
_TAIL = 0.005  # of the residuals to either side, which would leave no room for the others
_SHOWN = 8  # slices of a chart: those furthest from what they should be


@dataclass(frozen=True)
class Curve:
    """A line that models have beside one another.

    Attributes:
        title: of the chart.
        about: how to read it.
        points: where the line of a model goes; none where nothing tells.
        x: the horizontal axis.
        y: the vertical axis.
    """

    title: str
    about: str
    points: Callable[[TaskPredictions], tuple[list[float], list[float]]]
    x: Axis
    y: Axis

    def chart(self, task: str, lines: Sequence[tuple[str, str, TaskPredictions]]) -> Chart | None:
        """Draw it.

        Args:
            task: how the title ends.
            lines: name and class in the style sheet of each, and what it predicts.
        """
        drawn = [Series(name, kind, *self.points(one)) for name, kind, one in lines]
        return line_chart(
            f"{self.title}{task}", self.about, drawn, x=self.x, y=self.y, diagonal=True
        )


@dataclass(frozen=True)
class Display:
    """How a kind of task is shown.

    Attributes:
        draw: what is predicted, as cards.
        head: of the table of slices, after rows and share.
        cells: of a slice, under the head.
        slices: draws where slices are furthest off; None where nothing can be drawn.
        curve: by which models are told from one another.
    """

    draw: Callable[[TaskPredictions], list[Card]]
    head: Sequence[str]
    cells: Callable[[TaskPredictions], list[str]]
    slices: Callable[[TaskPredictions, Slices], Chart | None]
    curve: Curve


def interval_text(interval: Interval) -> str:
    """Write a value with its interval."""
    if not math.isfinite(interval.value):
        return UNKNOWN
    value = metric_text(interval.value)
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return value
    low, high = (metric_text(end, interval.value) for end in (interval.low, interval.high))
    return f"{value} [{low}, {high}]"


def plain_interval(task: TaskPredictions, metric: str) -> Interval:
    """Return a metric with an interval by its standard error alone, of which a page has hundreds."""
    estimate = task.estimate(metric)
    return normal_interval(estimate.value, estimate.variance)


def mean_interval(values: Floats, weights: Floats) -> Interval:
    """Return a weighted mean with its interval."""
    total = float(weights.sum())
    mean = float(weights @ values) / total if total else math.nan
    error = float(((weights * (values - mean)) ** 2).sum()) / total**2 if total else math.nan
    return normal_interval(mean, error)


def groups_of(predicted: Floats, weights: Floats) -> list[NDArray[np.int64]]:
    """Return the rows of each of up to 20 groups of ascending prediction and about equal weight.

    Example:
        >>> [group.tolist() for group in groups_of(np.array([0.3, 0.1, 0.2]), np.ones(3))]
        [[1], [2], [0]]
    """
    order = np.argsort(predicted, kind="stable")
    middle = (np.cumsum(weights[order]) - weights[order] / 2) / weights.sum()
    ends = np.searchsorted((middle * _GROUPS).astype(np.int64), np.arange(1, _GROUPS))
    return [group for group in np.split(order, ends) if len(group)]


def means_by_prediction(
    task: TaskPredictions, predicted: Floats, observed: Floats
) -> tuple[list[float], list[float]]:
    """Return the mean of what was predicted and observed in groups of ascending prediction."""
    weight = task.weight
    groups = groups_of(predicted, weight) if len(predicted) else []
    x, y = (
        [float(np.average(values[rows], weights=weight[rows])) for rows in groups]
        for values in (predicted, observed)
    )
    return x, y


def observed_chart(task: TaskPredictions, predicted: Floats, what: str) -> Chart | None:
    """Draw what was observed where so much was predicted: its mean, and between what four fifths of it lie.

    Args:
        task: whose labels are numbers.
        predicted: ``(N,)``.
        what: is predicted, for the axis.
    """
    x, means = means_by_prediction(task, predicted, task.labels)
    groups = groups_of(predicted, task.weight) if x else []
    low, high = (
        [float(np.quantile(task.labels[rows], share)) for rows in groups] for share in (0.1, 0.9)
    )
    return line_chart(
        f"Predicted and observed{task.of}",
        MEANS,
        [
            Series("observed, mean", "valid", x, means),
            Series("90 % below", "phase-0", x, high),
            Series("10 % below", "phase-0", x, low),
        ],
        x=Axis(what, bounds=extent(x) if x else None),
        y=Axis(),
        diagonal=True,
    )


def residual_chart(task: TaskPredictions, predicted: Floats) -> Chart | None:
    """Draw how predictions are spread about what was observed."""
    residuals, weight = predicted - task.labels, task.weight
    if not len(residuals):
        return None
    low, high = extent(np.quantile(residuals, [_TAIL, 1 - _TAIL]).tolist(), 0.0)
    shares, edges = np.histogram(residuals, _BARS, (low, high), weights=weight)
    shares = shares / weight.sum()
    return line_chart(
        f"Residuals{task.of}",
        f"Share of rows by prediction less observation, whose mean is {short(task.mean(residuals), 3)}; the "
        "outermost hundredth is left out.",
        [Series("rows", "train", ((edges[1:] + edges[:-1]) / 2).tolist(), shares.tolist())],
        x=Axis("predicted \N{MINUS SIGN} observed", bounds=(low, high)),
        y=Axis(
            write=lambda share: f"{short(share * 100, 2)}%",
            bounds=(0.0, float(shares.max()) * 1.08 or 1.0),
        ),
        filled=True,
        marks=[Mark("0", 0.0)],
    )


def bias_chart(
    task: TaskPredictions, slices: Slices, predicted: Callable[[TaskPredictions], Floats]
) -> Chart | None:
    """Draw the slices whose mean prediction is furthest from the mean of what was observed."""
    found = [
        (name, one, mean_interval(predicted(one) - one.labels, one.weight)) for name, one in slices
    ]
    return furthest_chart(
        f"Bias by slice{task.of}",
        "Mean prediction less mean observation: the values furthest from 0, by their 95 % intervals.",
        found,
        "predicted \N{MINUS SIGN} observed",
        0.0,
    )


def furthest_chart(
    title: str,
    about: str,
    found: Sequence[tuple[str, TaskPredictions, Interval]],
    label: str,
    reference: float,
) -> Chart | None:
    """Draw the slices whose number is furthest from a reference, in units of its error."""

    def surprise(interval: Interval) -> float:
        toward = interval.low if interval.value > reference else interval.high
        reach = abs(interval.value - toward)
        return abs(interval.value - reference) / reach if reach else 0.0

    known = [one for one in found if math.isfinite(one[2].low)]
    known.sort(key=lambda one: -surprise(one[2]))
    return interval_chart(
        title,
        about,
        [
            Estimate(name, interval.value, interval.low, interval.high, f"{len(one.rows):,} rows")
            for name, one, interval in known[:_SHOWN]
        ],
        x=Axis(label),
        reference=reference,
        kind="valid",
    )
