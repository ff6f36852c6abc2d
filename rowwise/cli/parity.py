"""``torchrec parity``: whether another form of a model says the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rowwise.cli.console import console, table
from rowwise.cli.reading import open_source

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa


def parity(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of the run.", show_default=False)
    ],
    other: Annotated[
        Path,
        typer.Argument(
            metavar="EXPORT", help="An export of it, or another bundle.", show_default=False
        ),
    ],
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA",
            help="Parquet, CSV or TSV: files, folders, patterns.",
            show_default=False,
        ),
    ],
    tolerance: Annotated[
        float, typer.Option(min=0, help="By how much predictions may differ.")
    ] = 1e-6,
    rows: Annotated[int, typer.Option(min=1, help="Rows to compare, the first.")] = 10_000,
) -> None:
    """Replay rows on a model and on its export, and say where they differ.

    The export is asked by what its model.json says, as a service asks it, so that a difference of inputs shows as well.
    By feature: rows with other numbers or ids, the greatest difference of vectors (between bundles, as of a quantised
    one), and that of predictions where all other features are missing. The exit code is 1 if predictions differ by more
    than the tolerance, or inputs at all.

    $ torchrec parity runs/experiment exported test.parquet
    $ torchrec parity runs/experiment runs/experiment/model-int8 test.parquet --tolerance 0.01
    """
    from torchrec.inference import load
    from torchrec.inference.parity import compare

    predictor = load(run)
    source = open_source(data, predictor, run, labelled=False)
    found = compare(
        predictor, other, _first(source.scan(predictor.input_columns), rows), tolerance=tolerance
    )
    out = console()
    head = ["feature", "inputs that differ", "vectors, at most", "predictions of it alone, at most"]
    out.print(
        table(
            head,
            [
                [
                    name,
                    f"{one.inputs:,}",
                    "" if one.vectors is None else f"{one.vectors:.2g}",
                    f"{one.alone:.2g}",
                ]
                for name, one in found.features.items()
            ],
        )
    )
    worst = "" if not found.greatest else f", in row {found.worst:,}"
    out.print(
        f"\n{found.rows:,} rows: predictions differ by {found.greatest:.2g} at most{worst}; {found.beyond:,} by "
        f"more than {tolerance:g}. {'The same.' if found.holds else 'Not the same.'}",
        style="bold",
        markup=False,
    )
    if not found.holds:
        raise typer.Exit(1)


def _first(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Give the first rows of tables."""
    for part in tables:
        yield part.slice(0, rows)
        rows -= part.num_rows
        if rows <= 0:
            return
