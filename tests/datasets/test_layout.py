"""What is found out about text files from their names and first lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from torchrec.datasets.files import DataFile, check_delimiter
from torchrec.datasets.layout import Layout, find_layout
from torchrec.datasets.source import TableSource
from torchrec.datasets.text_dialect import TextDialect

pytestmark = pytest.mark.once

RATINGS = ["user_id", "item_id", "rating", "timestamp"]


def layout_of(
    tmp_path: Path,
    text: str,
    name: str = "log.csv",
    delimiter: str | None = None,
    columns: list[str] | None = None,
    read: Sequence[str] = (),
) -> Layout:
    path = tmp_path / name
    path.write_text(text)
    return find_layout(DataFile(str(path), "csv"), delimiter, columns, read)


@pytest.mark.parametrize(
    ("name", "delimiter"),
    [("u.data", "\t"), ("ua.base", "\t"), ("u3.test", "\t"), ("ratings.dat", "::")],
)
def test_ratings_of_movielens_are_known(tmp_path: Path, name: str, delimiter: str) -> None:
    lines = [["196", "242", "3", "881250949"], ["186", "302", "3", "891717742"]]
    text = "".join(f"{delimiter.join(line)}\n" for line in lines)
    found = layout_of(tmp_path, text, name)
    assert found[:2] == (delimiter, RATINGS)
    assert found.notice.startswith(f"'{name}' is read as ratings of MovieLens")
    source = TableSource(
        [DataFile(str(tmp_path / name), "csv")],
        dialect=TextDialect(columns=RATINGS, delimiter=delimiter),
    )
    (table,) = source.scan(["item_id", "timestamp"])
    assert table.to_pydict() == {"item_id": [242, 302], "timestamp": [881250949, 891717742]}


def test_a_known_name_with_other_columns_is_no_such_file(tmp_path: Path) -> None:
    assert layout_of(tmp_path, "1\t2\t3\n4\t5\t6\n", "u.data").columns == ["c1", "c2", "c3"]
    with_header = layout_of(tmp_path, "a\tb\tc\td\n1\t2\t3\t4\n", "u.data")
    assert with_header == ("\t", None, "")


def test_rows_of_criteo_are_known(tmp_path: Path) -> None:
    row = ["0", *["1", "", "-2"] * 4, "5", *["68fd1e64", ""] * 13]
    found = layout_of(tmp_path, "\n".join(["\t".join(row)] * 3), "train.txt")
    assert found.columns is not None
    assert (found.columns[0], found.columns[13:15]) == ("label", ["int_13", "cat_1"])
    row[20] = "no hash"
    assert layout_of(tmp_path, "\n".join(["\t".join(row)] * 3)).columns == [
        f"c{i}" for i in range(1, 41)
    ]


@pytest.mark.parametrize(
    ("text", "delimiter", "columns"),
    [
        ("user,price\nann,1.5\nben,2\n", None, None),
        ("ann,1.5\nben,2\n", None, 2),
        ("ann;1,5;0\nben;2,5;1\n", ";", 3),
        ("user|price\nann|1\nben|2\n", "|", None),
        ("user::price\nann::1\n", "::", None),
        ("1::a:b::3\n2::c::4\n", "::", 3),
        ("day,item\n2024-01-01,a\n2024-01-02,b\n", None, None),
        ("2024-01-01,a\n2024-01-02,b\n", None, 2),
        ("user,2019,2020\n1,4,5\n2,6,7\n", None, None),
        ("user,item\nann,x\nben,y\n", None, None),
        ("user,price\n", None, None),
        ("1,2\n", None, 2),
        (",a,1\n,b,2\n", None, 3),
        ("x,\n1,\n2,\n", None, None),
        ('7,"a, b"\n8,"c, d, e"\n', None, 2),
        ("\ufeffuser,price\nann,1\n", None, None),
        ("price\n1\n2\n", None, None),
    ],
)
def test_delimiters_and_headers(
    tmp_path: Path, text: str, delimiter: str | None, columns: int | None
) -> None:
    found = layout_of(tmp_path, text)
    names = None if columns is None else [f"c{i}" for i in range(1, columns + 1)]
    assert (found.delimiter, found.columns) == (delimiter, names)
    assert ("no header" in found.notice) == (columns is not None)


def test_blanks_separate_columns_where_no_suffix_says_otherwise(tmp_path: Path) -> None:
    assert layout_of(tmp_path, "1 2 3\n4 5 6\n", "log.txt")[0] == " "
    assert layout_of(tmp_path, "1 2 3\n4 5 6\n", "log.csv")[0] is None


def test_what_is_given_stays(tmp_path: Path) -> None:
    text = "a;b|c\n1;2|3\n"
    assert layout_of(tmp_path, text, delimiter="|")[:2] == (None, None)
    assert layout_of(tmp_path, text, columns=["x", "y"])[:2] == (";", ["x", "y"])
    assert layout_of(tmp_path, "1,2\n3,4\n", read=["1"]).columns is None
    assert layout_of(tmp_path, "1,2\n3,4\n", read=["click"]).columns == ["c1", "c2"]


@pytest.mark.parametrize("delimiter", ["::", "||", "-|-", ";"])
def test_several_characters_separate_columns(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "a.csv"
    lines = [("user", "title"), ("1", 'a "b'), ("2", "c, d:e")]
    path.write_text("".join(f"{delimiter.join(line)}\n" for line in lines))
    source = TableSource(path, dialect=TextDialect(delimiter=delimiter))
    (table,) = source.scan()
    assert table.to_pydict() == {"user": [1, 2], "title": ['a "b', "c, d:e"]}


@pytest.mark.parametrize("delimiter", ["", "ab", ":a:", '"', "\n", ":\r", "é", ":" * 9])
def test_what_separates_no_columns(delimiter: str) -> None:
    with pytest.raises(ValueError, match=r"`delimiter` should be one character .*, or several"):
        check_delimiter(delimiter)
