"""The page of a search: how it went, what mattered, and each trial; drawn with the charts of the report."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from torchrec.files import write_file
from torchrec.report.card import Card, chart_cards, table_html
from torchrec.report.charts import Axis, Chart, Estimate, Series, interval_chart, line_chart
from torchrec.report.header import Tile
from torchrec.report.page import Section, page
from torchrec.report.scale import duration
from torchrec.tuning.results import Tuning, label_of
from torchrec.tuning.space import Choice, Range, Value, name_of, text_of
from torchrec.tuning.trials import Trial

_CURVES = 5  # trials whose evaluations are drawn


def write_page(tuning: Tuning, output: str | os.PathLike[str] | None = None) -> Path:
    """Write the page of a search: one HTML file with all in it, that needs no network.

    Args:
        tuning: what `torchrec.tuning.tune` returned.
        output: the file. Default: ``report.html`` in the folder of the search.

    Returns:
        The file.
    """
    path = tuning.page if output is None else Path(output)
    write_file(path, render(tuning))
    return path


def render(tuning: Tuning) -> str:
    """Return the page of a search."""
    states = [trial.state for trial in tuning.trials]
    counts = [f"{states.count('complete')} complete"]
    counts += [f"{states.count('pruned')} given up"] if "pruned" in states else []
    counts += [f"{states.count('failed')} failed"] if "failed" in states else []
    return page(
        "page.html",
        kind="search",
        refresh=None,
        title=tuning.folder.name or "search",
        notes=[] if tuning.best else ["No trial is complete yet."],
        summary=[
            ("trials", ", ".join(counts)),
            ("maximised", f"{label_of(tuning.metrics)} of the validation data"),
            ("time", duration(sum(trial.seconds for trial in tuning.trials))),
            ("best experiment", tuning.experiment.name),
        ],
        split="validation",
        tiles=_tiles(tuning),
        sections=[section for section in _sections(tuning) if section.cards],
    )


def _tiles(tuning: Tuning) -> list[Tile]:
    best, start = tuning.best, tuning.start
    if best is None:
        return []
    return [
        Tile(
            {"auc": "AUC", "ne": "Normalised entropy", "logloss": "Log loss"}.get(
                name, name.capitalize()
            ),
            f"{value:.4f}",
            f"of the best trial, number {best.number}",
            [f"as it was {start.metrics[name]:.4f}"] if start and name in start.metrics else [],
        )
        for name, value in sorted(best.metrics.items())
    ]


def _sections(tuning: Tuning) -> list[Section]:
    return [
        Section("learning", "How it went", chart_cards(_history(tuning), _evaluations(tuning))),
        Section("features", "What mattered", chart_cards(_importances(tuning), *_slices(tuning))),
        Section("configuration", "What was tried", [_values(tuning), _trials(tuning)]),
    ]


def _history(tuning: Tuning) -> Chart | None:
    """Draw the value of each trial, and the best so far."""
    complete = _done(tuning.trials)
    bests = list(itertools.accumulate((trial.value or 0.0 for trial in complete), max))
    numbers = [float(trial.number) for trial in complete]
    given_up = [
        trial for trial in tuning.trials if trial.state == "pruned" and trial.value is not None
    ]
    return line_chart(
        "Trials",
        "The value of each, and the best so far. The first is the experiment as it was.",
        [
            Series("best so far", "valid", numbers, bests),
            _dots("trials", "train", numbers, [trial.value or 0.0 for trial in complete]),
            _dots(
                "given up",
                "phase-0",
                [float(trial.number) for trial in given_up],
                [trial.value or 0.0 for trial in given_up],
            ),
        ],
        x=Axis("trial", bounds=(0.0, max(numbers, default=1.0) + 1)),
        y=Axis(label_of(tuning.metrics), bounds=_bounds(tuning)),
    )


def _evaluations(tuning: Tuning) -> Chart | None:
    """Draw how the best trials went."""
    best = sorted(_done(tuning.trials), key=lambda trial: -(trial.value or 0.0))[:_CURVES]
    kinds = ("valid", "train", "test", "phase-3", "phase-0")
    return line_chart(
        "Evaluations",
        f"The {len(best)} best trials while they trained.",
        [
            Series(
                f"trial {trial.number}",
                kind,
                [float(i) for i in range(1, len(trial.curve) + 1)],
                trial.curve,
            )
            for trial, kind in zip(best, kinds, strict=False)
        ],
        x=Axis("evaluation", write=lambda place: f"{place:.0f}" if place % 1 == 0 else ""),
        y=Axis(label_of(tuning.metrics)),
    )


def _importances(tuning: Tuning) -> Chart | None:
    return interval_chart(
        "Importance",
        "How much of the difference between good and poor trials is due to each key.",
        [Estimate(name_of(key), share, 0.0, share) for key, share in tuning.importances.items()],
        x=Axis("share", write=lambda share: f"{share:.0%}", bounds=(0.0, 1.0)),
    )


def _slices(tuning: Tuning) -> list[Chart | None]:
    """Draw the value of the trials over each key, those that matter most first."""
    keys = [*tuning.importances, *(key for key in tuning.space if key not in tuning.importances)]
    return [_slice(tuning, key) for key in keys]


def _slice(tuning: Tuning, key: str) -> Chart | None:
    axis, place = _axis(key, tuning.space[key])
    series = []
    for name, kind, state in (("trials", "train", "complete"), ("given up", "phase-0", "pruned")):
        points = [
            (place(tuning.value_of(trial, key)), trial.value)
            for trial in tuning.trials
            if trial.state == state and trial.value is not None
        ]
        there = [(x, y) for x, y in points if math.isfinite(x)]
        series.append(_dots(name, kind, [x for x, _ in there], [y for _, y in there]))
    return line_chart(
        name_of(key),
        f"{key} of each trial, and its value.",
        series,
        x=axis,
        y=Axis(label_of(tuning.metrics), bounds=_bounds(tuning)),
    )


def _axis(key: str, dimension: Range | Choice) -> tuple[Axis, Callable[[Value], float]]:
    """Return the axis of a key, and where on it a value is: NaN where it is not."""
    if isinstance(dimension, Choice):
        labels = [text_of(value) for value in dimension.values]
        axis = Axis(
            name_of(key),
            write=lambda place: labels[int(place)] if place in range(len(labels)) else "",
            bounds=(-0.5, len(labels) - 0.5),
        )
        return (
            axis,
            lambda value: (
                float(labels.index(text_of(value))) if text_of(value) in labels else math.nan
            ),
        )
    low, high = float(dimension.low), float(dimension.high)
    if not dimension.log:
        return Axis(name_of(key), bounds=(low, high)), _number
    axis = Axis(
        name_of(key),
        write=lambda place: f"{10**place:.2g}",
        bounds=(math.log10(low), math.log10(high)),
    )
    # What the experiment has may be 0, which is as far to the left as there is.
    return axis, lambda value: math.log10(max(_number(value), low))


def _number(value: Value) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _dots(name: str, kind: str, x: Sequence[float], y: Sequence[float]) -> Series:
    """Return points without a line between them: there is a gap behind each."""
    order = sorted(range(len(x)), key=lambda i: x[i])
    apart = [(place, value) for i in order for place, value in ((x[i], y[i]), (x[i], math.nan))]
    return Series(name, kind, [place for place, _ in apart], [value for _, value in apart])


def _bounds(tuning: Tuning) -> tuple[float, float] | None:
    """Return the values worth showing: the worst fifth may lie below."""
    values = sorted(trial.value for trial in tuning.trials if trial.value is not None)
    if len(values) < 2 or values[0] == values[-1]:
        return None
    low, high = values[len(values) // 5], values[-1]
    room = (high - low or high - values[0]) * 0.08
    return low - room, high + room


def _done(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.state == "complete" and trial.value is not None]


def _values(tuning: Tuning) -> Card:
    """Show what was varied, and what the best trial has."""
    best = tuning.best
    rows = []
    for key, dimension in tuning.space.items():
        if isinstance(dimension, Choice):
            space = ", ".join(map(text_of, dimension.values))
        else:
            scale = ", logarithmic" if dimension.log else ""
            space = f"{dimension.low:g} to {dimension.high:g}{scale}"
        found = "" if best is None else text_of(tuning.value_of(best, key))
        rows.append((key, (text_of(tuning.base[key]), found, space)))
    body = table_html(("key", "as it was", "best", "tried"), rows)
    return Card("Search space", "What was varied, and what the best trial has.", body, wide=True)


def _trials(tuning: Tuning) -> Card:
    """Show all trials, the best first."""
    keys = list(tuning.space)
    states = {"complete": "", "pruned": "given up", "failed": "failed"}
    ordered = sorted(
        tuning.trials,
        key=lambda trial: (
            trial.state != "complete",
            -(trial.value if trial.value is not None else -math.inf),
        ),
    )
    rows = [
        (
            str(trial.number),
            (
                "" if trial.value is None else f"{trial.value:.4f}",
                states[trial.state],
                duration(trial.seconds),
                *(text_of(tuning.value_of(trial, key)) for key in keys),
            ),
        )
        for trial in ordered
    ]
    head = ("trial", label_of(tuning.metrics), "", "time", *map(name_of, keys))
    about = "The best first; those that were given up were behind others at the same evaluation."
    return Card("Trials", about, table_html(head, rows), wide=True)
