"""``torchrec demo``: all of it, on generated data."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer
from rich.markup import escape

from rowwise.cli.console import console

_COMMANDS = (
    "torchrec data synthetic -o clicks --rows {rows}",
    "torchrec init clicks/train.parquet --valid clicks/valid.parquet --test clicks/test.parquet"
    " --label click --exclude click_probability",
    "torchrec train experiment.yaml -o runs/demo model.name=dlrm model.dim=16 model.batch_norm=false"
    " training.epochs={epochs} training.embedding_learning_rate=0.01 training.log_every=20 training.evaluate_every=200",
    "torchrec evaluate runs/demo clicks/test.parquet",
    "torchrec predict runs/demo clicks/test.parquet -o predictions.parquet --keep-columns",
    "torchrec report runs/demo",
)


def demo(
    context: typer.Context,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="An empty or new folder.", show_default="a temporary one"
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=10_000, help="Impressions to generate.")] = 4_000_000,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training data.")] = 1,
) -> None:
    """Generate a click log, train on it, predict, report: less than three minutes on two cores.

    Each command is shown before it runs, to be repeated with data of one's own. The log has known
    click probabilities, so that the result can be compared with the best possible one.

    $ torchrec demo
    $ torchrec demo -o my-demo --rows 200000
    """
    from torchrec.runs import RunFolder

    start = perf_counter()
    folder = Path(tempfile.mkdtemp(prefix="torchrec-demo-")) if output is None else output
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"`--output` should be an empty or new folder. Received '{folder}'.")
    out = console()
    out.print(f"[bold green]$[/] cd {escape(str(folder))}")
    torchrec = context.find_root().command
    with _inside(folder):
        for template in _COMMANDS:
            command = template.format(rows=rows, epochs=epochs)
            out.print(f"\n[bold green]$[/] [bold]{command}[/]")
            code = torchrec.main(
                shlex.split(command)[1:], prog_name="torchrec", standalone_mode=False
            )
            if code:  # Ctrl-C
                raise typer.Exit(code)
        _compare(Path("clicks/test.parquet"), Path("runs/demo"))
    out.print(
        f"\nAll of it took {perf_counter() - start:.0f} s. Open {RunFolder(folder / 'runs/demo').page}",
        markup=False,
    )


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _compare(test: Path, run: Path) -> None:
    """Say how far the model is from the best possible one, on the same rows."""
    from torchrec.datasets.synthetic import read_limits
    from torchrec.runs import RunFolder, numbers_of

    limits = read_limits(test)
    assert limits is not None
    reached = numbers_of(RunFolder(run).read_result().test)
    console().print(
        f"\nOn the {limits.rows:,} rows of the test the model reaches an AUC of "
        f"[bold]{reached['auc']:.4f}[/]; who knew every click probability would reach "
        f"{limits.auc:.4f}: [bold]{limits.auc - reached['auc']:.4f}[/] more. "
        f"NE {reached['ne']:.4f}, best possible {limits.ne:.4f}."
    )
