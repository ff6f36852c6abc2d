"""How predictions agree with what happens, and how they are spread."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

from torchrec.report.card import Card, CardFile, View, chart_cards
from torchrec.report.charts import Axis, Chart, Series, line_chart
from torchrec.report.scale import short

_FIRST = (
    "predicted"  # of the curves of a task, whose names begin with its own where there are several
)

Curves = Mapping[str, list[float]]


def _draw(view: View) -> list[Card]:
    curves = view.run.curves
    prefixes = [name.removesuffix(_FIRST) for name in curves if name.rpartition(".")[2] == _FIRST]
    charts: list[Chart | None] = []
    for prefix in prefixes or [""]:
        of = f" of {prefix.removesuffix('.')}" if prefix else ""
        own = {
            name.removeprefix(prefix): x for name, x in curves.items() if name.startswith(prefix)
        }
        charts += [_calibration(own, of), _histogram(own, of)]
    return chart_cards(*charts)


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


CARDS = CardFile("predictions", 20, _draw)
