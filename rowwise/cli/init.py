"""``torchrec init``: look at data and write an experiment file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from rowwise.cli.console import console, table

if TYPE_CHECKING:
    from torchrec.datasets.files import DataFile
    from torchrec.datasets.layout import Layout
    from torchrec.datasets.source import TableSource
    from torchrec.datasets.text_dialect import TextDialect
    from torchrec.experiment.propose import Inference
    from torchrec.experiment.rows import SampledNegativesSection
    from torchrec.experiment.schema import DataSection

Format = Literal["auto", "parquet", "csv", "tsv", "json"]
Quote = Literal['"', "none"]
BadLines = Literal["refuse", "skip"]


def init(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA",
            help="Parquet, CSV, TSV or other text: files, folders, patterns.",
            show_default=False,
        ),
    ],
    label: Annotated[
        str | None,
        typer.Option(help="Column of 0 and 1, or an expression over columns. Needed."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path(
        "experiment.yaml"
    ),
    valid: Annotated[
        list[str] | None, typer.Option(help="Files to validate on; repeatable.")
    ] = None,
    test: Annotated[list[str] | None, typer.Option(help="Files to test on; repeatable.")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Columns that are no features: a,b; repeatable.")
    ] = None,
    drop: Annotated[str | None, typer.Option(help="Expression of the rows to leave out.")] = None,
    columns: Annotated[
        str | None,
        typer.Option(help="Names of the columns of text files without a header: a,b,c."),
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(help="Between the columns of text files, if the header does not show it."),
    ] = None,
    quote: Annotated[
        Quote, typer.Option(help="none: a quote in text files encloses nothing.")
    ] = '"',
    encoding: Annotated[
        str | None, typer.Option(help="Of text files, as latin-1. Default: found out.")
    ] = None,
    bad_lines: Annotated[
        BadLines, typer.Option(help="What becomes of lines with more or fewer values.")
    ] = "refuse",
    query: Annotated[
        str | None,
        typer.Option(help="SQL that gives the samples, over `data` and the tables of --table."),
    ] = None,
    table: Annotated[
        list[str] | None,
        typer.Option("--table", help="A table for --query: name=file; repeatable."),
    ] = None,
    draw_negatives: Annotated[
        str | None,
        typer.Option(
            help="Where every row happened: USER:ITEM,... draws other items for the user of each row; "
            "columns behind the item's go with it."
        ),
    ] = None,
    format: Annotated[
        Format, typer.Option(help="Of the files, if their names do not end as it.")
    ] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Look at data and write an experiment file to start from.

    Every column becomes a feature or is left out, with the reason beside it. Read the file before
    training: what only becomes known after the click is no feature.

    $ torchrec init clicks.parquet --label click
    $ torchrec init 'log/day_*.csv.gz' --label click --exclude revenue -o day.yaml
    $ torchrec init ratings.parquet --label 'rating > 3' --drop 'rating == 3'
    $ torchrec init ml-100k/u.data --label 'rating > 3'
    $ torchrec init log.tsv.gz --columns click,user,shop,price --label click
    $ torchrec init purchases.csv --draw-negatives user_id:item_id,price
    $ torchrec init log.csv --label click --table shops=s.csv --query 'from data join shops using (shop)'
    """
    from torchrec.datasets.files import resolve_files
    from torchrec.experiment.propose import write_experiment

    text = _without_suffix(data) if format == "auto" else None
    format = format if text is None else "csv"
    files = resolve_files(data, format)
    notice = text and f"'{text}' is read as text with a header."
    dialect = _dialect(columns, delimiter, quote, encoding, bad_lines)
    if files[0].format in ("csv", "tsv"):
        dialect = _found_out(files, None if query else label, dialect, encoding is None, notice)
    paths = {"train": data, "valid": valid or [], "test": test or []}
    section = _section(paths, format, label, drop, query, table or [], dialect)
    section.sampled_negatives = _sampled(draw_negatives)
    source, inference = _inferred(section, label, exclude or [], output)
    section = section.model_copy(update={"label": inference.label})
    write_experiment(output, inference, section, overwrite=overwrite)
    _say(*source.notices)
    _show(inference, output)


