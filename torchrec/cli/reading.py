"""What the commands that ask a model read, and what they say about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from torchrec.cli.console import console

if TYPE_CHECKING:
    from torchrec.datasets.source import TableSource
    from torchrec.inference import Predictor

_ODD = ("missing", "infinite", "nulls", "unknown", "truncated")


def open_source(data: Sequence[str], predictor: Predictor, drop: str | None = None) -> TableSource:
    """Return the rows of files that are like those a model was trained on.

    Args:
        data: files, folders or patterns.
        predictor: the model. Text files tell neither types nor, without a header, names; it does.
        drop: expression of the rows to leave out.
    """
    from torchrec.datasets.files import resolve_files
    from torchrec.datasets.source import TableSource

    files = resolve_files(data)
    if files[0].format == "parquet":
        source = TableSource(files, drop=drop)
    else:
        section = predictor.experiment.data
        source = TableSource(
            files,
            columns=section.columns,
            delimiter=section.delimiter,
            drop=drop,
            schema=predictor.text_types,
            assumed=predictor.number_types,
        )
    predictor.require(source.names)
    return source


def say_counts(predictor: Predictor) -> None:
    """Print what was odd about the data, a line for each feature and table."""
    out = console()
    features, tables = predictor.counts()
    for name, counts in features.items():
        odd = [
            f"{count:,} {what}" for what, count in asdict(counts).items() if count and what in _ODD
        ]
        if odd:
            out.print(f"{name}: {', '.join(odd)}", style="dim", markup=False)
    hashed = {table.name for table in predictor.transform.tables if table.ids == "hash"}
    for name, count in tables.items():
        if count:
            what = "hashed" if name in hashed else "out of range"
            out.print(f"table {name}: {count:,} {what}", style="dim", markup=False)
