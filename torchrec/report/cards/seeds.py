"""A run with several seeds: what each reached, and how far apart they are."""

from __future__ import annotations

import math

from torchrec.report.card import Card, CardFile, View, chart_cards, table_html
from torchrec.report.cards.learning import sample_axis
from torchrec.report.cards.result import COLUMNS, cells_of
from torchrec.report.charts import Axis, Chart, Estimate, Series, interval_chart, line_chart
from torchrec.report.scale import UNKNOWN, focus
from torchrec.runs import Run, numbers_of

_KINDS = 6  # colours of runs in the style sheet


def _draw(view: View) -> list[Card]:
    result = view.run.result
    if result is None or not view.members:
        return []
    return [
        *chart_cards(
            _spread(view),
            _curve(view, "auc", "AUC by seed"),
            _curve(view, "logloss", "Log loss by seed"),
        ),
        _table(view),
    ]


def _table(view: View) -> Card:
    result, part = view.run.result, view.part
    assert result is not None
    rows = [
        (one.name, [_best_epoch(one), *cells_of(one.scores.get(part, {}))]) for one in view.members
    ]
    rows.append(("mean", ["", *cells_of(view.run.scores.get(part, {}))]))
    deviation = numbers_of(result.deviation.get(part))
    rows.append(("standard deviation", ["", *cells_of(deviation)]))
    ensemble = numbers_of(result.ensemble.get(part))
    if ensemble:
        rows.append(("mean of the logits", ["", *cells_of(ensemble)]))
    about = (
        f"Each is a run with a page of its own; metrics of the {part} data. What one option changes by "
        "less than they deviate, another seed changes as well."
    )
    table = table_html(["seed", "best epoch", *COLUMNS.values()], rows)
    return Card("Seeds", about, table, wide=True)


def _best_epoch(run: Run) -> str:
    result = run.result
    return UNKNOWN if result is None or result.best_epoch is None else str(result.best_epoch)


def _spread(view: View) -> Chart | None:
    """Draw the AUC of each seed; the mean has its standard deviation to both sides."""
    result, part = view.run.result, view.part
    assert result is not None
    rows = [
        Estimate(one.name, one.scores.get(part, {}).get("auc", math.nan)) for one in view.members
    ]
    mean = view.run.scores.get(part, {}).get("auc", math.nan)
    reach = numbers_of(result.deviation.get(part)).get("auc", math.nan)
    rows.append(Estimate("mean", mean, mean - reach, mean + reach))
    rows.append(
        Estimate("of mean logits", numbers_of(result.ensemble.get(part)).get("auc", math.nan))
    )
    return interval_chart(
        "AUC of the seeds",
        f"On the {part} data. The bar is the standard deviation to both sides of the mean.",
        rows,
        x=Axis("AUC"),
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
