"""``torchrec train``: train what an experiment file describes."""

from __future__ import annotations

import json
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
        Path | None,
        typer.Argument(
            metavar="EXPERIMENT", help="The experiment file.", show_default="that of --from"
        ),
    ] = None,
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
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="A run to train on from: its weights, vocabularies and maps of ids.",
            show_default="anew",
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
    $ torchrec train --from runs/first -o runs/second data.train=new.parquet
    """
    from torchrec.experiment.files import load_experiment
    from torchrec.report import write_report
    from torchrec.runs import RunFolder
    from torchrec.training.run import run_experiment

    changes = list(overrides or ())
    if start is not None:
        # Without a file, the first override is in its place.
        if experiment is None or (not experiment.exists() and "=" in str(experiment)):
            changes = changes if experiment is None else [str(experiment), *changes]
            experiment = RunFolder(start).experiment
        changes.append(f"continue_from={json.dumps(str(start.resolve()))}")
    if experiment is None:
        raise ValueError(
            "`EXPERIMENT` should be the experiment file, unless with --from. Received none."
        )
    loaded = load_experiment(experiment, changes)
    folder = Path(loaded.output) if output is None else output
    with stopping(folder):
        run_experiment(loaded, folder, resume=resume)
    if not is_first_rank():
        return
    run = RunFolder(folder)
    for member in run.members():
        write_report(member.path)
    report = write_report(folder)
    show_summary(run)
    out = console()
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
