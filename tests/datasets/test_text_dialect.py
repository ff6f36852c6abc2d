"""How text files are written, each option against files that need it."""

from __future__ import annotations

import csv
import gzip
import io
import random
import re
from pathlib import Path
from typing import Any

import pytest

from torchrec.datasets import csv_reader
from torchrec.datasets._blocks import blocks
from torchrec.datasets._chunks import ChunkStart, Reading
from torchrec.datasets._records import RecordForm
from torchrec.datasets.data_error import DataError
from torchrec.datasets.files import DataFile
from torchrec.datasets.headers import find_encoding
from torchrec.datasets.source import TableSource
from torchrec.datasets.text_dialect import TextDialect

pytestmark = pytest.mark.once


def rows(source: TableSource) -> list[dict[str, Any]]:
    return [row for table in source.scan() for row in table.to_pylist()]


def test_defaults_say_nothing() -> None:
    assert TextDialect().given == []
    assert TextDialect(quote="none", times=["%d"], missing=[]).given == ["quote", "times"]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "gbk", "UTF8"])
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_encodings(tmp_path: Path, encoding: str, suffix: str) -> None:
    name = "名" if encoding == "gbk" else "Käse"
    text = "".join(f"{i},{name} {i % 7}\n" for i in range(5000))
    path = tmp_path / f"a{suffix}"
    data = f"id,{name}\n{text}".encode(encoding)
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    source = TableSource(path, dialect=TextDialect(encoding=encoding))
    assert rows(source) == [{"id": i, name: f"{name} {i % 7}"} for i in range(5000)]
    last = list(source.chunks(["id"], Reading()))[-1]
    again = next(source.chunks(["id"], Reading(), last.start))
    assert again.decode() == last.decode()


def test_blocks_of_recoded_text_are_those_of_utf8(tmp_path: Path) -> None:
    text = "".join(f'{i},"ä {i}\nb",{i}\n' for i in range(3000))
    form = RecordForm(b",", 3)
    (tmp_path / "a.csv").write_text(text, "utf-8")
    (tmp_path / "b.csv").write_text(text, "utf-16-le")
    one, other = (DataFile(str(tmp_path / name), "csv") for name in ("a.csv", "b.csv"))
    found = list(blocks(one, ChunkStart(), 5000, form))
    assert len(found) > 5
    assert list(blocks(other, ChunkStart(), 5000, form._replace(encoding="utf-16-le"))) == found


def test_another_encoding_than_declared_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("x,y\n1,Käse\n".encode("latin-1") * 2)
    with pytest.raises(ValueError, match=r"should be text in the encoding 'euc_jp'\. Received b"):
        TableSource(tmp_path / "a.csv", dialect=TextDialect(encoding="euc_jp"))
    with pytest.raises(ValueError, match=r"`encoding` should be one that Python knows.*'hex'"):
        TextDialect(encoding="hex")


@pytest.mark.parametrize(
    ("written", "found"),
    [("utf-8", "utf-8"), ("latin-1", "cp1252"), ("utf-16", "utf-16"), ("utf-16-be", "utf-16-be")],
)
def test_encodings_are_found_far_into_a_file(tmp_path: Path, written: str, found: str) -> None:
    text = "id,name\n" + "1,plain\n" * 700_000 + "2,Käse\n"
    (tmp_path / "a.csv").write_text(text, written)
    assert find_encoding(DataFile(str(tmp_path / "a.csv"), "csv")) == found


def test_a_character_between_two_reads_is_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"x\n" * ((1 << 21) - 1) + b"x" + "é".encode() + b"\n")
    assert find_encoding(DataFile(str(tmp_path / "a.csv"), "csv")) == "utf-8"


def test_without_quotes_each_line_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"id",title\n1,"two\n2,lines"\n3,""\n4,5" disk\n')
    source = TableSource(tmp_path / "a.csv", dialect=TextDialect(quote="none"))
    assert [list(row.values()) for row in rows(source)] == [
        [1, '"two'],
        [2, 'lines"'],
        [3, '""'],
        [4, '5" disk'],
    ]
    assert source.names == ['"id"', "title"]
    assert len(rows(TableSource(tmp_path / "a.csv"))) == 3


