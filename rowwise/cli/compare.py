"""``torchrec compare``: runs beside one another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rowwise.cli.console import console, table

_SHOWN = 30  # keys that differ


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of runs, two or more.", show_default=False),
    ],
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write a page as well, with the curves of all runs."),
    ] = None,
    rows: Annotated[
        int, typer.Option(min=1_000, help="Rows predicted for at most, evenly chosen.")
    ] = 1_000_000,
) -> None:
    """Say whether runs differ, in their metrics and in what was asked for.

    Their models predict for their test data again (or else for the validation data). Metrics get
    intervals of 95 %, and so do their differences to the first run; runs that were tested on the same
    rows are compared row by row. A sentence says what came of each task.

    $ torchrec compare runs/before runs/after
    $ torchrec compare runs/a runs/b runs/c --html compare.html
    """
    from torchrec.report import compare_runs, write_comparison
    from torchrec.report.comparison_page import difference_rows, metric_rows

    out = console()
    found = compare_runs(runs, most=rows)
    names = [one.name for one in found.contenders]
    out.print(
        table(
            [f"{found.part} data", *names], [[name, *cells] for name, cells in metric_rows(found)]
        )
    )
    out.print()
    differences = [[name, *cells] for name, cells in difference_rows(found)]
    if differences:
        out.print(table([f"above {names[0]}", *names[1:]], differences))
        out.print()
    if found.differing:
        keys = [[key, *values] for key, values in found.differing[:_SHOWN]]
        out.print(table(["keys that differ", *names], keys))
        if len(found.differing) > _SHOWN:
            out.print(f"{len(found.differing) - _SHOWN} more; --html shows all.", style="dim")
        out.print()
    elif all(one.keys for one in found.contenders):
        out.print("All keys of their experiments are the same.\n", markup=False)
    for verdict in found.verdicts:
        out.print(verdict.sentence, style="bold", markup=False)
    for note in found.notes:
        out.print(note, style="dim", markup=False)
    if html is not None:
        out.print(str(write_comparison(found, html)), markup=False)
