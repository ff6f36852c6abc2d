"""Metrics by feature value, and where the calibration is off."""

from __future__ import annotations

import math

from markupsafe import Markup

from torchrec.metrics import Interval
from torchrec.report.card import Card, CardFile, View, chart_cards, table_html
from torchrec.report.charts import Axis, Chart, Estimate, interval_chart
from torchrec.report.predictions import Predictions
from torchrec.report.scale import UNKNOWN, short
from torchrec.report.slices import SliceMetrics, Values, metrics_of, values_of

_FEATURES = 16  # shown at most
_VALUES = 8  # of each
_LEAST = 50  # rows of a value
_CALIBRATIONS = 8  # the furthest off

HEAD = ["rows", "share", "positives", "AUC", "log loss", "calibration"]


def _draw(view: View) -> list[Card]:
    predictions = view.predictions
    if predictions is None:
        return []
    found: list[tuple[str, list[tuple[str, SliceMetrics]]]] = []
    for name, feature in predictions.trained.transform.features.items():
        values = values_of(name, feature, predictions.table)
        slices = [] if values is None else _slices(predictions, values)
        if slices and len(found) < _FEATURES:
            found.append((name, slices))
    if not found:
        return []
    return [*chart_cards(_calibration(found)), _table(found, len(predictions.labels))]


def _slices(predictions: Predictions, values: Values) -> list[tuple[str, SliceMetrics]]:
    if len(values.names) < 2:
        return []
    return [
        (name, metrics_of(predictions, rows))
        for name, rows in values.largest(_VALUES)
        if len(rows) >= _LEAST
    ]


def _calibration(found: list[tuple[str, list[tuple[str, SliceMetrics]]]]) -> Chart | None:
    slices = [
        (f"{feature} {value}", metrics)
        for feature, values in found
        for value, metrics in values
        if metrics.calibration.value > 0 and metrics.calibration.low > 0
    ]
    slices.sort(key=lambda one: -_surprise(one[1].calibration))
    return interval_chart(
        "Calibration by slice",
        "Predicted over observed positives: the values furthest from 1, by their 95 % intervals.",
        [
            Estimate(name, *_ends(metrics.calibration), f"{metrics.rows:,} rows")
            for name, metrics in slices[:_CALIBRATIONS]
        ],
        x=Axis("predicted / observed"),
        reference=1.0,
        kind="valid",
    )


def _surprise(calibration: Interval) -> float:
    """Return how far a calibration is from 1, in units of its error."""
    reach = math.log(calibration.high / calibration.value)
    return abs(math.log(calibration.value)) / reach if reach else 0.0


def _ends(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high


def _table(found: list[tuple[str, list[tuple[str, SliceMetrics]]]], total: int) -> Card:
    body = Markup("")
    for number, (feature, values) in enumerate(found):
        lines = [(value, cells_of(metrics, total)) for value, metrics in values]
        table = table_html([feature, *HEAD], lines)
        body += Markup("<details{}><summary>{}</summary>{}</details>").format(
            Markup(" open") if not number else "", feature, table
        )
    about = (
        "The values that most rows have. Intervals are of 95\N{NO-BREAK SPACE}%; the AUC of one value does not "
        "tell what the feature itself is worth."
    )
    return Card("Metrics by feature value", about, body, wide=True)


def cells_of(metrics: SliceMetrics, total: int) -> list[str]:
    """Return a row of a table of slices, under `HEAD`.

    Args:
        metrics: of the slice.
        total: rows of all.
    """
    return [
        f"{metrics.rows:,}",
        f"{metrics.rows / total:.1%}",
        f"{metrics.positives:.1%}",
        interval_text(metrics.auc),
        short(metrics.logloss),
        interval_text(metrics.calibration, 3),
    ]


def interval_text(interval: Interval, digits: int = 4) -> str:
    """Write a value with its interval."""
    if not math.isfinite(interval.value):
        return UNKNOWN
    value = f"{interval.value:.{digits}f}"
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return value
    return f"{value} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


CARDS = CardFile("features", 20, _draw)
