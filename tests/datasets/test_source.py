"""Reading tables from files: against pandas and plain Python, and what a damaged file says."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet as pq

from torchrec.datasets import csv_reader
from torchrec.datasets._chunks import Reading
from torchrec.datasets.data_error import DataError
from torchrec.datasets.features import TextType
from torchrec.datasets.source import TableSource
from torchrec.datasets.split import FractionSplit, TimeSplit, find_time_split
from torchrec.datasets.text_dialect import TextDialect
from torchrec.datasets.text_types import MisfitError

pytestmark = pytest.mark.once

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file: a dict as Parquet, text or bytes as they are."""

    def write(name: str, content: Any, **options: Any) -> Path:
        path = tmp_path / name
        if isinstance(content, dict | pa.Table):
            table = pa.table(content) if isinstance(content, dict) else content
            pq.write_table(table, path, **options)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def read(source: TableSource, columns: list[str] | None = None) -> dict[str, list[Any]]:
    tables = list(source.scan(columns))
    names = columns or source.schema.names
    return {name: [x for t in tables for x in t.column(name).to_pylist()] for name in names}


def message_of(function: Callable[[], object]) -> str:
    with pytest.raises(ValueError) as caught:
        function()
    message = str(caught.value)
    assert "\n" not in message
    return message


ROWS = {
    "user": list(range(10)),
    "price": [None if i == 3 else i / 4 for i in range(10)],
    "country": ["de", "fr", None, "us", "ö"] * 2,
}


# ---- Parquet


@pytest.mark.parametrize("group", [1, 3, 10])
def test_parquet_is_read_in_order(write: Write, group: int) -> None:
    source = TableSource([write(f"{i}.parquet", ROWS, row_group_size=group) for i in range(2)])
    assert read(source) == {name: values * 2 for name, values in ROWS.items()}
    assert source.rows == 20


def test_only_the_columns_asked_for_are_read(write: Write) -> None:
    source = TableSource(write("a.parquet", ROWS), drop="user > 7")
    (table,) = source.scan(["country"])
    assert table.column_names == ["country"]
    assert table.num_rows == 8


def test_repetitive_text_is_read_as_dictionaries(write: Write) -> None:
    few, many = [f"c{i % 5}" for i in range(9999)], [f"identifier {i}" for i in range(9999)]
    source = TableSource(write("a.parquet", {"few": few, "many": many}))
    (table,) = source.scan()
    assert table.schema.field("few").type == pa.dictionary(pa.int32(), pa.string())
    assert table.schema.field("many").type == pa.string()
    assert read(source) == {"few": few, "many": many}
    assert source.schema.field("few").type == pa.string()


def test_files_of_other_writers_go_together(write: Write, tmp_path: Path) -> None:
    values = {"text": ["a", "b"] * 5000, "id": list(range(10_000)), "tags": [["x"], []] * 5000}
    pl.DataFrame(values).write_parquet(tmp_path / "a.parquet")
    pd.DataFrame(values).to_parquet(tmp_path / "b.parquet")
    write("c.parquet", {**values, "text": pa.array(values["text"]).dictionary_encode()})
    source = TableSource(tmp_path)
    assert read(source) == {name: column * 3 for name, column in values.items()}
    assert {str(t.schema.field("text").type) for t in source.scan()} == {
        "dictionary<values=string, indices=int32, ordered=0>"
    }


def test_types_of_other_files_are_made_those_of_the_first(write: Write) -> None:
    first = write("a.parquet", {"x": pa.array([1, 2], pa.int32()), "y": pa.array([0.5, None])})
    second = write("b.parquet", {"y": pa.nulls(1), "more": [1], "x": pa.array([3], pa.int64())})
    source = TableSource([first, second])
    assert read(source) == {"x": [1, 2, 3], "y": [0.5, None, None]}
    assert {t.schema.field("x").type for t in source.scan()} == {pa.int32()}
    third = write("c.parquet", {"x": [2**40], "y": [0.0]})
    message = message_of(lambda: read(TableSource([first, third])))
    assert message.startswith(f"Values of column 'x' in '{third}' should fit int32. Received: ")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([1]), pa.array(["1"])),
        (pa.array([["a"]]), pa.array([[1]])),
        (pa.array([[1]]), pa.array([1])),
        (pa.array([True]), pa.array([1])),
    ],
    ids=["string", "list", "scalar", "integer"],
)
def test_a_column_that_changes_its_type_is_refused(write: Write, one: Any, other: Any) -> None:
    paths = [write("a.parquet", {"x": one}), write("b.parquet", {"x": other})]
    message = message_of(lambda: TableSource(paths))
    types = [str(array.type).replace("item", "element") for array in (one, other)]
    assert message.replace("item", "element") == (
        f"Column 'x' should have one type; it is {types[0]} in '{paths[0]}'. "
        f"Received {types[1]} in '{paths[1]}'."
    )


