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
from torchrec.report.configuration import read_configuration
from torchrec.report.header import Tile, summary, tiles
from torchrec.report.predictions import (
    Predictions,
    best_possible,
    load_trained,
    predict_part,
    shared_files,
)
from torchrec.runs import Run, RunFolder, read_run


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading, and a sentence under it where there is one to say."""

    part: Part
    title: str
    cards: list[Card]
    about: str = ""


_PARTS: tuple[tuple[Part, str], ...] = (
    ("result", "What came of it"),
    ("learning", "How it learned"),
    ("predictions", "What it predicts"),
    ("features", "What it goes by"),
    ("speed", "How fast it was"),
    ("tables", "What it holds"),
    ("configuration", "How it was made"),
)


def write_report(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    predictions: bool = True,
) -> Path:
    """Write the report of a run: one HTML file with all in it, that needs no network.

    Args:
        folder: the folder of the run.
        output: the file to write; by default ``report.html`` in the folder.
        predictions: whether to show what the model predicts, and what it goes by, too. For that it
            predicts for up to 200,000 rows of the test data (or else of the validation data), and
            200,000 times in all with columns permuted. Where the model or the data are not there,
            the page says so. Default True.

    Returns:
        The file.

    Raises:
        ValueError: if the folder is not one of a run.
    """
    run = read_run(folder)
    path = RunFolder(folder).page if output is None else Path(output)
    write_file(path, render(run, RunFolder(folder), predictions=predictions))
    return path


def render(
    run: Run, folder: RunFolder, *, predictions: bool = False, refresh: float | None = None
) -> str:
    """Return the page of a run.

    Args:
        run: as far as it has come.
        folder: of it.
        predictions: whether to show those of a run that has ended, too. Default False.
        refresh: seconds after which a browser reads the file again. Default: it does not.
    """
    notes = [*run.notes, *([] if run.result is None else map(_sentence, run.result.notes))]
    found, why = _predictions(folder) if predictions and folder.has_ended() else (None, "")
    experiment = read_configuration(run.configuration, run.name)
    notes += shared_files(experiment)
    members = [read_run(member.path) for member in folder.members()] if folder.has_ended() else []
    view = View(run, experiment, found, best_possible(experiment), members)
    if not run.lines and not run.scores:
        notes.append("Nothing has been measured yet.")
    return page(
        "page.html",
        title=run.name,
        refresh=refresh,
        notes=notes,
        summary=summary(view, folder),
        split=view.part,
        tiles=tiles(view),
        sections=sections(view, why),
    )


def _sentence(note: str) -> str:
    """Return what training said, as a sentence of its own.

    Example:
        >>> _sentence("on test the model is worse than the mean")
        'On test the model is worse than the mean.'
    """
    return f"{note[:1].upper()}{note[1:]}{'' if note.endswith('.') else '.'}"


def _predictions(folder: RunFolder) -> tuple[Predictions | None, str]:
    """Return what the model of a run predicts, or why that cannot be had."""
    try:
        return predict_part(load_trained(folder)), ""
    except (OSError, ValueError) as error:
        return None, f"What needs predictions is left out. {error}"


def sections(view: View, why: str) -> list[Section]:
    """Return the parts of the page that have anything to show.

    Args:
        view: what is drawn.
        why: there are no predictions; empty where there are, or nobody asked for them.
    """
    found = []
    for part, title in _PARTS:
        about = why if part == "predictions" else ""
        if part in ("predictions", "features") and view.predictions is not None:
            about = view.predictions.sentence() if part == "predictions" else ""
        cards = draw(view, part)
        if cards or about:
            found.append(Section(part, title, cards, about))
    return found


def page(
    template: str,
    *,
    title: str,
    kind: str = "run",
    verdicts: Sequence[str] = (),
    refresh: float | None,
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
        title=title,
        kind=kind,
        verdicts=verdicts,
        refresh=refresh,
        notes=notes,
        summary=summary,
        split=split,
        tiles=tiles,
        sections=sections,
    )


def _seen(value: object) -> object:
    """Return what stands on the page for a value: names as they are, not as they would be read."""
    if not isinstance(value, str):
        return value
    text = printable(value, keep="\n\t")
    return Markup(text) if isinstance(value, Markup) else text


def _resource(name: str) -> str:
    return resources.files("torchrec.report").joinpath(name).read_text("utf-8")
