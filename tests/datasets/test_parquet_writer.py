"""Parquet that we write: what damage to it is noticed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from torchrec.datasets.parquet_writer import ParquetWriter
from torchrec.datasets.source import TableSource

pytestmark = pytest.mark.once


def _clicks(rows: int = 300) -> pa.Table:
    draw = np.random.default_rng(0)
    return pa.table(
        {
            "user": draw.integers(0, 1 << 60, rows),
            "country": pa.array([f"{n:09x}" for n in draw.integers(0, 50, rows)]),
            "tags": [[str(n)] * (n % 3) for n in draw.integers(0, 9, rows)],
            "price": pa.array([None if n < 2 else n * 1.25 for n in draw.integers(0, 9, rows)]),
        }
    )


def _page_data(path: Path) -> Iterator[int]:
    """Give places inside pages: from the end of each column of each row group, where no header is."""
    metadata = pq.read_metadata(path)
    for number in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            column = metadata.row_group(number).column(index)
            pages = (column.dictionary_page_offset, column.data_page_offset)
            start = min(page for page in pages if page)
            stop = start + column.total_compressed_size
            yield from (stop - 1, stop - 7)
            if column.has_dictionary_page:  # its end is where the data begin
                yield column.data_page_offset - 3


def test_every_flipped_bit_in_a_page_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path, damaged = tmp_path / "clicks.parquet", tmp_path / "damaged.parquet"
    with ParquetWriter(path) as file:
        file.write(_clicks())
        file.write(_clicks(200))
    whole = path.read_bytes()
    places = [8 * place + bit for place in _page_data(path) for bit in range(8)]
    assert len(places) > 100
    for bit in places:
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        damaged.write_bytes(content)
        with pytest.raises(ValueError, match=f"{re.escape(str(damaged))}' should be whole"):
            list(TableSource(damaged).scan())


def test_columns_that_are_not_read_are_not_checked(tmp_path: Path) -> None:
    path = tmp_path / "clicks.parquet"
    with ParquetWriter(path) as file:
        file.write(_clicks())
    content = bytearray(path.read_bytes())
    content[next(_page_data(path))] ^= 1  # of the user
    path.write_bytes(content)
    read = pa.concat_tables(TableSource(path).scan(["country"]))
    assert read["country"].to_pylist() == _clicks()["country"].to_pylist()
    with pytest.raises(ValueError, match="CRC"):
        list(TableSource(path).scan(["user"]))


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    pq.write_table(_clicks(), tmp_path / "clicks.parquet", write_page_checksum=False)
    (table,) = TableSource(tmp_path / "clicks.parquet").scan()
    assert table["user"].to_pylist() == _clicks()["user"].to_pylist()


def test_a_name_with_a_colon_is_no_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ParquetWriter("s3://bucket/clicks.parquet") as file:
        file.write(pa.table({"click": [1]}))
    assert [path.name for path in (tmp_path / "s3:" / "bucket").iterdir()] == ["clicks.parquet"]
