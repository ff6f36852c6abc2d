"""``torchrec predict``: the probabilities of a trained model for the rows of files."""

from __future__ import annotations

import itertools
import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rowwise.cli.console import console
from rowwise.cli.reading import RANKS_WAIT, open_source, say_counts

if TYPE_CHECKING:
    from torchrec.datasets.parquet_writer import ParquetWriter
    from torchrec.datasets.text_writer import TextWriter


def predict(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of the run.", show_default=False)
    ],
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA",
            help="Parquet, CSV or TSV: files, folders, patterns.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write: Parquet, CSV or TSV.")
    ] = Path("predictions.parquet"),
    keep_columns: Annotated[
        bool, typer.Option("--keep-columns", help="Write the columns of the data as well.")
    ] = False,
    name: Annotated[str, typer.Option(help="Name of the new column.")] = "prediction",
) -> None:
    """Predict the probability of a click for every row, in the order of the data.

    Of several tasks there is a column each, as prediction_click, of one of several classes one a class,
    as prediction_stars_0. The data need the columns of the features, not the label. Memory does not grow
    with the data, and the file appears when it is whole. It is what its suffix says: .parquet, .csv, .tsv,
    the last two also with .gz or .zst. Under torchrun, the ranks predict for tables of rows in turn, and the
    first writes.

    $ torchrec predict runs/experiment new.parquet -o predictions.parquet
    $ torchrec predict runs/experiment 'log/day_*.csv.gz' -o scored.csv.gz --keep-columns
    """
    import pyarrow as pa

    from torchrec.heap import keep_freed_memory
    from torchrec.inference import load
    from torchrec.inference.output_columns import output_columns, output_names
    from torchrec.training.ranks import joined_ranks

    if not name:
        raise ValueError("`--name` should be the name of a column. Received an empty one.")
    writer = writer_of(output)
    keep_freed_memory()
    predictor = load(run)
    source = open_source(data, predictor, run, labelled=False)
    for column in output_names(predictor, name):
        if keep_columns and column in source.schema.names:
            raise ValueError(
                f"The data should have no column '{column}' yet; choose another by `--name`. "
                f"Columns: {', '.join(source.schema.names)}."
            )
    if os.path.realpath(output) in {os.path.realpath(file.path) for file in source.files}:
        raise ValueError(f"`--output` should not be a file of the data. Received '{output}'.")
    kept = source.schema.names if keep_columns else []
    needed = list(dict.fromkeys([*predictor.input_columns, *kept]))
    empty = pa.schema([source.schema.field(column) for column in needed]).empty_table()
    with joined_ranks(RANKS_WAIT) as world, writer if world.rank == 0 else nullcontext() as file:
        rows = 0
        # At least one table, so that a file without rows has its columns, too.
        tables = itertools.chain(source.scan(needed), [empty])
        while turn := list(itertools.islice(tables, world.size)):
            mine = turn[world.rank] if world.rank < len(turn) else empty
            of_ranks = world.each(partial(output_columns, predictor, mine, name), "predictions")
            for table, predicted in zip(turn, of_ranks, strict=False):
                if file is not None and (table.num_rows or not rows):
                    found = table.select(kept)
                    for column in predicted.column_names:
                        found = found.append_column(column, predicted[column])
                    file.write(found)
                rows += table.num_rows
        say_counts(predictor, source, world)
    console().print(f"{rows:,} predictions in {output}", markup=False)


def writer_of(output: Path) -> ParquetWriter | TextWriter:
    """Return what writes a file of the format that its suffix names.

    Args:
        output: the file.

    Raises:
        ValueError: its suffix names none.
    """
    from torchrec.datasets.files import suffixes_of
    from torchrec.datasets.parquet_writer import ParquetWriter
    from torchrec.datasets.text_writer import TextWriter

    format, compression = suffixes_of(str(output))
    if format is None or (format == "parquet" and compression):
        raise ValueError(
            "`--output` should end in '.parquet', '.csv' or '.tsv', the last two also with '.gz' or "
            f"'.zst'. Received '{output}'."
        )
    return ParquetWriter(output) if format == "parquet" else TextWriter(output)
