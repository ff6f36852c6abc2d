"""What the page is made of: cards, each drawn by a file of its own from one view of the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from markupsafe import Markup

from torchrec.report.charts import Chart
from torchrec.runs import SPLITS, Run

if TYPE_CHECKING:
    from torchrec.experiment.schema import Experiment
    from torchrec.report.predictions import Predictions

Part = Literal["result", "learning", "predictions", "features", "speed", "tables", "configuration"]


@dataclass(frozen=True)
class View:
    """What cards draw from.

    Attributes:
        run: what its folder tells.
        experiment: what was trained; None if its file is not there or does not read.
        predictions: of the trained model for rows with labels; None where they cannot be had.
        best: what is best possible, by part of the data and metric; of generated data only.
        members: the runs of the seeds, where there are several.
    """

    run: Run
    experiment: Experiment | None = None
    predictions: Predictions | None = None
    best: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    members: Sequence[Run] = ()

    @property
    def part(self) -> str:
        """The part of the data that tells most of the result: test, validation, training."""
        scores = self.scores
        return next((name for name in reversed(SPLITS) if name in scores), "")

    @property
    def scores(self) -> Mapping[str, Mapping[str, float]]:
        """The metrics by part; of a run without a result, the last that were measured."""
        return self.run.scores or {line.split: line.values for line in self.run.lines}


@dataclass(frozen=True)
class Card:
    """A rectangle of the page.

    Attributes:
        title: the heading.
        about: a sentence on how to read it.
        body: HTML.
        legend: class and name of what is drawn.
        wide: whether it takes the whole width.
        task: that it is of, where there are several.
    """

    title: str
    about: str
    body: Markup
    legend: Sequence[tuple[str, str]] = ()
    wide: bool = False
    task: str = ""


@dataclass(frozen=True)
class CardFile:
    """What a file of `torchrec.report.cards` declares.

    Attributes:
        part: of the page.
        position: within the part, ascending.
        draw: returns the cards; none where there is nothing to show.
    """

    part: Part
    position: int
    draw: Callable[[View], list[Card]]


def of_task(prefix: str) -> str:
    """Return how titles end that are of a task.

    Args:
        prefix: of the names of its metrics.

    Example:
        >>> of_task("click."), of_task("")
        (' of click', '')
    """
    return f" of {prefix.removesuffix('.')}" if prefix else ""


def chart_cards(*charts: Chart | None, task: str = "") -> list[Card]:
    """Return a card for each chart that there is.

    Args:
        *charts: None: there is none.
        task: that they are of, where there are several. Default none.
    """
    return [
        Card(one.title, one.about, one.svg, one.legend, task=task)
        for one in charts
        if one is not None
    ]


def table_html(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> Markup:
    """Return a table: names to the left, numbers to the right.

    Args:
        head: names of the columns.
        rows: name and cells of each.
    """
    titles = Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in head)
    lines = Markup("").join(
        Markup('<tr><th scope="row">{}</th>{}</tr>\n').format(
            name, Markup("").join(Markup("<td>{}</td>").format(cell) for cell in cells)
        )
        for name, cells in rows
    )
    return Markup(
        '<div class="scroll"><table class="wide"><thead><tr>{}</tr></thead>\n<tbody>{}</tbody></table></div>'
    ).format(titles, lines)


def facts_html(facts: Sequence[tuple[str, str]], shown: int | None = None) -> Markup:
    """Return names and values below one another.

    Args:
        facts: name and value of each.
        shown: how many; the rest unfolds. Default: all.
    """
    first, rest = facts[:shown], facts[len(facts) if shown is None else shown :]
    lines = Markup("").join(
        Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(name, value) for name, value in first
    )
    body = Markup('<dl class="counts">{}</dl>').format(lines)
    return body + folded(f"{len(rest)} more", facts_html(rest)) if rest else body


def folded(summary: str, body: Markup) -> Markup:
    """Return what unfolds when its summary is pressed."""
    return Markup("<details><summary>{}</summary>{}</details>").format(summary, body)