def test_a_column_without_a_type_at_first_gets_that_of_a_later_file(write: Write) -> None:
    nothing = {"s": pa.nulls(1), "l": pa.array([[]], pa.list_(pa.null())), "n": pa.nulls(1)}
    text = {"s": ["a"], "l": [["b"]], "n": pa.nulls(1)}
    numbers = {"s": pa.nulls(1), "l": [None], "n": pa.array([7], pa.int16())}
    paths = [
        write(f"{i}.parquet", pa.table(columns))
        for i, columns in enumerate([nothing, text, numbers])
    ]
    source = TableSource(paths)
    assert source.schema.types == [pa.string(), pa.list_(pa.string()), pa.int16()]
    assert read(source) == {
        "s": [None, "a", None],
        "l": [[], ["b"], None],
        "n": [None, None, 7],
    }
    more = write("more.parquet", pa.table({"s": [1]}))
    assert message_of(lambda: TableSource([*paths, more])) == (
        f"Column 's' should have one type; it is string in '{paths[1]}'. Received int64 in '{more}'."
    )


def test_a_column_that_is_missing_later_is_refused_when_it_is_needed(write: Write) -> None:
    paths = [
        write("a.parquet", {"price": [1], "x": [1]}),
        write("b.parquet", {"prise": [1], "x": [2]}),
    ]
    source = TableSource(paths)
    assert read(source, ["x"]) == {"x": [1, 2]}
    assert message_of(lambda: read(source, ["price"])) == (
        f"Data file '{paths[1]}' should have a column 'price'. Received one without; "
        "did you mean 'prise'?"
    )


def test_a_schema_given_is_what_files_have_to_fit(write: Write) -> None:
    path = write("a.parquet", {"x": pa.array([1], pa.int32()), "y": ["a"]})
    schema = pa.schema({"x": pa.int64(), "y": pa.string()})
    (table,) = TableSource(path, schema=schema).scan()
    assert table.schema.field("x").type == pa.int64()
    message = message_of(lambda: TableSource(path, schema=pa.schema({"y": pa.int64()})))
    assert message == (
        f"Column 'y' should have one type; it is int64 in the data that it goes with. "
        f"Received string in '{path}'."
    )


def test_a_row_group_of_a_few_rows_costs_little(write: Write) -> None:
    path = write("a.parquet", {f"c{i}": range(3_000) for i in range(5)}, row_group_size=1)
    start = time.perf_counter()
    assert sum(table.num_rows for table in TableSource(path).scan()) == 3_000
    assert time.perf_counter() - start < 20  # a second or so; opened anew each time, over a minute


def test_damaged_parquet_says_which_file(write: Write) -> None:
    whole = write("a.parquet", {"x": list(range(100_000))}, compression="zstd").read_bytes()
    footer = write("footer.parquet", whole[:-300] + b"\xff" * 292 + whole[-8:])
    assert message_of(lambda: TableSource(footer)).startswith(
        f"Parquet file '{footer}' should be whole and readable. Received: "
    )
    data = write("data.parquet", whole[:200] + b"\0" * 60_000 + whole[60_200:])
    source = TableSource(data)
    assert message_of(lambda: read(source)).startswith(
        f"Parquet file '{data}' should be whole and readable. Received: "
    )


@pytest.mark.parametrize("kind", ["text", "dictionary", "list"])
def test_text_that_is_not_utf8_is_refused(write: Write, kind: str) -> None:
    repeat = 9999 if kind == "dictionary" else 1
    column = pa.array([b"a", b"\xff\xfe"] * repeat).view(pa.string())
    if kind == "list":
        column = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), column)
    path = write("a.parquet", {"x": column})
    assert message_of(lambda: read(TableSource(path))) == (
        f"Text of column 'x' in '{path}' should be UTF-8. Received other bytes."
    )


