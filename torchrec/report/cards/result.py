"""The result in one table a task: every part of the data, and what to compare it with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from torchrec.metrics import Interval
from torchrec.metrics.interval import metric_text
from torchrec.metrics.names import by_task, title_of
from torchrec.report.card import Card, CardFile, View, of_task, table_html
from torchrec.report.kinds.display import interval_text
from torchrec.report.predictions import Predictions
from torchrec.report.references import comparables
from torchrec.report.scale import UNKNOWN
from torchrec.runs import SPLITS, RunResult, numbers_of

# In the order of columns.
_METRICS = ("auc", "accuracy", "logloss", "ne", "calibration", "mse", "mae")


def _draw(view: View) -> list[Card]:
    result = view.run.result
    if result is None:
        return []
    tables = columns_of(view.scores.get(view.part, {}))
    predictions = view.predictions
    about = "The metrics of each part of the data, and what there is to compare them with."
    if predictions is not None and not result.deviation:
        about += f" Intervals: {predictions.sentence()} {predictions.missing()}".rstrip()
    if result.baselines:
        about += (
            " A model that is not better than the base rate, predicted everywhere, and than a logistic "
            "regression on the same features has learned nothing, or learned by heart."
        )
    return [
        Card(
            f"Result{of_task(prefix)}",
            "" if number else about,
            table_html(["", *columns.values()], _rows(view, result, prefix, columns)),
            wide=True,
        )
        for number, (prefix, columns) in enumerate(tables.items())
    ]


def _rows(
    view: View, result: RunResult, prefix: str, columns: Mapping[str, str]
) -> list[tuple[str, list[str]]]:
    part = view.part
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
        found = _intervals(predictions, prefix)
        cells = [interval_text(found[key]) if key in found else UNKNOWN for key in columns]
        some = "" if predictions.is_whole else f" of {predictions.table.num_rows:,} rows"
        rows.append((f"{part}, 95 %{some}", cells))
    ensemble = numbers_of(result.ensemble.get(part))
    if ensemble:
        rows.append((f"{part}, mean of the logits", cells_of(ensemble, None, columns)))
    beside = [(f"{part}, {one.name}", one.scores) for one in comparables(view, part)]
    return rows + [(name, cells_of(scores, None, columns)) for name, scores in beside]


def _intervals(predictions: Predictions, prefix: str) -> dict[str, Interval]:
    """Return the metrics of a task with intervals, by their names in the result."""
    return {
        f"{prefix}{name}": interval
        for task in predictions.tasks
        if task.prefix == prefix
        for name, interval in task.intervals().items()
    }


def columns_of(scores: Mapping[str, float]) -> dict[str, dict[str, str]]:
    """Return the metrics that tables have columns for, with their titles, by the prefix of the task.

    Example:
        >>> columns_of({"click.ne": 0.9, "click.auc": 0.7, "click.samples": 9.0, "click.mrr(user)": 0.2})
        {'click.': {'click.auc': 'AUC', 'click.ne': 'NE', 'click.mrr(user)': 'mrr(user)'}}
    """
    found = {}
    for prefix, names in by_task(scores).items():
        known = [name for name in _METRICS if name in names]
        grouped = [name for name in names if "(" in name and not name.startswith("groups(")]
        if known:
            found[prefix] = {f"{prefix}{x}": title_of(x, short=True) for x in [*known, *grouped]}
    return found


def cells_of(
    scores: Mapping[str, float],
    deviation: Mapping[str, float] | None,
    columns: Iterable[str],
) -> list[str]:
    """Write metrics, with their standard deviations where they are means."""
    cells = []
    for key in columns:
        value, spread = scores.get(key, math.nan), (deviation or {}).get(key, math.nan)
        text = metric_text(value) if math.isfinite(value) else UNKNOWN
        if math.isfinite(spread):
            text += f" \N{PLUS-MINUS SIGN} {metric_text(spread, value)}"
        cells.append(text)
    return cells


CARDS = CardFile("result", 10, _draw)
