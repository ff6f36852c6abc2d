"""A run with several seeds: what each reached, and how far apart they are."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torchrec.metrics.interval import metric_text
from torchrec.metrics.names import title_of
from torchrec.report.card import Card, CardFile, View, chart_cards, of_task, table_html
from torchrec.report.cards.learning import sample_axis
from torchrec.report.cards.result import cells_of, columns_of
from torchrec.report.charts import Axis, Chart, Estimate, Series, interval_chart, line_chart
from torchrec.report.scale import UNKNOWN, focus
from torchrec.runs import Run, numbers_of

_KINDS = 6  # colours of runs in the style sheet


def _draw(view: View) -> list[Card]:
    result = view.run.result
    if result is None or not view.members:
        return []
    tables = columns_of(view.run.scores.get(view.part, {}))
    charts = []
    for prefix, columns in tables.items():
        key, main = next(iter(columns.items()))
        charts.append(_spread(view, key, f"{_capital(main)} of the seeds{of_task(prefix)}"))
        charts += [
            _curve(view, key, f"{_capital(title)} by seed{of_task(prefix)}")
            for key, title in list(columns.items())[:2]
        ]
    return [
        *chart_cards(*charts),
        *(_table(view, f"Seeds{of_task(prefix)}", columns) for prefix, columns in tables.items()),
    ]


def _table(view: View, title: str, columns: Mapping[str, str]) -> Card:
    result, part = view.run.result, view.part
    assert result is not None
    rows = [
        (one.name, [_best_epoch(one), *cells_of(one.scores.get(part, {}), None, columns)])
        for one in view.members
    ]
    means = view.run.scores.get(part, {})
    rows.append(("mean", ["", *cells_of(means, None, columns)]))
    deviation = numbers_of(result.deviation.get(part))
    spreads = [
        metric_text(deviation[key], means.get(key)) if key in deviation else UNKNOWN
        for key in columns
    ]
    rows.append(("standard deviation", ["", *spreads]))
    ensemble = numbers_of(result.ensemble.get(part))
    if ensemble:
        rows.append(("mean of the logits", ["", *cells_of(ensemble, None, columns)]))
    about = (
        f"Each is a run with a page of its own; metrics of the {part} data. What one option changes by "
        "less than they deviate, another seed changes as well."
    )
    table = table_html(["seed", "best epoch", *columns.values()], rows)
    return Card(title, about, table, wide=True)


def _capital(title: str) -> str:
    return f"{title[:1].upper()}{title[1:]}"


def _best_epoch(run: Run) -> str:
    result = run.result
    return UNKNOWN if result is None or result.best_epoch is None else str(result.best_epoch)


def _spread(view: View, metric: str, title: str) -> Chart | None:
    """Draw a metric of each seed; the mean has its standard deviation to both sides."""
    result, part = view.run.result, view.part
    assert result is not None
    rows = [
        Estimate(one.name, one.scores.get(part, {}).get(metric, math.nan)) for one in view.members
    ]
    mean = view.run.scores.get(part, {}).get(metric, math.nan)
    reach = numbers_of(result.deviation.get(part)).get(metric, math.nan)
    rows.append(Estimate("mean", mean, mean - reach, mean + reach))
    rows.append(
        Estimate("of mean logits", numbers_of(result.ensemble.get(part)).get(metric, math.nan))
    )
    return interval_chart(
        title,
        f"On the {part} data. The bar is the standard deviation to both sides of the mean.",
        rows,
        x=Axis(title_of(metric)),
    )


def _curve(view: View, metric: str, title: str) -> Chart | None:
    lines = [
        Series(one.name, f"run-{number % _KINDS}", *one.series("valid", metric))
        for number, one in enumerate(view.members)
    ]
    drawn = [line for line in lines if any(map(math.isfinite, line.y))]
    if not drawn:
        return None
    bounds, cut = focus([(line.x, line.y) for line in drawn])
    last = max((sample_axis(one).bounds or (0.0, 1.0))[1] for one in view.members)
    about = "On the validation data, of each."
    return line_chart(
        title,
        f"{about} The start is cut off." if cut else about,
        lines,
        x=Axis("samples", bounds=(0.0, last)),
        y=Axis(bounds=bounds),
    )


CARDS = CardFile("result", 20, _draw)
