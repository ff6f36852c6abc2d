"""Tasks of numbers: predicted against observed, residuals, bias."""

from __future__ import annotations

from torchrec.report.card import Card, chart_cards
from torchrec.report.charts import Axis, Chart
from torchrec.report.kinds.display import (
    MEANS,
    Curve,
    Display,
    Slices,
    bias_chart,
    interval_text,
    means_by_prediction,
    observed_chart,
    plain_interval,
    residual_chart,
)
from torchrec.report.scale import short
from torchrec.report.task_predictions import TaskPredictions


def _draw(task: TaskPredictions) -> list[Card]:
    return chart_cards(
        observed_chart(task, task.scores, "predicted"), residual_chart(task, task.scores)
    )


def _cells(task: TaskPredictions) -> list[str]:
    return [
        short(task.mean(task.labels)),
        short(task.mean(task.scores)),
        interval_text(plain_interval(task, "mse")),
        interval_text(plain_interval(task, "mae")),
    ]


def _slices(task: TaskPredictions, slices: Slices) -> Chart | None:
    return bias_chart(task, slices, lambda one: one.scores)


def _points(task: TaskPredictions) -> tuple[list[float], list[float]]:
    return means_by_prediction(task, task.scores, task.labels)


_CURVE = Curve("Predicted and observed", MEANS, _points, Axis("predicted"), Axis())
REGRESSION = Display(_draw, ["observed", "predicted", "MSE", "MAE"], _cells, _slices, _CURVE)