def test_bad_lines_are_refused_or_skipped_and_counted(tmp_path: Path) -> None:
    drawn = random.Random(0)
    kept, lines = [], []
    for row in range(3000):
        if drawn.random() < 0.1:
            lines.append(drawn.choice(["x,y", "x", "1,2,3,4", '"a\nb",2', "1,2,3,4\r"]))
        elif drawn.random() < 0.05:
            lines.append("")
        else:
            title = drawn.choice(["plain", "two\nlines", '5" disk', "a, b"])
            kept.append([str(row), title, "1"])
            out = io.StringIO()
            csv.writer(out, lineterminator="\n").writerow(kept[-1])
            lines.append(out.getvalue()[:-1])
    path = tmp_path / "a.csv"
    path.write_text("id,title,n\n" + "\n".join(lines) + "\n", newline="")
    with pytest.raises(DataError, match="Expected 3 columns, got") as caught:
        TableSource(path)
    assert caught.value.remedy == {"bad_lines": "skip"}
    source = TableSource(path, dialect=TextDialect(bad_lines="skip"))
    for _ in range(2):  # counted once, however often they are read
        found = [[str(row["id"]), row["title"], str(row["n"])] for row in rows(source)]
        assert found == kept
    bad = sum(1 for line in lines if line) - len(kept)
    assert source.notices == [
        f"Lines of '{path}' with more or fewer fields than there are columns: {bad}, skipped."
    ]


def test_rows_of_skipped_lines_do_not_depend_on_blocks(tmp_path: Path) -> None:
    text = "".join(f"{i},{i},{i}\n" + ("bad\n" if i % 10 == 0 else "") for i in range(4000))
    path = tmp_path / "a.csv"
    path.write_text(text)
    form = RecordForm(b",", 3, skips_bad=True)
    for size in (500, 7777, 1 << 20):
        found = list(blocks(DataFile(str(path), "csv"), ChunkStart(), size, form))
        assert b"".join(block.data for block in found) == re.sub("bad\n", "", text).encode()
        ends = [block.row + block.rows for block in found]
        assert [block.row for block in found] == [0, *ends[:-1]]
        assert (ends[-1], sum(block.oddity.bad for block in found if block.oddity)) == (4000, 400)


@pytest.mark.parametrize("nothing", ["bad\n", "\n", "x,y\n"], ids=["bad", "blank", "headers"])
def test_blocks_without_a_row(
    nothing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_reader, "CHUNK_BYTES", 40)
    path = tmp_path / "a.csv"
    path.write_text("x,y\n1,2\n" + nothing * 60 + "3,4\n")
    source = TableSource(path, dialect=TextDialect(bad_lines="skip"))
    assert rows(source) == [{"x": 1, "y": 2}, {"x": 3, "y": 4}]
    assert [notice.count(" 60, ") for notice in source.notices] == [1] * (nothing != "\n")


def test_bad_lines_between_several_characters(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_text('1::a"b::2\n1::2\n3::c::4\n')
    file = DataFile(str(tmp_path / "a.dat"), "csv")
    dialect = TextDialect(["x", "y", "z"], "::", bad_lines="skip")
    source = TableSource([file], dialect=dialect)
    assert rows(source) == [{"x": 1, "y": 'a"b', "z": 2}, {"x": 3, "y": "c", "z": 4}]


def test_repeated_headers_and_values_that_swallow_lines_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    text = "\n".join(f"word {i}" for i in range(60))
    path.write_text(f'id,text\n1,a\nid,text\n2,"{text}"\n3,b\n')
    source = TableSource(path)
    assert [row["id"] for row in rows(source)] == [1, 2, 3]
    header, swallowed = source.notices
    assert header == f"Lines of '{path}' that repeat its header: 1, left out."
    assert swallowed.startswith(f"'{path}': one value, in row 2, spans 60 lines.")
    assert TableSource(tmp_path / "a.csv").of(None).notices == source.notices


def test_times_as_they_were_declared(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,at\n1,31.12.2023 23:59\n2,NA\n3,01.02.2024 00:00\n")
    plain = TableSource(path)
    assert str(plain.schema.field("at").type) == "string"
    source = TableSource(path, dialect=TextDialect(times=["%d.%m.%Y %H:%M"]))
    assert [str(row["at"]) for row in rows(source)] == [
        "2023-12-31 23:59:00",
        "None",
        "2024-02-01 00:00:00",
    ]
