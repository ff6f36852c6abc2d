"""The page of several runs beside one another."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from torchrec.experiment.tasks import KINDS
from torchrec.files import write_file
from torchrec.metrics.names import title_of
from torchrec.report.card import Card, chart_cards, of_task, table_html
from torchrec.report.cards.learning import sample_axis
from torchrec.report.charts import Axis, Chart, Estimate, Series, interval_chart, line_chart
from torchrec.report.comparison import Comparison, Contender, TaskComparison
from torchrec.report.kinds import DISPLAYS
from torchrec.report.kinds.display import interval_text
from torchrec.report.page import Section, page
from torchrec.report.scale import UNKNOWN, focus
from torchrec.report.verdicts import interval_of

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
            _title(task, metric),
            [UNKNOWN if one is None else interval_text(one) for one in found],
        )
        for task in comparison.tasks
        for metric, found in task.metrics.items()
    ]


def difference_rows(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Return by how much each metric is above that of the first run, with intervals of 95 %, by run but the first."""
    return [
        (
            _title(task, metric),
            [
                UNKNOWN
                if one is None or first is None
                else interval_of(one.difference, first.value)
                for one in found
            ],
        )
        for task in comparison.tasks
        for metric, found in task.differences.items()
        for first in task.metrics[metric][:1]
        if any(one is not None for one in found)
    ]


def _title(task: TaskComparison, metric: str) -> str:
    return title_of(f"{task.name}.{metric}" if task.name else metric)


def _results(comparison: Comparison) -> list[Card]:
    names = [one.name for one in comparison.contenders]
    charts = [chart for task in comparison.tasks for chart in _charts(task, names)]
    cards = [
        *chart_cards(*charts),
        Card(
            "Metrics",
            "With intervals of 95 %.",
            table_html(["", *names], metric_rows(comparison)),
            wide=True,
        ),
    ]
    rows = difference_rows(comparison)
    if rows:
        about = (
            f"By how much metrics are above those of {names[0]}, with intervals of 95 %, each of its own. "
            "What is the same for all rows cancels out."
        )
        cards.append(Card("Differences", about, table_html(["", *names[1:]], rows), wide=True))
    return cards


def _charts(task: TaskComparison, names: list[str]) -> list[Chart | None]:
    """Return what models of such a task are judged by, and the curve that tells them from one another."""
    metrics, of = KINDS[task.target.kind].metrics, of_task(task.name)
    lines = [
        (name, _kind(number), one)
        for number, (name, one) in enumerate(zip(names, task.predicted, strict=True))
        if one is not None
    ]
    return [
        *(
            _intervals(task, metric, names, of)
            for metric in (metrics[0], metrics[-1])
            if metric in task.metrics
        ),
        DISPLAYS[task.target.kind].curve.chart(of, lines),
    ]


def _intervals(task: TaskComparison, metric: str, names: list[str], of: str) -> Chart | None:
    title = title_of(metric)
    rows = [
        Estimate(name, interval.value, interval.low, interval.high)
        for name, interval in zip(names, task.metrics[metric], strict=True)
        if interval is not None
    ]
    about = "Of each run alone; what is the same for all rows cancels out in their difference."
    return interval_chart(f"{title[:1].upper()}{title[1:]}{of}", about, rows, x=Axis(title))


def _curves(comparison: Comparison) -> list[Card]:
    return chart_cards(
        *(
            _curve(comparison.contenders, task, metric, split)
            for task in comparison.tasks
            for split in ("valid", "train")
            for metric in KINDS[task.target.kind].estimators
            if metric != "calibration"
        )
    )


def _curve(
    contenders: list[Contender], task: TaskComparison, metric: str, split: str
) -> Chart | None:
    lines = [
        Series(one.name, _kind(number), *one.run.series(split, f"{prefix}{metric}"))
        for number, one in enumerate(contenders)
        if (prefix := one.targets.get(task.target)) is not None
    ]
    drawn = [line for line in lines if any(map(math.isfinite, line.y))]
    if not drawn:
        return None
    bounds, cut = focus([(line.x, line.y) for line in drawn])
    about = "At each evaluation." if split == "valid" else "Before each sample was learned from."
    last = max(sample_axis(one.run).bounds or (0.0, 1.0) for one in contenders)
    title = title_of(metric)
    return line_chart(
        f"{title[:1].upper()}{title[1:]}{of_task(task.name)}, "
        f"{'validation' if split == 'valid' else 'training'}",
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
