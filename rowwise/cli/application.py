"""All commands, put together."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated

import typer
from rich.markup import escape

from rowwise.cli.compare import compare
from rowwise.cli.console import console
from rowwise.cli.data import criteo, movielens, synthetic
from rowwise.cli.demo import demo
from rowwise.cli.evaluate import evaluate
from rowwise.cli.export import export
from rowwise.cli.flags import Command, Group, LoneCommand
from rowwise.cli.info import info
from rowwise.cli.info import version as version_of
from rowwise.cli.init import init
from rowwise.cli.parity import parity
from rowwise.cli.plan import plan
from rowwise.cli.predict import predict
from rowwise.cli.quantize import quantize
from rowwise.cli.recommend import recommend
from rowwise.cli.report import report
from rowwise.cli.serve import serve
from rowwise.cli.train import train
from rowwise.cli.tune import tune

# What processes that torchrun has started do together, and what any of them may say.
_SHARED = (train, evaluate, predict, info)


def application() -> typer.Typer:
    """Return the command line application."""
    data = typer.Typer(
        cls=Group,
        no_args_is_help=True,
        help="Make Parquet files to train on: generated, of MovieLens, of Criteo.",
    )
    _add(data, synthetic, movielens, criteo)
    app = typer.Typer(
        name="torchrec",
        cls=Group,
        invoke_without_command=True,  # with the page that says how to begin
        add_completion=False,  # it would wait for the import of PyTorch
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(help=_help_of(_torchrec))(_torchrec)
    _add(app, init, train, tune, evaluate, predict, quantize, export, parity)
    _add(app, serve, recommend, report, compare, plan)
    app.add_typer(data, name="data")
    _add(app, demo, info)
    return app


def _add(app: typer.Typer, *commands: Callable[..., None]) -> None:
    for command in commands:
        kind = Command if command in _SHARED else LoneCommand
        app.command(cls=kind, help=_help_of(command))(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        console().print(f"rowwise {version_of()}", markup=False)
        raise typer.Exit


def _torchrec(
    context: typer.Context,
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
    if context.invoked_subcommand is None:
        _say_how_to_begin(context)


_FIRST_STEPS = (
    ("torchrec demo", "all of it, on generated data"),
    ("torchrec init clicks.parquet --label click", "look at your data, write experiment.yaml"),
    ("torchrec train experiment.yaml", "train; the run and its report go to runs/experiment"),
    ("torchrec predict runs/experiment new.parquet", "score other rows with it"),
)


def _say_how_to_begin(context: typer.Context) -> None:
    out = console()
    out.print(f"[bold]rowwise {version_of()}[/]: {_summary_of(context.command.help)}\n")
    width = max(len(command) for command, _ in _FIRST_STEPS)
    for command, what in _FIRST_STEPS:
        out.print(f"  {command:{width}}   [dim]{what}[/]")
    names = context.command.list_commands(context)  # type: ignore[attr-defined]
    out.print(f"\nCommands: {', '.join(names)}.", markup=False)
    out.print("torchrec --help says what each does; torchrec COMMAND --help, how.", markup=False)


def _summary_of(text: str | None) -> str:
    """Return the first paragraph of a help."""
    return (text or "").partition("\n\n")[0]


def _help_of(command: Callable[..., None]) -> str:
    """Return the docstring as help: paragraphs flow, lines of examples stay lines."""
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    return "\n\n".join(
        escape(text).replace("$ ", "[dim]$[/] ") if text.startswith("$") else _flowing(text)
        for text in paragraphs
    )


def _flowing(text: str) -> str:
    return escape(" ".join(text.split()))
