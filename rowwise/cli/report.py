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
    watch: Annotated[
        bool, typer.Option("--watch", help="Write it again and again until the run has ended.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.5, help="Seconds between pages of --watch.")] = 5.0,
    no_predictions: Annotated[
        bool,
        typer.Option(
            "--no-predictions", help="Leave out what needs the model and its data: a second's work."
        ),
    ] = False,
) -> None:
    """Write how a run went as one HTML file.

    It shows how loss, normalised entropy and AUC went, and where overfitting began; what the model
    predicts for the test data (ROC, precision and recall, gain, calibration), by feature value and for
    ids that are rare in training or not there; what each feature is worth; where the time went, what
    the embedding tables hold, and the configuration. A browser is all that it needs. Training writes
    one at its end; this command also does while a run goes on.

    $ torchrec report runs/experiment
    $ torchrec report runs/experiment -o report.html
    $ torchrec report runs/experiment --watch
    """
    from torchrec.report import watch_report, write_report
    from torchrec.runs import RunFolder

    out = console()
    if not watch:
        written = write_report(run, output, predictions=not no_predictions)
        out.print(str(written), style="bold", markup=False)
        return
    page = RunFolder(run).page if output is None else output
    out.print(
        f"Open {page}; it follows the run until its end. Ctrl-C leaves it as it is.", markup=False
    )
    watch_report(run, output, every=every, predictions=not no_predictions)
