"""``torchrec train``: train what an experiment file describes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from rowwise.cli.console import console, is_first_rank
from rowwise.cli.stopping import stopping
from rowwise.cli.summary import show_summary


def train(
    experiment: Annotated[
        Path,
        typer.Argument(metavar="EXPERIMENT", help="The experiment file.", show_default=False),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SECTION.KEY=VALUE",
            help="Values that replace those of the file, as training.epochs=3; null: the default.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder of the run.",
            show_default="`output` of the file, or runs/ and its name",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of the run.")
    ] = False,
) -> None:
    """Train a model, evaluate it and save it.

    The folder of the run gets the model, its metrics over time, its result and a report. A run that
    was stopped, by Ctrl-C, SIGTERM or a crash, goes on from its last checkpoint with --resume.

    $ torchrec train experiment.yaml
    $ torchrec train experiment.yaml -o runs/wide model.dim=32 training.epochs=2
    $ torchrec train experiment.yaml -o runs/wide --resume
    """
    from torchrec.experiment.files import load_experiment
    from torchrec.report import write_report
    from torchrec.runs import RunFolder
    from torchrec.training.run import run_experiment

    loaded = load_experiment(experiment, overrides or ())
    folder = Path(loaded.output) if output is None else output
    out = console()
    if loaded.features is None and not resume:
        out.print(
            f"{experiment} has no features: they are inferred from the data, and written to "
            f"{RunFolder(folder).experiment}.",
            markup=False,
        )
    with stopping(folder):
        run_experiment(loaded, folder, resume=resume)
    if not is_first_rank():
        return
    run = RunFolder(folder)
    for member in run.members():
        write_report(member.path)
    report = write_report(folder)
    show_summary(run)
    out.print(
        f"\nThe run is in [bold]{escape(str(folder))}[/], its report is {escape(str(report))}. Next:"
    )
    if run.members() and not run.model.is_dir():
        folder = run.members()[0].path
    for command in (
        "evaluate {} OTHER_DATA",
        "predict {} NEW_DATA -o predictions.parquet",
    ):
        out.print(f"  torchrec {command.format(shlex.quote(str(folder)))}", markup=False)
