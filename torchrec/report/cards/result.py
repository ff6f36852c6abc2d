"""The result in one table: every part of the data, and what to compare it with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from torchrec.report.card import Card, CardFile, View, table_html
from torchrec.report.cards.slices import interval_text
from torchrec.report.intervals import metric_intervals
from torchrec.report.references import comparables
from torchrec.report.scale import UNKNOWN
from torchrec.runs import SPLITS, numbers_of

COLUMNS = {"auc": "AUC", "logloss": "log loss", "ne": "NE", "calibration": "calibration"}


def _draw(view: View) -> list[Card]:
    result, part = view.run.result, view.part
    beside = [(f"{part}, {one.name}", one.scores) for one in comparables(view, part)]
    if result is None or not beside:
        return []
    columns = columns_of(view.run.scores.get(part, {}))
    rows = [
        (
            result.part_name(name),
            cells_of(view.run.scores[name], numbers_of(result.deviation.get(name)), columns),
        )
        for name in SPLITS
        if name in view.run.scores
    ]
    predictions = view.predictions
    if predictions is not None and predictions.part == part and not result.deviation:
        found = metric_intervals(predictions)
        texts = [interval_text(found[key]) if key in found else UNKNOWN for key in columns]
        rows.append((f"{part}, 95 %", texts))
    ensemble = numbers_of(result.ensemble.get(part))
    if ensemble:
        rows.append((f"{part}, mean of the logits", cells_of(ensemble, columns=columns)))
    rows += [(name, cells_of(scores, columns=columns)) for name, scores in beside]
    about = "The metrics of each part of the data, and what there is to compare them with."
    if predictions is not None and not result.deviation:
        about += f" Intervals: {predictions.sentence()}"
    if result.baselines:
        about += (
            " A model that is not better than the base rate, predicted everywhere, and than a logistic "
            "regression on the same features has learned nothing, or learned by heart."
        )
    return [Card("Result", about, table_html(["", *columns.values()], rows), wide=True)]


def columns_of(scores: Mapping[str, float]) -> dict[str, str]:
    """Return the metrics that a table has a column for, with their titles: those of groups come last."""
    grouped = [name for name in scores if "(" in name and not name.startswith("groups(")]
    return {**COLUMNS, **{name: name for name in grouped}}


def cells_of(
    scores: Mapping[str, float],
    deviation: Mapping[str, float] | None = None,
    columns: Iterable[str] = COLUMNS,
) -> list[str]:
    """Write metrics, with their standard deviations where they are means."""
    cells = []
    for key in columns:
        value, spread = scores.get(key, math.nan), (deviation or {}).get(key, math.nan)
        text = f"{value:.4f}" if math.isfinite(value) else UNKNOWN
        cells.append(f"{text} \N{PLUS-MINUS SIGN} {spread:.4f}" if math.isfinite(spread) else text)
    return cells


CARDS = CardFile("result", 10, _draw)
