"""Metrics by feature value of each task, and where it is furthest off."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from torchrec.report.card import Card, CardFile, View, chart_cards, table_html
from torchrec.report.kinds import DISPLAYS
from torchrec.report.predictions import Predictions
from torchrec.report.slices import Values, values_of
from torchrec.report.task_predictions import TaskPredictions

_FEATURES = 16  # shown at most
_VALUES = 8  # of each
_LEAST = 50  # rows of a value

_Slices = list[tuple[str, TaskPredictions]]  # of one feature, by value


def _draw(view: View) -> list[Card]:
    predictions = view.predictions
    if predictions is None:
        return []
    values = _values(predictions)
    cards = []
    for task in predictions.tasks:
        found = {one.feature: slices for one in values if (slices := _slices(task, one))}
        if not found:
            continue
        every = [(f"{name} {value}", x) for name, slices in found.items() for value, x in slices]
        cards += chart_cards(DISPLAYS[task.kind].slices(task, every), task=task.name)
        cards.append(_table(task, found))
    return cards


def _values(predictions: Predictions) -> list[Values]:
    """Return the values of the first features that have several, with rows enough."""
    found = []
    for name, feature in predictions.trained.transform.features.items():
        values = values_of(name, feature, predictions.table)
        if values is None or len(values.names) < 2:
            continue
        if len(values.largest(1)[0][1]) >= _LEAST:
            found.append(values)
    return found[:_FEATURES]


def _slices(task: TaskPredictions, values: Values) -> _Slices:
    found = ((name, task.at(rows)) for name, rows in values.largest(_VALUES))
    return [(name, one) for name, one in found if len(one.rows) >= _LEAST]


def _table(task: TaskPredictions, found: dict[str, _Slices]) -> Card:
    body = Markup("")
    for number, (feature, slices) in enumerate(found.items()):
        lines = [(value, cells_of(one, task)) for value, one in slices]
        table = table_html([feature, *head_of(task)], lines)
        body += Markup("<details{}><summary>{}</summary>{}</details>").format(
            Markup(" open") if not number else "", feature, table
        )
    about = (
        "The values that most rows have. Intervals are of 95\N{NO-BREAK SPACE}%; a metric of one value does not "
        "tell what the feature itself is worth."
    )
    title = f"Metrics by feature value{task.of}"
    return Card(title, about, body, wide=True, task=task.name)


def head_of(task: TaskPredictions) -> Sequence[str]:
    """Return the head of a table of slices of a task."""
    return ["rows", "share", *DISPLAYS[task.kind].head]


def cells_of(part: TaskPredictions, whole: TaskPredictions) -> list[str]:
    """Return a row of a table of slices, under `head_of`.

    Args:
        part: the slice, of one row at least.
        whole: all rows of the task.
    """
    rows = len(part.rows)
    return [f"{rows:,}", f"{rows / len(whole.rows):.1%}", *DISPLAYS[part.kind].cells(part)]


CARDS = CardFile("features", 20, _draw)