def _dialect(
    columns: str | None,
    delimiter: str | None,
    quote: Quote,
    encoding: str | None,
    bad_lines: BadLines,
) -> TextDialect:
    """Return how text files are written, as far as it was given."""
    from torchrec.datasets.text_dialect import TextDialect

    return TextDialect(
        columns=None if columns is None else [name.strip() for name in columns.split(",")],
        delimiter="\t" if delimiter == r"\t" else delimiter,  # what a shell makes of it
        quote=quote,
        encoding=encoding or "utf-8",
        bad_lines=bad_lines,
    )


def _section(
    paths: Mapping[str, list[str]],
    format: Format,
    label: str | None,
    drop: str | None,
    query: str | None,
    tables: Sequence[str],
    dialect: TextDialect,
) -> DataSection:
    """Return what was given as a section of the experiment, checked; its label is asked for later."""
    from torchrec.experiment.rows import TableSection
    from torchrec.experiment.schema import DataSection

    named = dict(one.partition("=")[::2] for one in tables)
    if not all(name.isidentifier() and file for name, file in named.items()):
        raise ValueError(
            f"`--table` should be a name and a file, as shops=shops.csv. Received '{tables[0]}'."
        )
    return DataSection(
        train=paths["train"],
        valid=paths["valid"],
        test=paths["test"],
        format=format,
        label=label or "label",
        drop=drop,
        query=query,
        tables={name: TableSection(files=[file]) for name, file in named.items()},
        **asdict(dialect),
    )


def _inferred(
    section: DataSection, label: str | None, exclude: Sequence[str], output: Path
) -> tuple[TableSource, Inference]:
    """Return the data, and what was found out about them."""
    from torchrec.datasets.source import TableSource
    from torchrec.experiment.propose.label import require_label
    from torchrec.experiment.sources import with_drawn_negatives

    files = _rows(section, section.train, output)
    dialect = section.dialect if files[0].format != "parquet" else None
    source = TableSource(files, drop=section.drop, dialect=dialect)
    source = with_drawn_negatives(source, section)
    if label is None and section.sampled_negatives is not None:
        label = section.sampled_negatives.column
    label = require_label(source, label)
    given = (section.valid, section.test)
    others = [source.over(_rows(section, paths, output)) for paths in given if paths]
    excluded = _names(exclude, source.schema.names)
    return source, _without(_looked_at(source, label, section.drop, others), excluded)


def _sampled(given: str | None) -> SampledNegativesSection | None:
    """Return what ``user:item,price`` means."""
    from torchrec.experiment.rows import SampledNegativesSection

    if given is None:
        return None
    user, _, items = given.partition(":")
    names = [name.strip() for name in items.split(",")]
    if not user.strip() or not all(names):
        raise ValueError(
            "`--draw-negatives` should be a column of users and one of items, as user_id:item_id, and maybe "
            f"further columns of the item, as user_id:item_id,price. Received '{given}'."
        )
    return SampledNegativesSection(user=user.strip(), item=names)


def _rows(section: DataSection, paths: Sequence[str], output: Path) -> list[DataFile]:
    """Return the files of some paths, or that of what the query makes of them."""
    from torchrec.datasets.files import resolve_files
    from torchrec.experiment.tables import cache_folder, is_made, made

    files = resolve_files(paths, section.format)
    if not is_made(section, files):
        return files
    with console().status("Running the query") as status:
        folder = cache_folder(f"runs/{output.stem}")
        return made(section, files, folder, lambda done: status.update(done.capitalize()))


def _looked_at(
    source: TableSource, label: str, drop: str | None, others: Sequence[TableSource]
) -> Inference:
    from torchrec.experiment.propose import infer_features

    with console().status("Looking at the data") as status:
        return infer_features(
            source,
            label,
            drop,
            others=others,
            progress=lambda rows: status.update(f"Looking at the data: {rows:,} rows"),
        )