def test_no_rows_and_unknown_columns_are_refused(write: Write) -> None:
    empty = write("empty.parquet", {"x": pa.array([], pa.int64())})
    assert "should hold rows. Received none." in message_of(lambda: TableSource(empty))
    full = write("full.parquet", {"price": [1], "x": [2]})
    assert read(TableSource([empty, full])) == {"x": [2]}
    source = TableSource(full)
    for function in (
        lambda: read(source, ["prise"]),
        lambda: TableSource(full, drop="prise > 3"),
        lambda: find_time_split(source.scan(["prise"]), "prise", 0.1, 0.1),
    ):
        assert message_of(function).endswith("Received 'prise'; did you mean 'price'?")
    with pytest.raises(ValueError, match=r"`columns` should be given only for CSV and TSV files"):
        TableSource(full, dialect=TextDialect(columns=["x"]))


# ---- CSV and TSV


def csv_text(rows: list[list[Any]], delimiter: str = ",", **options: Any) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n", **options).writerows(rows)
    return text.getvalue()


COLUMNS = list(ROWS)
LINES = list(zip(*ROWS.values(), strict=True))
TEXT = csv_text([COLUMNS, *map(list, LINES)])


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz", ".csv.zst", ".tsv.gz"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_text_is_read_in_order(write: Write, suffix: str, ending: str) -> None:
    text = csv_text([COLUMNS, *map(list, LINES)], "\t" if "tsv" in suffix else ",")
    content = text.replace("\n", ending).encode()
    if suffix.endswith(".gz"):
        content = gzip.compress(content[:50]) + gzip.compress(content[50:])  # members are joined
    if suffix.endswith(".zst"):
        content = pa.compress(content, "zstd", asbytes=True)
    source = TableSource([write(f"{i}{suffix}", content) for i in range(2)])
    assert read(source) == {name: values * 2 for name, values in ROWS.items()}
    assert source.rows is None
    assert list(map(str, source.schema.types)) == ["int64", "double", "string"]


def test_a_byte_order_mark_and_a_missing_last_newline_do_no_harm(write: Write) -> None:
    path = write("a.csv", "\ufeff" + TEXT.rstrip("\n"))
    assert read(TableSource(path)) == ROWS


def test_columns_name_those_of_files_without_a_header(write: Write) -> None:
    path = write("a.tsv", "1\tde\n\t\n3\tfr\n")
    source = TableSource(path, dialect=TextDialect(columns=["rating", "country"]))
    assert read(source) == {"rating": [1, None, 3], "country": ["de", None, "fr"]}
    message = message_of(lambda: TableSource(path, dialect=TextDialect(columns=["rating"])))
    assert message.startswith(
        f"'{path}', line 1, should fit the columns and their types. Received: "
    )


def test_files_may_order_their_columns_differently(write: Write) -> None:
    paths = [write("a.csv", "x,y\n1,a\n"), write("b.csv", "y,z,x\nb,0,2\n")]
    assert read(TableSource(paths)) == {"x": [1, 2], "y": ["a", "b"]}
    write("b.csv", "y\nb\n")
    message = message_of(lambda: read(TableSource(paths)))
    assert message.startswith(
        f"Data file '{paths[1]}' should have a column 'x'. Received one without"
    )


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_reader, "CHUNK_BYTES", 40)


