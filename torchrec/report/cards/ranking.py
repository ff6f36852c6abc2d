"""How well scores separate the classes: ROC, precision and recall, gain."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from torchrec.metrics import auc_estimates
from torchrec.report.card import Card, CardFile, View, chart_cards
from torchrec.report.charts import Axis, Chart, Reference, Series, line_chart
from torchrec.report.scale import short

Floats = NDArray[np.float64]

_POINTS = 201


def _draw(view: View) -> list[Card]:
    predictions = view.predictions
    if predictions is None:
        return []
    labels = predictions.labels
    if not 0 < labels.sum() < len(labels):
        return []
    counts = ranked(predictions.logits, labels)
    interval = auc_estimates(predictions.logits, labels).interval()
    return chart_cards(_roc(*counts, interval.value), _precision(*counts), _gain(*counts))


def ranked(scores: Floats, labels: Floats) -> tuple[Floats, Floats]:
    """Return how many positives and negatives have a score of so much or more, from 0 up to all.

    Samples of one score come together: no curve depends on their order.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    positives = np.cumsum(labels[order])[ends]
    return np.append(0.0, positives), np.append(0.0, ends + 1.0 - positives)


def average_precision(positives: Floats, negatives: Floats) -> float:
    """Return the mean precision over the positives, as they are found.

    Example:
        >>> average_precision(*ranked(np.array([0.9, 0.8, 0.1]), np.array([1.0, 0.0, 1.0])))
        0.8333333333333333
    """
    found = np.diff(positives)
    precision = positives[1:] / (positives[1:] + negatives[1:])
    return float((found * precision).sum() / positives[-1])


def roc_points(positives: Floats, negatives: Floats) -> tuple[list[float], list[float]]:
    """Return the share of the negatives taken for positives, and that of the positives found."""
    return _thinned(negatives / negatives[-1], positives / positives[-1])


def _roc(positives: Floats, negatives: Floats, auc: float) -> Chart | None:
    share = Axis("negatives taken for positives", bounds=(0.0, 1.0))
    title, about = "ROC", f"Area under it: {auc:.4f}. Dashed: guessing."
    line = Series("positives found", "train", *roc_points(positives, negatives))
    return line_chart(title, about, [line], x=share, y=Axis(bounds=(0.0, 1.0)), diagonal=True)


def _precision(positives: Floats, negatives: Floats) -> Chart | None:
    x, y = positives[1:] / positives[-1], positives[1:] / (positives[1:] + negatives[1:])
    rate = float(positives[-1] / (positives[-1] + negatives[-1]))
    return line_chart(
        "Precision and recall",
        f"Average precision {average_precision(positives, negatives):.4f}.",
        [Series("precision", "train", *_thinned(x, y))],
        x=Axis("share of the positives found", bounds=(0.0, 1.0)),
        y=Axis(bounds=(0.0, 1.0)),
        references=[Reference("share of positives", rate)],
    )


def _gain(positives: Floats, negatives: Floats) -> Chart | None:
    total = positives + negatives
    x, y = total / total[-1], positives / positives[-1]
    tenth = float(np.interp(0.1, x, y)) * 10
    return line_chart(
        "Gain",
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


CARDS = CardFile("predictions", 10, _draw)
