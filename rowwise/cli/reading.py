"""What the commands that ask a model read, and what they say about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rowwise.cli.console import console

if TYPE_CHECKING:
    from torchrec.datasets.files import DataFile
    from torchrec.datasets.source import TableSource
    from torchrec.datasets.text_dialect import TextDialect
    from torchrec.inference import Predictor
    from torchrec.training.world import World

_ODD = ("missing", "infinite", "nulls", "unknown", "truncated")
RANKS_WAIT = 600.0  # seconds that a rank waits for one that gives no sign of life


def open_source(
    data: Sequence[str],
    predictor: Predictor,
    run: Path,
    drop: str | None = None,
    *,
    labelled: bool = True,
) -> TableSource:
    """Return the rows of files that are like those a model was trained on.

    Args:
        data: files, folders or patterns. Where their names do not tell the format, it is that of the
            training data.
        predictor: the model. Text files tell neither types nor, without a header, names; it does.
        run: the folder of the model; beside it is kept what the query of the experiment gives.
        drop: expression of the rows to leave out.
        labelled: whether the label is to be read. Without it there may be no row, and files without a
            header may lack its columns. Default True.
    """
    from torchrec.datasets.files import resolve_files, suffixes_of
    from torchrec.datasets.source import TableSource
    from torchrec.experiment.tables import cache_folder, is_made, made, strings_of

    section = predictor.experiment.data
    types = strings_of(predictor.text_types) | section.types
    section = section.model_copy(update={"types": types, "cache": False})  # they are read once
    told = all(suffixes_of(path)[0] for path in data)
    files = resolve_files(data, "auto" if told else section.format)
    if is_made(section, files):
        features = predictor.experiment.features
        files = made(section, files, cache_folder(run), features=features)
    if files[0].format == "parquet":
        source = TableSource(files, drop=drop, may_be_empty=not labelled)
    else:
        source = TableSource(
            files,
            dialect=section.dialect
            if labelled
            else replace(section.dialect, columns=_columns(files[0], predictor)),
            drop=drop,
            schema=predictor.text_types,
            assumed=predictor.number_types,
            may_be_empty=not labelled,
        )
    predictor.require(source.names)
    return source


def open_beside(data: Sequence[str], predictor: Predictor, run: Path) -> TableSource:
    """Return the rows of files that have some of the columns that a model reads, such as those of users.

    They are read as they are, without the query of the experiment. Text has a header, unless it has
    the columns of the training data, and is written as these are but for its delimiter.

    Args:
        data: files, folders or patterns.
        predictor: the model.
        run: the folder of the model; beside it is kept what JSON becomes.
    """
    from torchrec.datasets.files import resolve_files
    from torchrec.datasets.source import TableSource
    from torchrec.experiment.tables import cache_folder, made

    section = predictor.experiment.data
    files = resolve_files(data, "auto")
    if files[0].format == "json":
        as_it_is = section.model_copy(
            update={"query": None, "join": {}, "tables": {}, "histories": {}}
        )
        files = made(as_it_is, files, cache_folder(run))
    if files[0].format == "parquet":
        return TableSource(files, may_be_empty=True)
    return TableSource(
        files,
        dialect=_dialect_beside(files[0], section.dialect),
        schema=predictor.text_types,
        assumed=predictor.number_types,
        may_be_empty=True,
    )


def _dialect_beside(file: DataFile, dialect: TextDialect) -> TextDialect:
    """Return how a text file is written that has other columns than the training data, or the same."""
    from torchrec.datasets.layout import find_layout

    if dialect.columns is not None and len(_first_fields(file, dialect)) == len(dialect.columns):
        return dialect
    layout = find_layout(file, encoding=dialect.encoding)
    return replace(dialect, columns=None, delimiter=layout.delimiter)


def _first_fields(file: DataFile, dialect: TextDialect) -> list[str]:
    from torchrec.datasets.headers import delimiter_of, read_header, split_header
    from torchrec.datasets.text_dialect import recoded_from

    header = read_header(file, recoded_from(dialect.encoding))[0]
    delimiter = dialect.delimiter or delimiter_of(file.format)
    return split_header(header, file, delimiter, dialect.quote)


def _columns(file: DataFile, predictor: Predictor) -> list[str] | None:
    """Return the names of the columns of a file without a header, which may lack those of the label alone."""
    section = predictor.experiment.data
    if section.columns is None:
        return None
    transform = predictor.transform
    label = {*transform.columns} - {*predictor.input_columns}
    without = [name for name in section.columns if name not in label]
    found = _first_fields(file, section.dialect)
    return without if len(found) == len(without) else section.columns


def say_counts(predictor: Predictor, source: TableSource, world: World) -> None:
    """Print what was odd about the data, a line for each feature and table, and of their text.

    Args:
        predictor: has read this rank's share of the data.
        source: the data.
        world: the ranks.
    """
    out = console()
    for notice in source.notices:
        out.print(notice, style="yellow", markup=False)
    (features, tables), *others = world.gather(predictor.counts(), "counts of ids")
    for more, ids in others:
        features = {name: count + more[name] for name, count in features.items()}
        tables = {name: count + ids[name] for name, count in tables.items()}
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
