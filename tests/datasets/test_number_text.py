"""Numbers as people write them, and what readers of text make of them."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec.datasets.number_text import MARKERS, Decimal, UnreadableError, read_number_text
from torchrec.datasets.source import TableSource
from torchrec.datasets.split import find_time_split
from torchrec.datasets.text_dialect import TextDialect
from torchrec.datasets.text_types import MisfitError

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("text", "decimal", "number"),
    [
        ("1.5", ".", 1.5),
        (" 12 ", ".", 12),
        ("+3", ".", 3),
        ("-2e3", ".", -2000),
        (".5", ".", 0.5),
        ("1,234", ".", 1234),
        ("1,234,567.25", ".", 1234567.25),
        ("1 234.5", ".", 1234.5),
        ("12.5%", ".", 12.5),
        ("12 %", ".", 12),
        ("$1,299.99", ".", 1299.99),
        ("-$5", ".", -5),
        ("5 €", ".", 5),
        ("12,5", ",", 12.5),
        ("1.234,50", ",", 1234.5),
        ("1.234", ",", 1234),
        ("1 234,5 %", ",", 1234.5),
        ("0,05", ",", 0.05),
        *[(marker, ".", None) for marker in MARKERS],
    ],
)
def test_numbers(text: str, decimal: Decimal, number: float | None) -> None:
    assert read_number_text(pa.array([text, None]), pa.float64(), decimal).to_pylist() == [
        number, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "type"),
    [
        ("12,5", pa.float64()),  # a decimal comma, or a list
        ("1,2345", pa.float64()),
        ("1,23,456", pa.float64()),
        ("3|4", pa.float64()),
        ("NASA", pa.float64()),
        ("1.5", pa.int64()),
        ("1e3", pa.int64()),
        ("9223372036854775808", pa.int64()),
        ("2024-01-31", pa.float64()),
        ("--1", pa.float64()),
    ],
)
def test_what_is_no_number_is_named(text: str, type: pa.DataType) -> None:
    with pytest.raises(UnreadableError) as caught:
        read_number_text(pa.array(["1", "NA", text, "x"]), type)
    assert (caught.value.row, caught.value.value) == (2, text)


def test_whole_numbers_are_exact() -> None:
    cells = ["9007199254740993.0", "9,007,199,254,740,993", "-9223372036854775808"]
    assert read_number_text(pa.array(cells), pa.int64()).to_pylist() == [
        2**53 + 1, 2**53 + 1, -(2**63),
    ]  # fmt: skip


def csv(path: Path, cells: list[str], delimiter: str = ",") -> Path:
    quoted = [f'"{cell}"' if delimiter in cell else cell for cell in cells]
    path.write_text(
        "\n".join([f"k{delimiter}x", *(f"{i}{delimiter}{c}" for i, c in enumerate(quoted))])
    )
    return path


def values(source: TableSource, column: str = "x") -> list[Any]:
    return [value for table in source.scan([column]) for value in table[column].to_pylist()]


SEVEN = datetime.datetime(2019, 10, 1, 7, tzinfo=datetime.timezone.utc)


@pytest.mark.parametrize(
    ("cells", "type", "found"),
    [
        (["1", "NA", "3"], "int64", [1, None, 3]),
        (["1.5", "None", "?", "-", "(null)"], "double", [1.5, None, None, None, None]),
        (["de", "NA", "-"], "string", ["de", "NA", "-"]),
        (["NA", "NA"], "string", ["NA", "NA"]),
        (["007", "NA"], "string", ["007", "NA"]),
        (["true", "NA"], "bool", [True, None]),
        (["2024-01-31", "-"], "date32[day]", [datetime.date(2024, 1, 31), None]),
        (["2019-10-01 07:00:00 UTC", "NA"], "timestamp[s, tz=UTC]", [SEVEN, None]),
        (["2019-10-01 07:00:00 GMT"], "timestamp[s, tz=UTC]", [SEVEN]),
        (["2019-10-01 07:00:00 +0000"], "timestamp[s, tz=UTC]", [SEVEN]),
        (["2019-10-01 07:00:00 UTC", "2019-10-01 07:00:00"], "timestamp[s]", 2 * [SEVEN.replace(tzinfo=None)]),
        (["2019-10-01 07:00:00 +0200"], "string", ["2019-10-01 07:00:00 +0200"]),
        (["1,234", "12"], "string", ["1,234", "12"]),  # or a list
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_what_stands_for_missing(
    tmp_path: Path, cells: list[str], type: str, found: list[Any]
) -> None:
    source = TableSource(csv(tmp_path / "a.csv", cells))
    assert str(source.schema.field("x").type) == type
    assert values(source) == found


@pytest.mark.parametrize("block", [16, 1 << 20])
def test_later_lines_may_be_written_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr("torchrec.datasets.csv_reader.CHUNK_BYTES", block)
    cells = [*map(str, range(20)), "7.0", "NA", "", "1,234", "9"]
    source = TableSource(csv(tmp_path / "a.csv", cells), schema=pa.schema([("x", pa.int64())]))
    assert values(source) == [*range(20), 7, None, None, 1234, 9]
    cells[3] = "1.5"
    source = TableSource(csv(tmp_path / "b.csv", cells), schema=pa.schema([("x", pa.float64())]))
    assert values(source)[3:5] + values(source)[20:] == [1.5, 4, 7, None, None, 1234, 9]


def test_what_fits_no_way_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchrec.datasets.csv_reader.CHUNK_BYTES", 100)
    path = csv(tmp_path / "a.csv", ["1"] * 40 + ["NA", "2.0", "many", "3"])
    with pytest.raises(MisfitError, match=r"line 44, column 'x', .* Received 'many'") as caught:
        values(TableSource(path))
    assert caught.value.wider == {"x": "string"}


def test_declared_missing_values(tmp_path: Path) -> None:
    path = csv(tmp_path / "a.csv", ["1", "-999", "de"])
    assert values(TableSource(path, dialect=TextDialect(missing=["-999"]))) == ["1", None, "de"]
    path = csv(tmp_path / "b.csv", ["1", "-999", "keine"])
    source = TableSource(path, dialect=TextDialect(missing=["-999", "keine"]))
    assert (values(source), str(source.schema.field("x").type)) == ([1, None, None], "int64")
    other = source.over([csv(tmp_path / "c.csv", ["-999", "4"])])
    assert values(other) == [None, 4]


def test_decimal_commas(tmp_path: Path) -> None:
    path = csv(tmp_path / "a.csv", ["1,5", "-", "2", "1.234,5"], ";")
    numbers = pa.schema([("x", pa.float64())])
    source = TableSource(path, dialect=TextDialect(delimiter=";", decimal=","), schema=numbers)
    assert values(source) == [1.5, None, 2.0, 1234.5]
    plain = TableSource(
        csv(tmp_path / "b.csv", ["1,5", "2,5"], ";"),
        dialect=TextDialect(delimiter=";", decimal=","),
    )
    assert str(plain.schema.field("x").type) == "double"
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="`decimal` should be given only for CSV and TSV files"):
        TableSource(tmp_path / "a.parquet", dialect=TextDialect(decimal=","))


def test_headers_between_rows_are_skipped(tmp_path: Path) -> None:
    """As in files that were put one behind the other."""
    path = tmp_path / "a.csv"
    path.write_text("k,x\n1,2\nk,x\n3,4\nk,x\n")
    source = TableSource(path)
    assert (values(source), str(source.schema.field("x").type)) == ([2, 4], "int64")


def test_integers_in_one_file_and_floats_in_another(tmp_path: Path) -> None:
    """As pandas has ids with nulls."""
    pq.write_table(pa.table({"x": pa.array([1, 2], pa.int32())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": [3.0, None, float("nan")]}), tmp_path / "b.parquet")
    for names in (["a", "b"], ["b", "a"]):
        source = TableSource([tmp_path / f"{name}.parquet" for name in names])
        assert str(source.schema.field("x").type) == "double"
        assert sorted(one for one in values(source) if one and one == one) == [1, 2, 3]
    first = TableSource(tmp_path / "a.parquet")
    assert values(first.over(tmp_path / "b.parquet"))[:2] == [3, None]
    assert values(TableSource(tmp_path / "b.parquet").over(tmp_path / "a.parquet")) == [1, 2]
    csv(tmp_path / "a.csv", ["1", "2"])
    csv(tmp_path / "b.csv", ["3.0", "", "4.0"])
    source = TableSource([tmp_path / "a.csv", tmp_path / "b.csv"])
    assert (values(source), str(source.schema.field("x").type)) == ([1, 2, 3, None, 4], "int64")


def test_ids_that_floats_cannot_hold_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [2**53 + 1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": [3.0]}), tmp_path / "b.parquet")
    source = TableSource([tmp_path / "a.parquet", tmp_path / "b.parquet"])
    with pytest.raises(
        ValueError, match=r"Values of column 'x' in '.*a\.parquet' should fit double"
    ):
        values(source)


@pytest.mark.parametrize("block", [30, 1 << 20])
def test_files_write_one_zone_in_other_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr("torchrec.datasets.csv_reader.CHUNK_BYTES", block)
    schema = TableSource(csv(tmp_path / "a.csv", ["2019-10-01 07:00:00 UTC", "", "NA"])).schema
    for end in (" UTC", " GMT", "Z", "+00:00"):
        cells = [f"2019-10-01 07:00:00{end}", "-", f"2019-10-01 07:00:00{end}"]
        source = TableSource(csv(tmp_path / "b.csv", cells), schema=schema)
        assert values(source) == [SEVEN, None, SEVEN]
    with pytest.raises(ValueError, match=r"line 2, column 'x', should hold .* tz=UTC"):
        values(TableSource(csv(tmp_path / "c.csv", ["2019-10-01 07:00:00"]), schema=schema))


def test_a_split_by_times_in_utc(tmp_path: Path) -> None:
    hours = [f"2019-10-01 {hour:02d}:00:00 UTC" for hour in range(20)]
    source = TableSource(csv(tmp_path / "a.csv", hours))
    split = find_time_split(source.scan(["x"]), "x", 0.1, 0.1)
    assert len(values(source.of(split), "k")) == 16
