"""What each feature is worth to the model, for each task."""

from __future__ import annotations

import math

from torchrec.metrics.names import title_of
from torchrec.report.card import Card, CardFile, View, chart_cards
from torchrec.report.charts import Axis, Chart, Estimate, interval_chart
from torchrec.report.importance import REPEATS, Importances, Shuffles, permutation_importance

_SHOWN = 16


def _draw(view: View) -> list[Card]:
    if view.predictions is None:
        return []
    found = permutation_importance(view.predictions)
    return [
        card for one in found.tasks for card in chart_cards(_chart(one, found), task=one.task.name)
    ]


def _chart(found: Importances, shuffles: Shuffles) -> Chart | None:
    if not len(found.task.rows):
        return None
    defined = (
        one
        for one in found.metrics
        if all(math.isfinite(column.lost[one].value) for column in found.columns)
    )
    metric = next(defined, found.metrics[-1])
    rows = [
        Estimate(one.name, (lost := one.lost[metric]).value, lost.low, lost.high)
        for one in found.columns
    ]
    rows.sort(key=lambda row: -row.value)
    how = "lost" if found.task.report.better[metric] == "higher" else "added"
    what = f"{title_of(metric)} {how}"
    more = f" The first {_SHOWN} of {len(rows)}." if len(rows) > _SHOWN else ""
    return interval_chart(
        f"Importance{found.task.of}",
        f"{what} when the values of a column are shuffled: {len(found.task.rows):,} rows, {REPEATS} times "
        f"each, 95 % intervals; {shuffles.seconds:.1f} s.{more}",
        rows[:_SHOWN],
        x=Axis(what),
        reference=0.0,
    )


CARDS = CardFile("features", 10, _draw)
