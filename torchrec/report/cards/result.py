"""The result in one table: every part of the data, and what to compare it with."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torchrec.report.card import Card, CardFile, View, table_html
from torchrec.report.references import comparables
from torchrec.report.scale import UNKNOWN
from torchrec.runs import SPLITS, numbers_of

COLUMNS = {"auc": "AUC", "logloss": "log loss", "ne": "NE", "calibration": "calibration"}


def _draw(view: View) -> list[Card]:
    result, part = view.run.result, view.part
    beside = [(f"{part}, {one.name}", one.scores) for one in comparables(view, part)]
    if result is None or not beside:
        return []
    rows = [
        (
            result.part_name(name),
            cells_of(view.run.scores[name], numbers_of(result.deviation.get(name))),
        )
        for name in SPLITS
        if name in view.run.scores
    ]
    ensemble = numbers_of(result.ensemble.get(part))
    if ensemble:
        rows.append((f"{part}, mean of the logits", cells_of(ensemble)))
    rows += [(name, cells_of(scores)) for name, scores in beside]
    about = "The metrics of each part of the data, and what there is to compare them with."
    if result.baselines:
        about += (
            " A model that is not better than the base rate, predicted everywhere, and than a logistic "
            "regression on the same features has learned nothing, or learned by heart."
        )
    return [Card("Result", about, table_html(["", *COLUMNS.values()], rows), wide=True)]


def cells_of(
    scores: Mapping[str, float], deviation: Mapping[str, float] | None = None
) -> list[str]:
    """Write metrics, with their standard deviations where they are means."""
    cells = []
    for key in COLUMNS:
        value, spread = scores.get(key, math.nan), (deviation or {}).get(key, math.nan)
        text = f"{value:.4f}" if math.isfinite(value) else UNKNOWN
        cells.append(f"{text} \N{PLUS-MINUS SIGN} {spread:.4f}" if math.isfinite(spread) else text)
    return cells


CARDS = CardFile("result", 10, _draw)