@pytest.mark.usefixtures("small_blocks")
class TestBlocks:
    """Blocks of a few lines each."""

    def test_lines_are_cut_at_their_ends(self, write: Write) -> None:
        source = TableSource(write("a.csv", TEXT))
        assert len(list(source.scan())) > 2
        assert read(source) == ROWS

    @given(
        cells=st.lists(
            st.tuples(
                st.text(st.sampled_from('a ,"\n\r\té'), max_size=9).filter(lambda s: s != "\r"),
                st.integers(0, 9),
            ),
            min_size=1,
            max_size=40,
        )
    )
    def test_newlines_in_quotes_are_part_of_values(
        self, tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, int]]
    ) -> None:
        rows = [["text", "x"], *([text or "-", x] for text, x in cells)]
        path = tmp_path_factory.mktemp("csv") / "a.csv"
        path.write_bytes(csv_text(rows, quoting=csv.QUOTE_NONNUMERIC).encode())
        read_back = read(TableSource(path, schema=pa.schema({"text": pa.string()})))
        assert read_back == {"text": [row[0] for row in rows[1:]], "x": [x for _, x in cells]}

    @pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=["lf", "crlf"])
    @pytest.mark.parametrize("block", [8, 40, 1 << 20])
    def test_splits_do_not_depend_on_blocks_nor_format(
        self, write: Write, monkeypatch: pytest.MonkeyPatch, ending: str, block: int
    ) -> None:
        """Values of several lines, and empty lines, count as the rows that they are."""
        texts = ["one\ntwo" if i % 3 == 0 else "\n\n" if i % 3 == 1 else "-" for i in range(200)]
        gaps = ["\n" * (i % 7 == 0) for i in range(200)]
        lines = [
            f'{i},"{text}"\n{gap}' for i, (text, gap) in enumerate(zip(texts, gaps, strict=True))
        ]
        content = ("x,y\n\n" + "".join(lines)).replace("\n", ending)
        monkeypatch.setattr(csv_reader, "CHUNK_BYTES", block)
        split = FractionSplit(0.3, 0.3, part="valid")
        source = TableSource(write("a.csv", content), split=split)
        same = TableSource(write("a.parquet", {"x": range(200)}), split=split)
        assert read(source, ["x"]) == read(same)

    @pytest.mark.parametrize(
        ("bad", "types", "received"),
        [
            ("7,1.5", "{y: number}", "'1.5'."),
            ("7,abc", "{y: string}", "'abc'."),
            ("7,007", "{y: string}", "'007'."),
            ("7", None, "Expected 2 columns, got 1: 7"),
            ("7,8,9", None, "Expected 2 columns, got 3: 7,8,9"),
        ],
        ids=["float", "text", "zero", "few", "many"],
    )
    @pytest.mark.parametrize("place", [20, 49])
    def test_a_value_that_does_not_fit_later_is_named(
        self, write: Write, bad: str, types: str | None, received: str, place: int
    ) -> None:
        lines = ["x,y", *(f"{i},{i}" for i in range(60))]
        lines[place] = bad
        paths = [write("a.csv", "x,y\n1,2\n"), write("b.csv", "\n".join(lines))]
        with pytest.raises(ValueError) as caught:
            read(TableSource(paths))
        message = str(caught.value)
        assert message.startswith(f"'{paths[1]}', line {place + 1}, ")
        what = (
            "should fit the columns and their types" if types is None else "column 'y', should hold"
        )
        assert what in message
        remedy = {"types": types} if types else {"bad_lines": "skip"}
        assert getattr(caught.value, "remedy", None) == remedy
        assert re.search(rf"Received:? {re.escape(received)}$", message)

    def test_a_column_that_is_empty_at_first_gets_its_type_later(self, write: Write) -> None:
        lines = ["x,y", *(f"{i}," for i in range(60)), "60,7"]
        source = TableSource(write("a.csv", "\n".join(lines)))
        assert source.schema.field("y").type == pa.int64()
        assert read(source)["y"] == [None] * 60 + [7]
        late = TableSource(write("b.csv", "\n".join(lines[:-1] + lines[1:-1] * 4 + [lines[-1]])))
        assert source.schema != late.schema == pa.schema({"x": pa.int64(), "y": pa.null()})
        with pytest.raises(
            MisfitError, match="'y', should hold nothing, as the first lines"
        ) as caught:
            read(late)
        assert caught.value.remedy == {"types": "{y: integer}"}

    @pytest.mark.parametrize(
        ("first", "later", "wider"),
        [
            ("7", "1.5", "number"),
            ("7", "-1.5e3", "number"),
            ("7", "seven", "string"),
            ("7", "18446744073709551615", "string"),
            ("18446744073709551615", "-7", "string"),
            ("7", "007", "string"),
            ("1.5", "many", "string"),
            ("true", "7", "string"),
            ("2024-01-31", "yesterday", "string"),
            ("", "7", "integer"),
            ("", "1.5", "number"),
            ("", "2024-01-31", "string"),
        ],
    )
    def test_types_that_do_not_fit_later_are_widened(
        self, write: Write, first: str, later: str, wider: str
    ) -> None:
        """All columns of a block at once: x and z do not fit in the same line."""
        lines = ["x,y,z", *[f"{first},a,1"] * 200, f"{later},a,0.5"]
        source = TableSource(write("a.csv", "\n".join(lines)))
        with pytest.raises(MisfitError) as caught:
            read(source)
        if later == "007":  # seen before the others are
            caught.value.wider["z"] = "number"
        assert caught.value.wider == {"x": wider, "z": "number"}
        got = read(source.retyped(caught.value.wider))
        assert got["z"] == [1.0] * 200 + [0.5]
        last = {"integer": int, "number": float, "string": str}[wider](later)
        assert got["x"][-1] == last
        other = source.retyped(caught.value.wider).over([write("b.csv", "z,x\n7,\n")])
        assert (read(other, ["x", "z"]), source.names) == (
            {"x": [None], "z": [7.0]},
            ["x", "y", "z"],
        )

    def test_types_that_were_given_stay(self, write: Write) -> None:
        path = write("a.csv", "\n".join(["x,y", *["7,7"] * 60, "1.5,1.5"]))
        given = TableSource(path, schema=pa.schema({"x": pa.int64()}))
        with pytest.raises(MisfitError, match=r"'x', should hold integers, as was asked") as caught:
            read(given)
        assert caught.value.wider == {"y": "number"}


