"""Finding data files."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from torchrec.datasets.files import DataFile, resolve_files

pytestmark = pytest.mark.once


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.csv", "a.csv", "c.tsv", "d.csv.gz", "e.tsv.zst", "notes.txt", ".hidden.csv"):
        (tmp_path / name).write_text("x\n1\n")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "f.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "g.pq")
    return tmp_path


def names(files: list[DataFile]) -> list[str]:
    return [os.path.basename(file.path) for file in files]


def test_patterns_are_sorted_and_files_taken_once(folder: Path) -> None:
    assert names(resolve_files([folder / "*.csv"])) == ["a.csv", "b.csv"]
    assert names(resolve_files([folder / "b.csv", str(folder / "*.csv")])) == ["b.csv", "a.csv"]
    assert names(resolve_files(str(folder / "b.csv"))) == ["b.csv"]


def test_folders_give_their_data_files(tmp_path: Path) -> None:
    for name in ("part-1.csv", "part-0.csv", "_SUCCESS", ".crc", "readme.md"):
        (tmp_path / name).write_text("x\n1\n")
    assert names(resolve_files(tmp_path)) == ["part-0.csv", "part-1.csv"]


def test_folders_are_searched_in_their_folders(tmp_path: Path) -> None:
    for name in ("dt=2/part-0", "dt=1/hour=3/part-0", "dt=1/part-1", "_temporary/x", ".old/x"):
        path = tmp_path / "shop" / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x\n1\n")
    expected = ["dt=1/hour=3/part-0", "dt=1/part-1", "dt=2/part-0"]
    for pattern in ("shop", "shop/", "sh*", "shop/*", "shop/dt=*"):
        assert [file.name for file in resolve_files(f"{tmp_path}/{pattern}")] == expected
    below = resolve_files(tmp_path / "shop" / "dt=*" / "**" / "*.csv")
    assert [file.name for file in below] == expected
    with pytest.raises(ValueError, match="should match at least one data file"):
        resolve_files(tmp_path / "shop" / "_temp*")


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_to_a_folder_above_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.csv").write_text("x\n1\n")
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    assert names(resolve_files(tmp_path)) == ["x.csv"]


@pytest.mark.parametrize(
    ("name", "format", "compression"),
    [
        ("a.csv", "csv", None),
        ("c.tsv", "tsv", None),
        ("d.csv.gz", "csv", "gzip"),
        ("e.tsv.zst", "tsv", "zstd"),
        ("f.parquet", "parquet", None),
        ("g.pq", "parquet", None),
    ],
)
def test_formats_by_suffix(folder: Path, name: str, format: str, compression: str | None) -> None:
    (file,) = resolve_files(folder / name)
    assert (file.format, file.compression) == (format, compression)


def test_a_given_format_overrides_the_suffix(folder: Path) -> None:
    assert resolve_files(folder / "notes.txt", "tsv")[0].format == "tsv"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("no.csv", r"Data file '.*no\.csv' should exist\. Received none\."),
        ("*.arrow", r"Pattern '.*' should match at least one data file\. Received none\."),
        ("sub", r"Folder '.*sub' should match at least one data file"),
        ("notes.txt", r"Data files should end in \.parquet, .* Received '.*notes\.txt'\."),
        ("empty.csv", r"Data file '.*empty\.csv' should hold samples\. Received an empty file\."),
        ("text.parquet", r"'.*text\.parquet' should be a Parquet file\. Received something else\."),
        ("cut.parquet", r"Parquet file '.*cut\.parquet' should be complete\. .* cut off"),
        ("x.parquet.gz", r"Parquet files are compressed inside"),
    ],
)
def test_what_cannot_be_read_is_refused(folder: Path, pattern: str, message: str) -> None:
    (folder / "sub").mkdir()
    (folder / "empty.csv").touch()
    (folder / "text.parquet").write_text("label,x\n1,2\n")
    (folder / "x.parquet.gz").write_text("?")
    whole = (folder / "f.parquet").read_bytes()
    (folder / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=message):
        resolve_files(folder / pattern)


def test_no_names_and_mixed_formats_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"should name at least one\. Received none"):
        resolve_files([])
    with pytest.raises(
        ValueError, match=r"should have one format; '.*a\.csv' is csv\. Received '.*c\.tsv'"
    ):
        resolve_files([folder / "a.csv", folder / "c.tsv"])


def test_a_fingerprint_of_all_bytes_misses_none(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(bytes(3 << 20))
    file = DataFile(str(path), "csv")
    sampled, whole = file.fingerprint(1000), file.fingerprint(most=None)
    with open(path, "r+b") as opened:
        opened.seek(1_100_000)
        opened.write(b"1")
    assert file.fingerprint(1000) == sampled
    assert file.fingerprint(most=None) != whole
    assert file.fingerprint(most=None) == file.fingerprint(3 << 20)


@pytest.mark.parametrize("most", [1 << 20, 1000], ids=["whole", "sampled"])
def test_fingerprints_tell_files_apart(tmp_path: Path, most: int) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(bytes(range(256)) * 100)
    file = DataFile(str(path), "csv")
    first = file.fingerprint(most)
    path.touch()
    assert file.fingerprint(most) == first
    for place in (0, 25_599):
        changed = bytearray(bytes(range(256)) * 100)
        changed[place] ^= 1
        path.write_bytes(changed)
        assert file.fingerprint(most) != first
    path.write_bytes(bytes(range(256)) * 101)
    assert file.fingerprint(most) != first
