"""Tasks of one of several classes: how sure the likeliest is, and of classes in order what regressions show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from torchrec.metrics.interval import Interval, share_interval
from torchrec.report.card import Card, chart_cards, table_html
from torchrec.report.charts import Axis, Chart, Series, line_chart
from torchrec.report.kinds.display import (
    MEANS,
    Curve,
    Display,
    Slices,
    bias_chart,
    furthest_chart,
    interval_text,
    means_by_prediction,
    observed_chart,
    residual_chart,
)
from torchrec.report.scale import UNKNOWN, short
from torchrec.report.task_predictions import TaskPredictions

Floats = NDArray[np.float64]

_CLASSES = 12  # with the most rows


def expected(task: TaskPredictions) -> Floats:
    """Return the mean class by its probabilities, ``(N,)``."""
    found: Floats = task.scores @ np.arange(task.scores.shape[1], dtype=np.float64)
    return found


def _draw_multiclass(task: TaskPredictions) -> list[Card]:
    confidence = _CONFIDENCE.chart(task.of, [("right", "valid", task)])
    return [*chart_cards(confidence, _shares(task)), *_table(task)]


def _draw_ordinal(task: TaskPredictions) -> list[Card]:
    mean = expected(task)
    charts = chart_cards(
        observed_chart(task, mean, "predicted class, mean"),
        residual_chart(task, mean),
        _shares(task),
    )
    return [*charts, *_table(task)]


def _confidence(task: TaskPredictions) -> tuple[list[float], list[float]]:
    likeliest = task.scores.max(1, initial=0.0)
    right = (task.scores.argmax(1) == task.labels).astype(np.float64)
    return means_by_prediction(task, likeliest, right)


def _of_expected(task: TaskPredictions) -> tuple[list[float], list[float]]:
    return means_by_prediction(task, expected(task), task.labels)


def _shares(task: TaskPredictions) -> Chart | None:
    """Draw the share of each class, as it is predicted and observed."""
    if not len(task.rows):
        return None
    classes = np.arange(task.scores.shape[1], dtype=np.float64)
    predicted = np.average(task.scores, axis=0, weights=task.weights)
    observed = np.bincount(task.labels.astype(np.int64), task.weight, len(classes))
    observed = observed / observed.sum()
    top = float(max(predicted.max(), observed.max()))
    return line_chart(
        f"Classes{task.of}",
        "Share of each class.",
        [
            Series("predicted", "train", classes.tolist(), predicted.tolist()),
            Series("observed", "valid", classes.tolist(), observed.tolist()),
        ],
        x=Axis("class"),
        y=Axis(write=lambda share: f"{short(share * 100, 2)}%", bounds=(0.0, top * 1.08)),
    )


def _table(task: TaskPredictions) -> list[Card]:
    """Return how well each class is told from the others."""
    if not len(task.rows):
        return []
    weight, chosen = task.weight, task.scores.argmax(1)
    count = task.scores.shape[1]
    labels = task.labels.astype(np.int64)
    of_class, taken, right = (
        np.bincount(classes, by, count)
        for classes, by in (
            (labels, weight),
            (chosen, weight),
            (labels, weight * (chosen == labels)),
        )
    )
    total = weight.sum()
    rows = [
        (
            str(one),
            [
                f"{of_class[one] / total:.1%}",
                f"{taken[one] / total:.1%}",
                _share(right[one], of_class[one]),
                _share(right[one], taken[one]),
            ],
        )
        for one in sorted(np.argsort(-of_class, kind="stable")[:_CLASSES])
    ]
    more = f" The {_CLASSES} with the most rows of {count}." if count > _CLASSES else ""
    about = f"What each class has of the rows, and how often it is the likeliest.{more}"
    head = ["class", "observed", "likeliest", "recall", "precision"]
    return [Card(f"By class{task.of}", about, table_html(head, rows), wide=True)]


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else UNKNOWN


def _accuracy(task: TaskPredictions) -> Interval:
    found = task.estimate("accuracy")
    return share_interval(found.value, found.variance)


def _cells(task: TaskPredictions) -> list[str]:
    return [interval_text(_accuracy(task)), short(task.report["logloss"])]


def _ordinal_cells(task: TaskPredictions) -> list[str]:
    return [short(task.mean(task.labels)), short(task.mean(expected(task))), *_cells(task)]


def _multiclass_slices(task: TaskPredictions, slices: Slices) -> Chart | None:
    return furthest_chart(
        f"Accuracy by slice{task.of}",
        "The values furthest from that of all rows, by their 95 % intervals.",
        [(name, one, _accuracy(one)) for name, one in slices],
        "accuracy",
        task.report["accuracy"],
    )


def _ordinal_slices(task: TaskPredictions, slices: Slices) -> Chart | None:
    return bias_chart(task, slices, expected)


_SHARE = Axis(bounds=(0.0, 1.0))
_CONFIDENCE = Curve(
    "Confidence",
    "How often the likeliest class is right. Dashed: as often as it is said to be.",
    _confidence,
    replace(_SHARE, label="probability of the likeliest class"),
    _SHARE,
)
_EXPECTED = Curve(
    "Predicted and observed", MEANS, _of_expected, Axis("predicted class, mean"), Axis()
)
_HEAD = ["accuracy", "log loss"]
MULTICLASS = Display(_draw_multiclass, _HEAD, _cells, _multiclass_slices, _CONFIDENCE)
ORDINAL = Display(
    _draw_ordinal, ["observed", "predicted", *_HEAD], _ordinal_cells, _ordinal_slices, _EXPECTED
)