@pytest.mark.parametrize(
    ("cells", "wanted", "type"),
    [
        (["7", "8"], "number", "double"),
        (["", ""], "number", "double"),
        (["007", "8"], "number", "double"),
        (["True", "False"], "number", "bool"),
        (["2024-01-31", ""], "number", "date32[day]"),
        (["2024-01-31 10:00:00", ""], "number", "timestamp[s]"),
        (["007", "8"], "integer", "int64"),
        (["", ""], "integer", "int64"),
        (["7.0", ""], "integer", "double"),
        (["18446744073709551615", "1"], "integer", "uint64"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_columns_that_features_read_numbers_from(
    write: Write, cells: list[str], wanted: TextType, type: str
) -> None:
    path = write("a.csv", "".join(f"0,{cell}\n" for cell in ["x", *cells]))
    source = TableSource(path, assumed={"x": wanted, "unknown": "number"})
    assert str(source.schema.field("x").type) == type
    assert len(read(source, ["x"])["x"]) == 2
    given = TableSource(path, schema=pa.schema({"x": pa.string()}), assumed={"x": wanted})
    assert read(given, ["x"]) == {"x": [cell or None for cell in cells]}
    bad = write("b.csv", "x\nmany\n")
    message = message_of(lambda: read(TableSource(bad, assumed={"x": wanted})))
    assert f"line 2, column 'x', should hold {wanted}s, as a feature reads them. Rec" in message


def test_types_are_what_a_schema_says(write: Write) -> None:
    path = write("a.csv", "x,y\n1,007\n2,008\n")
    assert read(TableSource(path)) == {"x": [1, 2], "y": ["007", "008"]}
    numbers = TableSource(path, schema=pa.schema({"y": pa.int64()}))
    assert read(numbers) == {"x": [1, 2], "y": [7, 8]}
    source = TableSource(path, schema=pa.schema({"y": pa.string(), "unused": pa.int64()}))
    assert read(source, ["x", "y"]) == {"x": [1, 2], "y": ["007", "008"]}
    assert "should have a column 'unused'" in message_of(lambda: read(source, ["unused"]))
    bad = write("b.csv", "x,y\nmany,1\n")
    source = TableSource(bad, schema=pa.schema({"x": pa.int64()}))
    assert message_of(lambda: read(source)).startswith(f"'{bad}', line 2, column 'x', should hold")


@pytest.mark.parametrize(
    ("cells", "type", "values"),
    [
        (["1", ""], "int64", [1, None]),
        (["1", "NaN"], "int64", [1, None]),
        (["1", "2.5"], "double", [1.0, 2.5]),
        (["7", "", "02134"], "string", ["7", None, "02134"]),
        (["0", "10", "-5"], "int64", [0, 10, -5]),
        (["0.5", "00.25"], "double", [0.5, 0.25]),
        (["00018446744073709551615"], "string", ["00018446744073709551615"]),
        (["99999999999999999999"], "string", ["99999999999999999999"]),
        (["+7", "-3"], "double", [7.0, -3.0]),
        (["true", "false"], "bool", [True, False]),
        (["NA", "de"], "string", ["NA", "de"]),
        (["NULL", "de"], "string", [None, "de"]),
        (["2024-01-31", ""], "date32[day]", [datetime.date(2024, 1, 31), None]),
        (["18446744073709551615", "1"], "uint64", [2**64 - 1, 1]),
        (["", ""], "null", [None, None]),
        (["a b", '"x, y"'], "string", ["a b", "x, y"]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cells_mean(write: Write, cells: list[str], type: str, values: list[Any]) -> None:
    source = TableSource(write("a.csv", "".join(f"0,{cell}\n" for cell in ["x", *cells])))
    assert str(source.schema.field("x").type) == type
    assert read(source, ["x"]) == {"x": values}


@pytest.mark.parametrize(
    ("encoding", "received"),
    [
        ("iso-8859-1", "byte 0xe9 ('é' in cp1252)"),
        ("cp1252", "byte 0x80 ('€' in cp1252)"),
        ("utf-16", "utf-16"),
    ],
)
def test_text_in_other_encodings_is_refused(write: Write, encoding: str, received: str) -> None:
    text = "5 €" if encoding == "cp1252" else "Café"
    header = write("a.csv", f"{text},y\n1,a\n".encode(encoding))
    with pytest.raises(DataError) as caught:
        TableSource(header)
    assert str(caught.value) == f"The header of '{header}' should be UTF-8. Received {received}."
    assert caught.value.remedy == {"encoding": "utf-16" if encoding == "utf-16" else "cp1252"}
    if encoding == "utf-16":
        return
    data = write("b.csv", f"x,y\n1,a\n1,{text}\n".encode(encoding))
    with pytest.raises(DataError) as caught:
        TableSource(data)
    assert str(caught.value) == (
        f"'{data}', line 3, should fit the columns and their types, and be UTF-8. Received: "
        f"in column 'y', {received}."
    )
    assert caught.value.remedy == {"encoding": "cp1252"}


def test_damaged_text_says_which_file(write: Write) -> None:
    bad = write("a.csv", b"x,y\n1,a\n2,\xff\xfe\n")
    message = message_of(lambda: TableSource(bad))
    assert message.startswith(f"'{bad}', line 3, should fit the columns")
    assert "and be UTF-8" in message
    only = write("c.csv", "x,y\n")
    assert message_of(lambda: TableSource(only)).endswith("Received a header only.")
    lines = "x\n" + "".join(f"{i}\n" for i in range(99_999))
    cut = write("d.csv.gz", gzip.compress(lines.encode())[:-2000])
    assert message_of(lambda: read(TableSource(cut))).startswith(
        f"CSV file '{cut}' should be whole and readable. Received: "
    )
    none = write("e.csv.gz", lines)
    assert message_of(lambda: TableSource(none)).startswith(f"CSV file '{none}' should be whole")


# ---- shares, dropping, splitting


@pytest.fixture(params=["parquet", "csv"])
def numbers(request: pytest.FixtureRequest, write: Write) -> list[Path]:
    """Three files of numbers from 0 on, in many row groups or blocks."""
    paths = []
    for i in range(3):
        rows = range(i * 30_000, (i + 1) * 30_000)
        if request.param == "parquet":
            paths.append(write(f"{i}.parquet", {"x": list(rows)}, row_group_size=7_000))
        else:
            paths.append(write(f"{i}.csv", "x\n" + "".join(f"{x}\n" for x in rows)))
    return paths


@pytest.mark.parametrize("seed", [None, 5])
def test_reading_can_begin_at_any_chunk(numbers: list[Path], seed: int | None) -> None:
    source, reading = TableSource(numbers), Reading(seed, 5_000)
    chunks = list(source.chunks(["x"], reading))
    rows = [source.decode(chunk, ["x"])["x"].to_pylist() for chunk in chunks]
    for at, chunk in enumerate(chunks):
        rest = source.chunks(["x"], reading, chunk.start)
        assert source.decode(next(rest), ["x"])["x"].to_pylist() == rows[at]
        assert len(list(rest)) == len(chunks) - at - 1
    read = [x for chunk in rows for x in chunk]
    assert sorted(read) == list(range(90_000))
    assert (read == sorted(read)) == (seed is None)


def test_rows_are_dropped(write: Write) -> None:
    source = TableSource(write("a.parquet", ROWS), drop="price > 1 or country == 'de'")
    assert read(source, ["user"]) == {"user": [1, 2, 3, 4]}  # what is not known stays
    assert source.rows is None
    source = TableSource(write("a.parquet", ROWS), drop="user + 1")
    assert message_of(lambda: read(source)) == (
        "Expression `user + 1` should be true or false. Received int64."
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"drop": "x >= 0"},
        {"drop": "x != 70_000"},
        {"split": FractionSplit(0.5, 0.1)},
        {"split": FractionSplit(1e-12, 0.1, part="valid")},
        {"split": FractionSplit(0.5, 0.1), "drop": "x >= 0"},
        {"split": TimeSplit("x", 80_000, 89_999, part="test")},
        {"split": TimeSplit("x", 80_000, 90_000, part="test")},
    ],
    ids=[
        "all",
        "no",
        "one",
        "chance",
        "no by chance",
        "chance, no",
        "last in time",
        "none in time",
    ],
)
def test_whether_there_are_rows_is_what_reading_tells(numbers: list[Path], options: Any) -> None:
    source = TableSource(numbers, **options)
    assert source.has_rows() == any(table.num_rows for table in source.scan())


@pytest.mark.parametrize("seed", range(8))
def test_parts_with_rows_are_found_behind_the_first_block(
    write: Write, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(csv_reader, "CHUNK_BYTES", 20)
    paths = [write(f"{i}.csv", "x\n" + "".join(f"{i}{x}\n" for x in range(30))) for i in range(2)]
    split = FractionSplit(valid=0.02, test=0.5, seed=seed)
    for part in ("train", "valid", "test"):
        source = TableSource(paths, split=split.of(part))
        assert source.has_rows() == any(table.num_rows for table in source.scan())


def test_rows_that_were_seen_are_not_read_again(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = TableSource(write("a.csv", "x\n1\n2\n3\n"), split=FractionSplit(0.1, 0.1))

    def read_again(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(csv_reader, "blocks", read_again)
    assert source.has_rows()


def test_parts_of_a_split_by_chance_are_all_rows(numbers: list[Path]) -> None:
    split = FractionSplit(valid=0.2, test=0.1, seed=3)
    parts = {
        part: read(TableSource(numbers, split=split.of(part)))["x"]
        for part in ("train", "valid", "test")
    }
    assert sorted(x for part in parts.values() for x in part) == list(range(90_000))
    for part, fraction in (("train", 0.7), ("valid", 0.2), ("test", 0.1)):
        assert abs(len(parts[part]) - fraction * 90_000) < 500
        rows = TableSource(numbers, split=split.of(part)).rows
        assert rows is None or rows == len(parts[part])
    again = TableSource(numbers).of(FractionSplit(0.2, 0.1, seed=4, part="test"))
    assert len(set(read(again)["x"]) & set(parts["test"])) < 1500
    # A row's part depends on the name of its file and its number alone.
    some = [x for c in TableSource(numbers[:1], split=split).scan() for x in c["x"].to_pylist()]
    assert some == [x for x in parts["train"] if x < 30_000]


@given(
    names=st.sets(st.text("Az0=.é", max_size=3).map("n{}".format), min_size=2, max_size=4),
    seed=st.integers(0, 2**63 - 1),
    rows=st.integers(1, 50),
)
def test_a_split_by_chance_stays_when_files_are_added(
    names: set[str], seed: int, rows: int
) -> None:
    """Whichever names they have, wherever they lie, and whatever they become."""
    split = FractionSplit(0.3, 0.3, seed)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        table = pa.table({"x": range(rows)})

        def parts(paths: list[str]) -> dict[str, list[list[int]]]:
            source = TableSource(paths)
            found: dict[str, list[list[int]]] = {}
            for number, path in enumerate(paths):
                name = source.files[number].name
                found[name] = [
                    read(TableSource(path, split=split.of(part)), ["x"])["x"]
                    for part in ("train", "valid", "test")
                ]
            for place, part in enumerate(("train", "valid", "test")):
                whole = read(source.of(split.of(part)), ["x"])["x"]
                assert whole == [x for one in found.values() for x in one[place]]
            return found

        paths = sorted(f"{folder}/{name}.parquet" for name in names)
        for path in paths:
            pq.write_table(table, path)
        every, few = parts(paths), parts(paths[1:])
        assert few.items() <= every.items()
        for one in every.values():
            assert sorted(x for part in one for x in part) == list(range(rows))
        moved = f"{other}/{os.path.basename(paths[0])}".removesuffix(".parquet") + ".csv"
        Path(moved).write_text("x\n" + "\n".join(map(str, range(rows))))
        assert parts([moved]).items() <= every.items()


def test_files_of_one_name_are_split_evenly(write: Write, tmp_path: Path) -> None:
    paths = []
    for folder in ("day=1", "day=2", "a", "b"):
        (tmp_path / folder).mkdir()
        paths.append(write(f"{folder}/part-0.parquet", {"x": range(5000)}))
    split = FractionSplit(0.1, 0.1)
    rows = [
        {part: read(TableSource(path, split=split.of(part)))["x"] for part in ("train", "test")}
        for path in paths
    ]
    assert rows[2] == rows[3] != rows[1] != rows[0] != rows[2]
    assert all(abs(len(one["train"]) - 4000) < 150 > abs(len(one["test"]) - 500) for one in rows)


@pytest.mark.parametrize(
    "type",
    [pa.int64(), pa.float64(), pa.timestamp("us"), pa.date32(), pa.timestamp("s", "UTC")],
    ids=str,
)
def test_a_split_by_time_keeps_their_order(write: Write, type: pa.DataType) -> None:
    days = [(7 * i) % 1000 for i in range(1000)]
    times = pa.array(days, pa.int32() if type == pa.date32() else pa.int64()).cast(type)
    path = write("a.parquet", {"at": times, "day": days})
    source = TableSource(path)
    split = find_time_split(source.scan(["at"]), "at", valid=0.2, test=0.1)
    got = {
        part: read(source.of(split.of(part)), ["day"])["day"] for part in ("train", "valid", "test")
    }
    assert [len(part) for part in got.values()] == [700, 200, 100]
    assert max(got["train"]) == 699
    assert (min(got["valid"]), max(got["valid"])) == (700, 899)
    assert read(source.of(find_time_split(source.scan(), "at", 0, 0)))["day"] == days


@pytest.mark.parametrize(
    "times",
    [np.arange(10) * 1e9 + 1.7e18, 2**63 - 10 + np.arange(10), np.arange(10, dtype=np.int8) + 118],
    ids=["float nanoseconds", "largest int64", "largest int8"],
)
def test_a_split_by_time_without_a_test_part_has_all_rows(times: Any) -> None:
    table = pa.table({"at": times})
    split = find_time_split([table], "at", valid=0.2, test=0)
    kept = [int(split.of(part).keep(table, "", 0).sum()) for part in ("train", "valid", "test")]
    assert kept == [8, 2, 0]


def test_a_split_by_time_without_a_test_part_has_what_its_sample_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torchrec.datasets.split._SAMPLE", 10)
    table = pa.table({"at": range(1000)})
    split = find_time_split([table], "at", valid=0.2, test=0).of("test")
    assert not split.keep(table, "", 0).any()


def test_a_split_by_time_samples_what_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchrec.datasets.split._SAMPLE", 4_000)
    tables = (pa.table({"at": range(i * 1000, (i + 1) * 1000)}) for i in range(100))
    split = find_time_split(tables, "at", valid=0.2, test=0.1)
    assert abs(split.valid_from - 70_000) < 3_000
    assert abs(split.test_from - 90_000) < 3_000


def test_a_split_by_time_needs_times(write: Write) -> None:
    source = TableSource(write("a.parquet", {"at": [1, None], "name": ["a", "b"]}))
    assert message_of(lambda: find_time_split(source.scan(), "at", 0.1, 0.1)).startswith(
        "Column 'at', by which data is split, should hold no null. Received 1"
    )
    assert "numbers, dates or timestamps. Received" in message_of(
        lambda: find_time_split(source.scan(), "name", 0.1, 0.1)
    )
    assert message_of(lambda: find_time_split([], "at", 0.1, 0.1)).endswith("Received none.")
    assert "sum to less than 1" in message_of(lambda: FractionSplit(0.5, 0.5))
    with pytest.raises(ValueError, match=r"`part` should be one of .* Received 'all'"):
        FractionSplit(0.1, 0.1, part="all")  # type: ignore[arg-type]
