"""Reading CSV and TSV: blocks of whole records, parsed to the types that the first of them show."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as pa_csv

from torchrec.datasets._blocks import Block, blocks
from torchrec.datasets._chunks import CHUNK_BYTES, Chunk, ChunkStart, Reading, Span
from torchrec.datasets._oddities import Oddity, notices_of
from torchrec.datasets._records import RecordForm
from torchrec.datasets._types import require_columns
from torchrec.datasets.data_error import DataError
from torchrec.datasets.headers import (
    check_header,
    delimiter_of,
    encoding_of,
    not_utf8,
    read_header,
    split_header,
)
from torchrec.datasets.number_text import (
    MARKERS,
    UnreadableError,
    are_marked_numbers,
    read_number_text,
)
from torchrec.datasets.text_dialect import TextDialect, recoded_from
from torchrec.datasets.text_types import MisfitError, schema_of

if TYPE_CHECKING:
    from torchrec.datasets.features import TextType
    from torchrec.datasets.files import DataFile

# What stands for a missing value, in columns of text too. "NA" is not among them: it is a country; in
# columns of anything else it is missing, as the others of `MARKERS`.
_MISSING = ["", "NULL", "null", "NaN", "nan", "\\N", "N/A", "n/a", "#N/A"]
# Times as some systems write them. Arrow takes the zone behind a space for text like other text: that it
# is one is said by `_SAYS_UTC`.
_TIMES = [pa_csv.ISO8601, *map("%Y-%m-%d %H:%M:%S {}".format, ("UTC", "GMT", "+0000"))]
_SAYS_UTC = r" (UTC|GMT|\+0000)$"
_INFERENCE_BLOCKS = 16  # for a column that is empty at first
_ROW_OF_ERROR = re.compile(r"Row #(\d+)")
_COLUMN_OF_ERROR = re.compile(r"In CSV column #(\d+): ")
_VALUE_OF_ERROR = re.compile(r"invalid value '(.*)'", re.DOTALL)


class CsvReader:
    """Reads the CSV or TSV files of a data set.

    Types are those of the first block that holds values, and hold for all blocks of all files; a value
    that does not fit is an error. So is a leading zero in a column that looked like integers: "007" is
    not "7" where it is a code.

    Args:
        files: the files.
        dialect: how the files are written.
        schema: types that columns should have. Default: inferred.
        assumed: numbers that features read. Where the first block shows true and false, dates or times
            (for integers, also where it shows other numbers), the column is that all the same.
        may_be_empty: take files without a row. Default False.

    Attributes:
        given: columns whose type ``schema`` gave.
        schema: names and types of the columns.
        seen: rows at the start of files that were looked at for the types.
    """

    rows = None  # not known before everything is read

    def __init__(
        self,
        files: list[DataFile],
        dialect: TextDialect | None = None,
        schema: pa.Schema | None = None,
        assumed: Mapping[str, TextType] | None = None,
        may_be_empty: bool = False,
    ) -> None:
        self.files = files
        self._dialect = dialect = dialect or TextDialect()
        self._encoding = recoded_from(dialect.encoding)
        self._oddities: dict[tuple[int, int], Oddity] = {}  # by file and byte: each counts once
        self._delimiter = dialect.delimiter or delimiter_of(files[0].format)
        self._names: list[list[str]] = []
        self._forms: list[RecordForm] = []
        self._starts: list[int] = []  # the first byte behind the header
        for file in files:
            names, start, line = list(dialect.columns or ()), 0, ""
            if dialect.columns is None:
                line, start = read_header(file, self._encoding)
                names = split_header(line, file, self._delimiter, dialect.quote)
                check_header(names, file, self._delimiter)
            require_columns(names, names, file.path)
            self._names.append(names)
            self._starts.append(start)
            self._forms.append(self._form(len(names), line))
        given = {} if schema is None else dict(zip(schema.names, schema.types, strict=True))
        self.given = frozenset(given)
        self._utc: set[str] = set()  # columns of times whose zone is written behind a space
        self._assumed = frozenset(assumed or ()) - self.given
        self.seen: list[Span] = []
        inferred = self._infer_types()
        if not (inferred or may_be_empty):
            raise ValueError(
                f"Data files ('{self.files[0].path}', ...) should hold rows. Received a header only."
            )
        inferred = inferred or dict.fromkeys(self._names[0], pa.null())
        for name in self._assumed & set(inferred):
            inferred[name] = _as_feature_reads(inferred[name], (assumed or {})[name])
        self.schema = pa.schema(list((inferred | given).items()))

    def _form(self, columns: int, header: str) -> RecordForm:
        return RecordForm(
            self._delimiter.encode(),
            columns,
            header.encode(),
            has_quotes=self._dialect.quote != "none" and len(self._delimiter) == 1,
            skips_bad=self._dialect.bad_lines == "skip",
            encoding=self._encoding,
        )

    @property
    def names(self) -> list[str]:
        """Columns of the first file."""
        return self._names[0]

    @property
    def notices(self) -> list[str]:
        """What was left out of the text, or looks wrong, in what has been read, a sentence each."""
        return notices_of(self.files, self._oddities) if self._oddities else []

    def retyped(self, types: Mapping[str, TextType]) -> CsvReader:
        """Return a reader of the same files with other types of some columns."""
        other = copy.copy(self)
        fields = {field.name: field.type for field in (*self.schema, *schema_of(types))}
        other.schema = pa.schema(list(fields.items()))
        return other

    def over(self, files: list[DataFile]) -> CsvReader:
        """Return a reader of other files whose columns have the types that they have here."""
        dialect = dataclasses.replace(self._dialect, delimiter=self._delimiter)
        other = CsvReader(files, dialect, self.schema)
        other.given, other._assumed = self.given, self._assumed
        return other

    def chunks(
        self, columns: list[str], reading: Reading, start: ChunkStart, *, use_threads: bool = False
    ) -> Iterator[Chunk]:
        """Read the blocks in order.

        Args:
            columns: what to read.
            reading: the order.
            start: where to begin.
            use_threads: without effect: blocks are parsed by whoever decodes them.
        """
        types = {name: self.schema.field(name).type for name in columns}
        order = reading.order(len(self.files))
        for unit in range(start.unit, len(order)):
            number = order[unit]
            file = self.files[number]
            if not types.keys() <= set(self._names[number]):
                require_columns(self._names[number], columns, file.path)
            at = start if unit == start.unit else ChunkStart()
            at = at._replace(byte=at.byte or self._starts[number])
            for block in self._blocks(number, at):
                if block.oddity is not None:
                    self._oddities[number, block.byte] = block.oddity
                if not block.rows:
                    continue
                yield Chunk(
                    ChunkStart(unit, block.row, block.byte),
                    number,
                    block.row,
                    block.rows,
                    partial(self._parse, number, block, types),
                )

    def _blocks(self, number: int, start: ChunkStart) -> Iterator[Block]:
        return blocks(self.files[number], start, CHUNK_BYTES, self._forms[number])

    def _parse(self, number: int, block: Block, types: dict[str, pa.DataType]) -> pa.Table:
        """Parse a block to a table of the given types."""
        chosen = self.given | self._assumed
        integers = [n for n, type in types.items() if n not in chosen and pa.types.is_integer(type)]
        try:
            table = self._convert(number, block, types | dict.fromkeys(integers, pa.string()))
            for name in integers:
                row = _leading_zero(table.column(name))
                if row is not None:
                    raise self._with_zeros(number, block, table.column(name)[row], row, name)
            try:
                return table.cast(pa.schema(types)) if integers else table
            except pa.ArrowInvalid:  # in words that do not say where
                return self._convert(number, block, types)
        except pa.ArrowInvalid as error:
            raise self._refused(number, block, types, error) from error

    def _convert(self, number: int, block: Block, types: dict[str, pa.DataType]) -> pa.Table:
        """Convert a block; where values do not fit, as they may be written otherwise."""
        try:
            return self._read(number, block, types, _MISSING)
        except pa.ArrowInvalid:
            loose = [name for name, type in types.items() if not pa.types.is_string(type)]
            if not loose:
                raise
        numbers = [name for name in loose if _is_number(types[name])]
        others = {name: types[name] for name in loose if name not in numbers}
        strings = {name: pa.string() for name in types if name not in others}
        table = self._read(number, block, strings, _MISSING) if strings else None
        columns = {} if table is None else dict(zip(strings, table.columns, strict=True))
        if others:
            rest = self._read(number, block, others, [*_MISSING, *MARKERS])
            columns |= dict(zip(others, rest.columns, strict=True))
        for name in numbers:
            columns[name] = self._as_numbers(number, name, columns[name], types[name])
        return pa.table({name: columns[name] for name in types})

    def _as_numbers(
        self, number: int, name: str, text: pa.ChunkedArray, type: pa.DataType
    ) -> pa.Array:
        try:
            return read_number_text(text.combine_chunks(), type, self._dialect.decimal)
        except UnreadableError as error:  # in the words of the parser
            raise pa.ArrowInvalid(
                f"In CSV column #{self._names[number].index(name)}: Row #{error.row + 1}: CSV conversion "
                f"error to {type}: invalid value '{error.value}'"
            ) from None

    def _read(
        self, number: int, block: Block, types: dict[str, pa.DataType], missing: list[str]
    ) -> pa.Table:
        local: dict[str, pa.DataType] = {}
        for name in self._utc & types.keys():
            if getattr(types[name], "tz", None):
                local[name] = pa.timestamp(types[name].unit)
        table = pa_csv.read_csv(
            pa.py_buffer(block.data),
            pa_csv.ReadOptions(
                use_threads=False,
                block_size=len(block.data) + 1,
                column_names=self._names[number],
            ),
            block.options,
            pa_csv.ConvertOptions(
                null_values=[*missing, *self._dialect.missing],
                strings_can_be_null=True,
                column_types=types | local,
                include_columns=list(types),
                timestamp_parsers=[*_TIMES, *self._dialect.times],
                decimal_point=self._dialect.decimal,
            ),
        )
        return table.cast(pa.schema(types)) if local else table

    def _with_zeros(
        self, number: int, block: Block, value: pa.Scalar, row: int, name: str
    ) -> MisfitError:
        """Return the error to raise for an integer with leading zeros."""
        wider: dict[str, TextType] = {name: "string"}
        return MisfitError(
            f"'{self.files[number].path}', line {self._line(block, row + 1)}, column '{name}', should "
            "hold integers without leading zeros, as the first lines do: strings would keep the "
            f"zeros, and integers leave them out. Received '{value}'.",
            wider,
            {"types": f"{{{name}: string}}"},
        )

    def _line(self, block: Block, row: int) -> int:
        """Return the line of a row of a block, counted from 1, where no record has several."""
        return block.row + row + (self._dialect.columns is None)

    def _refused(
        self, number: int, block: Block, types: dict[str, pa.DataType], error: Exception
    ) -> ValueError:
        """Return the error to raise for what the parser refused."""
        path, reason = self.files[number].path, str(error)
        row = _ROW_OF_ERROR.search(reason)
        line = self._line(block, int(row[1]) if row else 1)
        where = f"'{path}', line {line}" + ("" if row else " or after")
        column, value = _COLUMN_OF_ERROR.match(reason), _VALUE_OF_ERROR.search(reason)
        name = self._names[number][int(column[1])] if column else ""
        if column and value and name in types:
            what = f"{where}, column '{name}', should hold {_plural(types[name])}, as "
            wider = self._wider(number, block, types)
            remedy = {"types": f"{{{name}: {wider.get(name, 'string')}}}"}
            if name in self._assumed:
                what, remedy = f"{what}a feature reads them", {}
            else:
                what += "was asked for" if name in self.given else "the first lines do"
            free = {name: type for name, type in wider.items() if name not in self.given}
            return MisfitError(f"{what}. Received '{value[1][:100]}'.", free, remedy)
        hint = ", and be UTF-8" if "invalid UTF8" in reason else ""
        remedy = {"encoding": encoding_of(block.data)} if hint else {}
        if "columns, got" in reason:
            remedy = {"bad_lines": "skip"}
        reason = _ROW_OF_ERROR.sub("", reason).removeprefix("CSV parse error: ").lstrip(": ")
        if column:
            detail = not_utf8(block.data) + "." if hint else reason[column.end() - 1 :].lstrip(": ")
            reason = f"in column '{name}', {detail}"
        return DataError(
            f"{where}, should fit the columns and their types{hint}. "
            f"Received: {reason.strip().splitlines()[0][:300]}",
            remedy,
        )

    def _wider(
        self, number: int, block: Block, types: dict[str, pa.DataType]
    ) -> dict[str, TextType]:
        """Return types, for the columns that do not fit those they have, that this block fits as well."""
        found = self._types_of(number, block)
        wider: dict[str, TextType] = {}
        for name, type in types.items():
            if not self._fits(number, block, name, type):
                wider[name] = _widened(type, found[name])
        return wider

    def _fits(self, number: int, block: Block, name: str, type: pa.DataType) -> bool:
        try:
            self._convert(number, block, {name: type})
        except pa.ArrowInvalid:
            return False
        return True

    def _infer_types(self) -> dict[str, pa.DataType]:
        """Return types that the first blocks suggest, more of them for a column that holds nothing at first."""
        types: dict[str, pa.DataType] = {}
        for number in range(len(self.files)):
            for block in self._blocks(number, ChunkStart(byte=self._starts[number])):
                self.seen.append(Span(number, block.row, block.rows))
                if block.oddity is not None:
                    self._oddities[number, block.byte] = block.oddity
                for name, type in self._types_of(number, block).items():
                    if pa.types.is_null(types.get(name, pa.null())):
                        types[name] = type
                complete = not any(map(pa.types.is_null, types.values()))
                if block.rows and (complete or block.byte > _INFERENCE_BLOCKS * CHUNK_BYTES):
                    return types
            if types:
                break
        return types

    def _types_of(self, number: int, block: Block) -> dict[str, pa.DataType]:
        """Return types that a block suggests; integers with leading zeros are text, and bytes are none."""
        if not block.rows:
            return {}
        try:
            schema = self._read(number, block, {}, _MISSING).schema
            types = dict(zip(schema.names, schema.types, strict=True))
            local = _local(types)
            doubtful = [name for name, type in types.items() if not pa.types.is_temporal(type)]
            text = self._read(number, block, dict.fromkeys(doubtful + local, pa.string()), _MISSING)
        except pa.ArrowInvalid as error:
            raise self._refused(number, block, {}, error) from error
        for name in local:
            types[name] = self._with_zone(name, types[name], text[name])
        for name, column in zip(doubtful, text.columns, strict=False):
            if pa.types.is_float64(types[name]):
                types[name] = _large_integers(column) or types[name]
            if pa.types.is_integer(types[name]) and _leading_zero(column) is not None:
                types[name] = pa.string()
            if pa.types.is_string(types[name]):
                types[name] = are_marked_numbers(column) or types[name]
        return types | self._marked_times(number, block, types)

    def _marked_times(
        self, number: int, block: Block, types: dict[str, pa.DataType]
    ) -> dict[str, pa.DataType]:
        """Return the types of columns of times, or of true and false, that have markers of missing ones."""
        text = [name for name, type in types.items() if pa.types.is_string(type)]
        if not text or not any(marker.encode() in block.data for marker in MARKERS):
            return {}
        missing = [*_MISSING, *MARKERS]
        found = {
            field.name: field.type
            for field in self._read(number, block, {}, missing).select(text).schema
            if pa.types.is_temporal(field.type) or pa.types.is_boolean(field.type)
        }
        local = _local(found)
        if local:
            strings = self._read(number, block, dict.fromkeys(local, pa.string()), missing)
            found |= {name: self._with_zone(name, found[name], strings[name]) for name in local}
        return found

    def _with_zone(self, name: str, local: pa.TimestampType, text: pa.ChunkedArray) -> pa.DataType:
        """Return the type of a column of times with the zone, where the text has UTC behind each."""
        if not pc.all(pc.match_substring_regex(text, _SAYS_UTC)).as_py():
            return local
        self._utc.add(name)
        return pa.timestamp(local.unit, "UTC")


def _local(types: Mapping[str, pa.DataType]) -> list[str]:
    """Return the columns of times without a zone."""
    return [name for name, type in types.items() if pa.types.is_timestamp(type) and not type.tz]


def _is_number(type: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type) or pa.types.is_floating(type))


def _large_integers(text: pa.ChunkedArray) -> pa.DataType | None:
    """Return the type for integers of which some are too large for int64; None if these are others.

    As floats, ids that differ could become one.
    """
    whole = pc.all(pc.match_substring_regex(text, r"^\s*[+-]?[0-9]+\s*$")).as_py()
    if not (whole and pc.any(pc.match_substring_regex(text, "[0-9]{19}")).as_py()):
        return None
    try:
        pc.cast(text, pa.uint64())
    except pa.ArrowInvalid:
        return pa.string()
    return pa.uint64()


def _as_feature_reads(inferred: pa.DataType, wanted: TextType) -> pa.DataType:
    """Return the type of a column that a feature reads numbers from, given what its first lines show."""
    if wanted == "integer":
        unknown = pa.types.is_null(inferred) or pa.types.is_string(inferred)
        return pa.int64() if unknown else inferred
    stays = pa.types.is_boolean(inferred) or pa.types.is_temporal(inferred)
    return inferred if stays else pa.float64()


def _widened(type: pa.DataType, found: pa.DataType) -> TextType:
    """Return the narrowest type that takes values of one type and of another that did not fit it."""
    if pa.types.is_null(type) and pa.types.is_int64(found):
        return "integer"
    number = pa.types.is_null(type) or pa.types.is_integer(type)
    return "number" if number and pa.types.is_float64(found) else "string"


def _plural(type: pa.DataType) -> str:
    if pa.types.is_integer(type):
        return "integers"
    if pa.types.is_null(type):
        return "nothing"
    return "numbers" if pa.types.is_floating(type) else f"values of type {type}"


def _leading_zero(text: pa.ChunkedArray) -> int | None:
    """Return the first row of a text that starts with a zero and goes on with a digit; None if none does."""
    row = 0
    for chunk in text.chunks:
        _, ends, data = chunk.buffers()
        if data is not None and len(chunk):
            bounds = np.frombuffer(ends, np.int32, len(chunk) + 1, 4 * chunk.offset)
            long = np.flatnonzero(np.diff(bounds) > 1)
            bytes_of, starts = np.frombuffer(data, np.uint8), bounds[long]
            # Unsigned: what is below "0" becomes large.
            leading = (bytes_of[starts] == ord("0")) & (bytes_of[starts + 1] - ord("0") < 10)
            if leading.any():
                return row + int(long[int(leading.argmax())])
        row += len(chunk)
    return None
