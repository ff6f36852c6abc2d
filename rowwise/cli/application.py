"""All commands, put together."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated

import typer
from rich.markup import escape

from rowwise.cli.console import console
from rowwise.cli.data import criteo, movielens, synthetic
from rowwise.cli.demo import demo
from rowwise.cli.evaluate import evaluate
from rowwise.cli.info import info
from rowwise.cli.info import version as version_of
from rowwise.cli.init import init
from rowwise.cli.predict import predict
from rowwise.cli.report import report
from rowwise.cli.train import train


def application() -> typer.Typer:
    """Return the command line application."""
    data = typer.Typer(
        no_args_is_help=True,
        help="Make Parquet files to train on: generated, of MovieLens, of Criteo.",
    )
    _add(data, synthetic, movielens, criteo)
    app = typer.Typer(
        name="torchrec",
        no_args_is_help=True,
        add_completion=False,  # it would wait for the import of PyTorch
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(help=_help_of(_torchrec))(_torchrec)
    _add(app, init, train, evaluate, predict, report)
    app.add_typer(data, name="data")
    _add(app, demo, info)
    return app


def _add(app: typer.Typer, *commands: Callable[..., None]) -> None:
    for command in commands:
        app.command(help=_help_of(command))(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        console().print(f"rowwise {version_of()}", markup=False)
        raise typer.Exit


def _torchrec(
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show the traceback of an error; behind any command as well."),
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """From a file of clicks to a trained, evaluated and queried ranking model.

    $ torchrec init clicks.parquet --label click
    $ torchrec train experiment.yaml
    $ torchrec predict runs/experiment new.parquet -o predictions.parquet

    All of it on generated data: torchrec demo. More about a command, with examples: torchrec COMMAND
    --help.
    """


def _help_of(command: Callable[..., None]) -> str:
    """Return the docstring as help: paragraphs flow, lines of examples stay lines."""
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    return "\n\n".join(
        escape(text).replace("$ ", "[dim]$[/] ") if text.startswith("$") else _flowing(text)
        for text in paragraphs
    )


def _flowing(text: str) -> str:
    return escape(" ".join(text.split()))
