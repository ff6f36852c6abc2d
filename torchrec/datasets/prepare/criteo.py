"""Criteo display advertising: the raw tab-separated log, made into Parquet."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

from torchrec.datasets.parquet_writer import ParquetWriter

LABEL = "label"
INTEGERS = tuple(f"int_{n}" for n in range(1, 14))
CATEGORIES = tuple(f"cat_{n}" for n in range(1, 27))
COLUMNS = (LABEL, *INTEGERS, *CATEGORIES)

_TYPES = (
    {LABEL: pa.int8()}
    | dict.fromkeys(INTEGERS, pa.int64())
    | dict.fromkeys(CATEGORIES, pa.string())
)
_WHOLE = r"^[-+]?[0-9]+(\.0*)?$"
_BLOCK_BYTES = 16 << 20
_ROW_GROUP = 65_536


def prepare_criteo(inputs: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]) -> int:
    r"""Make raw Criteo files into one Parquet file, in bounded memory.

    Args:
        inputs: files of 40 tab-separated columns without a header (label, 13 integers, 26
            hexadecimal categories; empty where missing; integers may be written as ``2.0``), such
            as ``train.txt`` of the 2014 challenge or ``day_0.gz`` of the terabyte log. Joined in
            the order given. Without the label, as in ``test.txt``, where it is missing in the first
            line.
        output: the Parquet file: ``label`` (if there is one), ``int_1`` … ``int_13``, ``cat_1`` …
            ``cat_26``; a missing value is null.

    Returns:
        The number of rows.

    Raises:
        ValueError: naming the file, if it is missing, empty or not of this form, and the column where
            it is one.

    Example:
        >>> import pyarrow.parquet as pq, tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> line = "\t".join(["1", "5", *[""] * 12, "68fd1e64", *[""] * 25])
        >>> _ = (folder / "train.txt").write_text(line + "\n")
        >>> prepare_criteo([folder / "train.txt"], folder / "train.parquet")
        1
        >>> row = pq.read_table(folder / "train.parquet").to_pylist()[0]
        >>> row["label"], row["int_1"], row["int_2"], row["cat_1"], row["cat_2"]
        (1, 5, None, '68fd1e64', None)
    """
    paths = [Path(path) for path in inputs]
    names = COLUMNS[1:] if paths and _has_no_label(paths[0]) else COLUMNS
    schema = pa.schema([(name, _TYPES[name]) for name in names])
    with ParquetWriter(output, schema) as file:
        for path in paths:
            for table in _regroup(_read(path, schema), schema):
                file.write(table)
        return file.rows


def _has_no_label(path: Path) -> bool:
    """Tell whether the first line of a file has all columns but one."""
    with _naming(path, len(COLUMNS)), pa.input_stream(path) as stream:
        first = io.BufferedReader(stream).readline(_BLOCK_BYTES)
    return first.count(b"\t") + 1 == len(COLUMNS) - 1


def _read(path: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    as_text = pa.schema([(name, pa.string()) for name in schema.names])
    rows = 0
    with (
        _naming(path, len(schema)),
        csv.open_csv(
            path,
            read_options=csv.ReadOptions(column_names=schema.names, block_size=_BLOCK_BYTES),
            parse_options=csv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=csv.ConvertOptions(
                column_types=as_text, null_values=[""], strings_can_be_null=True
            ),
        ) as reader,
    ):
        for batch in reader:
            columns = [
                batch[one.name]
                if one.type == pa.string()
                else _read_integers(batch[one.name], one, f"'{path}'", rows)
                for one in schema
            ]
            rows += batch.num_rows
            yield pa.Table.from_arrays(columns, schema=schema)


def _read_integers(texts: pa.Array, column: pa.Field, file: str, rows: int) -> pa.Array:
    """Return texts as integers, also where they are written as ``2.0``, as pandas does beside nulls."""
    try:
        return texts.cast(column.type)
    except pa.ArrowInvalid:
        texts = pc.utf8_trim_whitespace(texts)
    numbers = pc.if_else(pc.match_substring_regex(texts, _WHOLE), texts, None)
    numbers = pc.replace_substring_regex(numbers, r"^\+|\.0*$", "")
    wrong = pc.and_(pc.is_null(numbers), pc.greater(pc.binary_length(texts), 0))
    if pc.any(wrong).as_py():
        first = pc.index(wrong, True).as_py()
        raise ValueError(
            f"{file}: column '{column.name}' should hold integers, or nothing where they are missing. "
            f"Received '{texts[first]}' in row {rows + first + 1:,}."
        )
    try:
        return numbers.cast(column.type)
    except pa.ArrowInvalid as error:  # the number is too large
        raise ValueError(
            f"{file}: column '{column.name}' should hold integers of {column.type.bit_width} bits. "
            f"Received: {error}"
        ) from error


@contextmanager
def _naming(path: Path, columns: int) -> Iterator[None]:
    """Name the file in errors of what is done inside."""
    if not path.is_file():
        raise ValueError(f"'{path}' should be a file of the raw Criteo log. Received no such file.")
    label = "a label, " if columns == len(COLUMNS) else ""
    try:
        yield
    except pa.ArrowInvalid as error:
        reason = re.sub(
            r"In CSV column #(\d+)",
            lambda found: f"in column '{COLUMNS[int(found[1]) + len(COLUMNS) - columns]}'",
            str(error).split("\n")[0],
        )
        raise ValueError(
            f"'{path}' should have {columns} tab-separated columns a line: {label}13 integers, "
            f"26 categories. Received: {reason}"
        ) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(  # what Arrow says of compressed files has no name in it
            f"'{path}' should be whole and readable. Received: {error}"
        ) from error


def _regroup(tables: Iterator[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """Join and cut tables to row groups of one size, the last but for its rest."""
    waiting = schema.empty_table()
    for table in tables:
        waiting = pa.concat_tables([waiting, table])
        while waiting.num_rows >= _ROW_GROUP:
            yield waiting[:_ROW_GROUP]
            waiting = waiting[_ROW_GROUP:]
    yield waiting
