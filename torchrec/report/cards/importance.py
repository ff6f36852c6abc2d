"""What each feature is worth to the model."""

from __future__ import annotations

import math

from torchrec.report.card import Card, CardFile, View, chart_cards
from torchrec.report.charts import Axis, Chart, Estimate, interval_chart
from torchrec.report.importance import REPEATS, Importances, permutation_importance

_SHOWN = 16


def _draw(view: View) -> list[Card]:
    if view.predictions is None:
        return []
    found = permutation_importance(view.predictions)
    return chart_cards(_chart(found))


def _chart(found: Importances) -> Chart | None:
    defined = all(math.isfinite(one.auc.value) for one in found.columns)
    rows = [
        Estimate(one.name, *((i := one.auc if defined else one.logloss).value, i.low, i.high))
        for one in found.columns
    ]
    rows.sort(key=lambda row: -row.value)
    metric = "AUC lost" if defined else "log loss added"
    more = f" The first {_SHOWN} of {len(rows)}." if len(rows) > _SHOWN else ""
    return interval_chart(
        "Importance",
        f"{metric} when the values of a column are shuffled: {found.rows:,} rows, {REPEATS} times each, "
        f"95 % intervals; {found.seconds:.1f} s.{more}",
        rows[:_SHOWN],
        x=Axis(metric),
        reference=0.0,
    )


CARDS = CardFile("features", 10, _draw)
