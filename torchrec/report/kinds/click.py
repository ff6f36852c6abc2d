"""Tasks of yes or no: ROC, precision and recall, gain, calibration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from torchrec.metrics import Interval
from torchrec.metrics.estimators import sigmoid
from torchrec.metrics.interval import metric_text
from torchrec.report.card import Card, chart_cards
from torchrec.report.charts import Axis, Chart, Reference, Series, line_chart
from torchrec.report.kinds.display import Curve, Display, Slices, furthest_chart, interval_text
from torchrec.report.scale import short
from torchrec.report.task_predictions import TaskPredictions

Curves = Mapping[str, list[float]]
Floats = NDArray[np.float64]

_POINTS = 201


def _draw(task: TaskPredictions) -> list[Card]:
    if not _has_both(task):
        return []
    counts = ranked(task.scores, task.labels, task.weight)
    return chart_cards(_roc(task), _precision(task, *counts), _gain(task, *counts))


def _has_both(task: TaskPredictions) -> bool:
    """Tell whether there are positives and negatives."""
    return bool(0 < task.labels.sum() < len(task.labels))


def ranked(scores: Floats, labels: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return how much of positives and negatives has a score of so much or more, from 0 up to all.

    Samples of one score come together: no curve depends on their order.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    positives, negatives = (
        np.append(0.0, np.cumsum((weights * chosen)[order])[ends])
        for chosen in (labels, 1.0 - labels)
    )
    return positives, negatives


def average_precision(positives: Floats, negatives: Floats) -> float:
    """Return the mean precision over the positives, as they are found.

    Example:
        >>> counts = ranked(np.array([0.9, 0.8, 0.1]), np.array([1.0, 0.0, 1.0]), np.ones(3))
        >>> average_precision(*counts)
        0.8333333333333333
    """
    found = np.diff(positives)
    precision = positives[1:] / (positives[1:] + negatives[1:])
    return float((found * precision).sum() / positives[-1])


def _roc_points(task: TaskPredictions) -> tuple[list[float], list[float]]:
    """Return the share of the negatives taken for positives, and that of the positives found."""
    if not _has_both(task):
        return [], []
    positives, negatives = ranked(task.scores, task.labels, task.weight)
    return _thinned(negatives / negatives[-1], positives / positives[-1])


def _roc(task: TaskPredictions) -> Chart | None:
    about = f"Area under it: {metric_text(task.report['auc'])}. {_ROC.about}"
    return replace(_ROC, about=about).chart(task.of, [("positives found", "train", task)])


def _precision(task: TaskPredictions, positives: Floats, negatives: Floats) -> Chart | None:
    x, y = positives[1:] / positives[-1], positives[1:] / (positives[1:] + negatives[1:])
    rate = float(positives[-1] / (positives[-1] + negatives[-1]))
    return line_chart(
        f"Precision and recall{task.of}",
        f"Average precision {metric_text(average_precision(positives, negatives))}.",
        [Series("precision", "train", *_thinned(x, y))],
        x=Axis("share of the positives found", bounds=(0.0, 1.0)),
        y=Axis(bounds=(0.0, 1.0)),
        references=[Reference("share of positives", rate)],
    )


def _gain(task: TaskPredictions, positives: Floats, negatives: Floats) -> Chart | None:
    total = positives + negatives
    x, y = total / total[-1], positives / positives[-1]
    tenth = float(np.interp(0.1, x, y)) * 10
    return line_chart(
        f"Gain{task.of}",
        f"Positives found in the best-scored share. The best tenth has {short(tenth, 2)} times its share.",
        [Series("positives found", "train", *_thinned(x, y))],
        x=Axis("share of all samples", write=_percent, bounds=(0.0, 1.0)),
        y=Axis(write=_percent, bounds=(0.0, 1.0)),
        diagonal=True,
    )


def _thinned(x: Floats, y: Floats) -> tuple[list[float], list[float]]:
    """Return a curve at a few places: it is one of many thousand steps."""
    if len(x) <= _POINTS:
        return x.tolist(), y.tolist()
    places = np.unique(
        np.append(np.searchsorted(x, np.linspace(x[0], x[-1], _POINTS)).clip(0, len(x) - 1), 0)
    )
    return x[places].tolist(), y[places].tolist()


def _percent(share: float) -> str:
    return f"{share:.0%}"


def curve_cards(curves: Curves, of: str) -> list[Card]:
    """Return what is drawn of the curves that training measured at its end, which needs no predictions.

    Args:
        curves: of one task: `torchrec.metrics.ScoreCurves`.
        of: how titles end.
    """
    return chart_cards(_calibration(curves, of), _histogram(curves, of))


def _calibration(curves: Curves, of: str) -> Chart | None:
    predicted, observed = curves.get("predicted", []), curves.get("observed", [])
    top = max(filter(math.isfinite, [*predicted, *observed]), default=1.0)
    bounds = (0.0, min(1.0, top * 1.06))
    return line_chart(
        f"Calibration{of}",
        "Dashed: what is predicted is what happens.",
        [Series("observed", "valid", predicted, observed)],
        x=Axis("predicted probability", bounds=bounds),
        y=Axis(bounds=bounds),
        diagonal=True,
    )


def _histogram(curves: Curves, of: str) -> Chart | None:
    edges = curves.get("histogram_edges", [])
    middles = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
    lines = [
        Series(name, kind, middles, [count / total for count in counts])
        for name, kind, counts in (
            ("negatives", "train", curves.get("negatives", [])),
            ("positives", "valid", curves.get("positives", [])),
        )
        if len(counts) == len(middles) and (total := sum(counts)) > 0
    ]
    top = max((y for line in lines for y in line.y), default=1.0)
    return line_chart(
        f"Scores{of}",
        "Share of samples by predicted probability.",
        lines,
        x=Axis("predicted probability", bounds=(0.0, 1.0)),
        y=Axis(write=lambda share: f"{short(share * 100, 2)}%", bounds=(0.0, top * 1.08)),
        filled=True,
    )


def calibration_of(task: TaskPredictions) -> Interval:
    """Return predicted over observed positives.

    Its interval is that of a ratio whose labels vary by chance about the probabilities.
    """
    probabilities, weight = sigmoid(task.scores), task.weight
    positives = float(weight @ task.labels)
    if not positives:
        return Interval(math.nan, math.nan, math.nan)
    value = float(weight @ probabilities) / positives
    # Relative error of a sum of independent labels; on the scale of logarithms, as of a ratio.
    variance = float((weight**2 * probabilities * (1 - probabilities)).sum())
    error = 1.96 * math.sqrt(variance) / positives
    return Interval(value, value * math.exp(-error), value * math.exp(error))


def _cells(task: TaskPredictions) -> list[str]:
    return [
        f"{task.mean(task.labels):.1%}",
        interval_text(task.interval("auc")),
        short(task.report["logloss"]),
        interval_text(calibration_of(task)),
    ]


def _slices(task: TaskPredictions, slices: Slices) -> Chart | None:
    found = [(name, one, calibration_of(one)) for name, one in slices]
    return furthest_chart(
        f"Calibration by slice{task.of}",
        "Predicted over observed positives: the values furthest from 1, by their 95 % intervals.",
        [one for one in found if one[2].value > 0 and one[2].low > 0],
        "predicted / observed",
        1.0,
    )


_SHARE = Axis(bounds=(0.0, 1.0))
_ROC = Curve(
    "ROC",
    "Dashed: guessing.",
    _roc_points,
    replace(_SHARE, label="negatives taken for positives"),
    _SHARE,
)
CLICK = Display(_draw, ["positives", "AUC", "log loss", "calibration"], _cells, _slices, _ROC)
