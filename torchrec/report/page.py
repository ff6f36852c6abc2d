"""What the page of a run shows, and in which order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from torchrec.checks import printable
from torchrec.files import write_file
from torchrec.report.card import Card, Part, View
from torchrec.report.cards import draw
from torchrec.report.cards.learning import overfitting
from torchrec.report.configuration import read_configuration
from torchrec.report.header import Tile, summary, tiles
from torchrec.runs import Run, RunFolder, read_run


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading, and a sentence under it where there is one to say."""

    part: Part
    title: str
    cards: list[Card]
    about: str = ""


_PARTS: tuple[tuple[Part, str], ...] = (
    ("learning", "How it learned"),
    ("predictions", "What it predicts"),
    ("features", "What it goes by"),
    ("speed", "How fast it was"),
    ("tables", "What it holds"),
    ("configuration", "How it was made"),
)


def write_report(
    folder: str | os.PathLike[str], output: str | os.PathLike[str] | None = None
) -> Path:
    """Write the report of a run: one HTML file with all in it, that needs no network.

    Args:
        folder: the folder of the run.
        output: the file to write; by default ``report.html`` in the folder.

    Returns:
        The file.

    Raises:
        ValueError: if the folder is not one of a run.
    """
    run = read_run(folder)
    path = RunFolder(folder).page if output is None else Path(output)
    write_file(path, render(run, RunFolder(folder)))
    return path


def render(run: Run, folder: RunFolder) -> str:
    """Return the page of a run."""
    view = View(run, read_configuration(run.configuration, run.name))
    notes = list(run.notes)
    found = overfitting(run)
    if found is not None:
        notes.append(found.sentence())
    if not run.lines and not run.scores:
        notes.append("Nothing has been measured yet.")
    split, shown = tiles(run)
    return page(
        "page.html",
        title=run.name,
        notes=notes,
        summary=summary(view, folder),
        split=split,
        tiles=shown,
        sections=sections(view),
    )


def sections(view: View) -> list[Section]:
    """Return the parts of the page that have anything to show."""
    found = [Section(part, title, draw(view, part)) for part, title in _PARTS]
    return [section for section in found if section.cards or section.about]


def page(
    template: str,
    *,
    title: str,
    notes: Sequence[str],
    summary: Sequence[tuple[str, str]],
    split: str,
    tiles: Sequence[Tile],
    sections: Sequence[Section],
) -> str:
    """Return a page, whole: style, script and drawings are in it."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_resource),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_seen,
    )
    return environment.get_template(template).render(
        title=title, notes=notes, summary=summary, split=split, tiles=tiles, sections=sections
    )


def _seen(value: object) -> object:
    """Return what stands on the page for a value: names as they are, not as they would be read."""
    if not isinstance(value, str):
        return value
    text = printable(value, keep="\n\t")
    return Markup(text) if isinstance(value, Markup) else text


def _resource(name: str) -> str:
    return resources.files("torchrec.report").joinpath(name).read_text("utf-8")
