"""``torchrec report``: the HTML report of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rowwise.cli.console import console


def report(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="Folder of a run, as `torchrec train` makes it.", show_default=False
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The HTML file.", show_default="RUN/report.html"),
    ] = None,
) -> None:
    """Write how a run went as one HTML file.

    It shows how loss, normalised entropy and AUC went, the calibration, where the time went, what
    the embedding tables hold, and the configuration. A browser is all that it needs. Training writes
    one at its end; this command also does while a run goes on.

    $ torchrec report runs/experiment
    $ torchrec report runs/experiment -o report.html
    """
    from torchrec.report import write_report

    console().print(str(write_report(run, output)), style="bold", markup=False)