def _names(given: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Return the names that were given one by one, or with commas where no column has that name."""
    return [
        name.strip() if one not in columns else one
        for one in given
        for name in ([one] if one in columns else one.split(","))
    ]


def _say(*notices: str) -> None:
    for notice in notices:
        if notice:
            console().print(notice, style="yellow", markup=False)


def _encoding_of(file: DataFile) -> str:
    """Return the encoding that a text file seems to have, and say so where it is not the usual one."""
    from torchrec.datasets.headers import find_encoding

    found = find_encoding(file)
    if found != "utf-8":
        _say(
            f"'{file.path}' is no UTF-8, and read as {found} (`data.encoding`); others are given with "
            "`--encoding`."
        )
    return found


def _found_out(
    files: list[DataFile],
    label: str | None,
    given: TextDialect,
    find_encoding: bool,
    notice: str | None,
) -> TextDialect:
    """Return how text files are written, and say what a person should look at.

    Args:
        files: the data.
        label: as it was given.
        given: what was given.
        find_encoding: whether the encoding is to be found out as well.
        notice: to be said, unless more is to be said of the layout.
    """
    from torchrec.datasets.source import TableSource
    from torchrec.experiment.propose.label import columns_of_label
    from torchrec.experiment.propose.number_form import number_form_of
    from torchrec.experiment.propose.time_form import time_form_of

    read = [] if label is None else columns_of_label(label)
    if find_encoding:
        given = replace(given, encoding=_encoding_of(files[0]))
    layout = _layout_of(files[0], given, read)
    dialect = replace(given, columns=layout.columns, delimiter=given.delimiter or layout.delimiter)
    source = TableSource(files, dialect=dialect)
    numbers, times = number_form_of(source), time_form_of(source)
    _say(layout.notice or notice or "", numbers.notice, times.notice)
    return replace(
        dialect, decimal=numbers.decimal, missing=list(numbers.missing), times=list(times.times)
    )


def _layout_of(file: DataFile, given: TextDialect, read: list[str]) -> Layout:
    from torchrec.checks import did_you_mean
    from torchrec.datasets.layout import find_layout

    layout = find_layout(file, given.delimiter, given.columns, read, given.encoding)
    missing = [name for name in read if name not in (layout.columns or read)]
    if layout.notice and missing:
        near = did_you_mean(missing[0], layout.columns or [], quote="`") or "."
        raise ValueError(
            f"`--label` should read columns of the data. Received '{missing[0]}'{near} {layout.notice}"
        )
    return layout


def _without_suffix(data: Sequence[str]) -> str | None:
    """Return the name of a file that does not say what it is, as ``u.data``; None if all do."""
    from torchrec.datasets.files import suffixes_of

    unknown = (one for one in data if Path(one).is_file() and suffixes_of(one)[0] is None)
    return next(unknown, None)


def _without(inference: Inference, excluded: Sequence[str]) -> Inference:
    from torchrec.checks import nearest

    names = [column.name for column in inference.columns]
    for name in excluded:
        if name not in names:
            near = nearest(name, names) or names[0]
            raise ValueError(
                f"`--exclude` should name a column of the data, such as '{near}'. "
                f"Received '{name}'."
            )
    columns = [
        replace(column, feature=None, reason="excluded", gives_away=False)
        if column.name in excluded
        else column
        for column in inference.columns
    ]
    if all(column.feature is None for column in columns):
        raise ValueError(
            f"`--exclude` should leave a column to be a feature. Received {', '.join(excluded)}, after "
            "which none is left."
        )
    return replace(inference, columns=columns)


def _show(inference: Inference, output: Path) -> None:
    out = console()
    rows = f"{inference.rows:,} rows" + ("" if inference.complete else ", the first of them")
    out.print(f"{rows}, {inference.positives:.2%} of the labels are 1\n")
    out.print(
        table(
            ("column", "becomes", "seen"),
            [
                (column.name, column.feature.type if column.feature else "", column.note)
                for column in inference.columns
            ],
            numbers=False,
        )
    )
    for warning in inference.warnings:
        out.print(f"\n{warning}", style="yellow", markup=False)
    out.print(f"\nWritten to [bold]{escape(str(output))}[/]. Read it, then:")
    out.print(f"  torchrec train {output}", markup=False)
