"""The page of several runs beside one another."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from torchrec.files import write_file
from torchrec.report.card import Card, chart_cards, table_html
from torchrec.report.cards.learning import sample_axis
from torchrec.report.cards.ranking import ranked, roc_points
from torchrec.report.cards.slices import interval_text
from torchrec.report.charts import Axis, Chart, Estimate, Series, interval_chart, line_chart
from torchrec.report.comparison import METRICS, Comparison, Contender
from torchrec.report.page import Section, page
from torchrec.report.scale import UNKNOWN, focus

_KINDS = 6  # colours of runs in the style sheet


def write_comparison(comparison: Comparison, output: str | os.PathLike[str]) -> Path:
    """Write a comparison as one HTML file, that needs no network.

    Args:
        comparison: of `compare_runs`.
        output: the file to write.

    Returns:
        The file.
    """
    path = Path(output)
    write_file(path, render_comparison(comparison))
    return path


def render_comparison(comparison: Comparison) -> str:
    """Return the page of a comparison."""
    found = [
        Section("learning", f"On the {comparison.part} data", _results(comparison)),
        Section("predictions", "How they learned", _curves(comparison)),
        Section("configuration", "What differs", _keys(comparison)),
    ]
    return page(
        "page.html",
        kind="comparison",
        title=" · ".join(one.name for one in comparison.contenders),
        refresh=None,
        verdicts=[one.sentence for one in comparison.verdicts],
        notes=comparison.notes,
        summary=[],
        split="",
        tiles=[],
        sections=[section for section in found if section.cards],
    )


def metric_rows(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Return each metric with its intervals of 95 %, by run."""
    return [
        (
            name,
            [
                interval_text(one.metrics[key]) if key in one.metrics else UNKNOWN
                for one in comparison.contenders
            ],
        )
        for key, name in METRICS.items()
        if any(key in one.metrics for one in comparison.contenders)
    ]


def _results(comparison: Comparison) -> list[Card]:
    contenders = comparison.contenders
    names = [one.name for one in contenders]
    rows = metric_rows(comparison)
    table = Card("Metrics", "With intervals of 95 %.", table_html(["", *names], rows), wide=True)
    return [
        *chart_cards(
            _intervals(contenders, "auc", "AUC"),
            _intervals(contenders, "logloss", "Log loss"),
            _roc(contenders),
        ),
        table,
    ]


def _intervals(contenders: list[Contender], key: str, title: str) -> Chart | None:
    rows = [
        Estimate(one.name, interval.value, interval.low, interval.high)
        for one in contenders
        if (interval := one.metrics.get(key)) is not None
    ]
    about = "Of each run alone; what is the same for all rows cancels out in their difference."
    return interval_chart(title, about, rows, x=Axis(title))


def _roc(contenders: list[Contender]) -> Chart | None:
    lines = []
    for number, one in enumerate(contenders):
        found = one.predictions
        if found is not None and 0 < found.labels.sum() < len(found.labels):
            points = roc_points(*ranked(found.logits, found.labels))
            lines.append(Series(one.name, _kind(number), *points))
    bounds = (0.0, 1.0)
    return line_chart(
        "ROC",
        "Dashed: guessing.",
        lines,
        x=Axis("negatives taken for positives", bounds=bounds),
        y=Axis(bounds=bounds),
        diagonal=True,
    )


def _curves(comparison: Comparison) -> list[Card]:
    return chart_cards(
        *(
            _curve(comparison.contenders, metric, title, split)
            for split in ("valid", "train")
            for metric, title in (
                ("auc", "AUC"),
                ("logloss", "Log loss"),
                ("ne", "Normalised entropy"),
            )
        )
    )


def _curve(contenders: list[Contender], metric: str, title: str, split: str) -> Chart | None:
    lines = [
        Series(one.name, _kind(number), *one.run.series(split, metric))
        for number, one in enumerate(contenders)
    ]
    drawn = [line for line in lines if any(map(math.isfinite, line.y))]
    if not drawn:
        return None
    bounds, cut = focus([(line.x, line.y) for line in drawn])
    about = "At each evaluation." if split == "valid" else "Before each sample was learned from."
    last = max(sample_axis(one.run).bounds or (0.0, 1.0) for one in contenders)
    return line_chart(
        f"{title}, {'validation' if split == 'valid' else 'training'}",
        f"{about} The start is cut off." if cut else about,
        lines,
        x=Axis("samples", bounds=(0.0, float(np.max(last)))),
        y=Axis(bounds=bounds),
    )


def _keys(comparison: Comparison) -> list[Card]:
    if not any(one.keys for one in comparison.contenders):
        return []
    names = [one.name for one in comparison.contenders]
    if not comparison.differing:
        return [
            Card(
                "Keys", "All keys of the experiments are the same.", table_html([""], []), wide=True
            )
        ]
    table = table_html(["key", *names], comparison.differing)
    return [Card("Keys", "Keys of the experiments that are not the same in all.", table, wide=True)]


def _kind(number: int) -> str:
    return f"run-{number % _KINDS}"
