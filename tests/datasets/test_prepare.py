from __future__ import annotations

import gzip
import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec.datasets.prepare.criteo import COLUMNS, prepare_criteo
from torchrec.datasets.prepare.movielens import prepare_movielens

pytestmark = pytest.mark.once

DATA = Path(os.environ.get("ROWWISE_DATA", Path(__file__).parents[3] / "shared" / "data"))


def _real(*parts: str) -> Path:
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no real data at {path}; set ROWWISE_DATA to their folder")
    return path


def _line(label: str, integers: dict[int, str], categories: dict[int, str]) -> str:
    return "\t".join(
        [
            label,
            *(integers.get(n, "") for n in range(1, 14)),
            *(categories.get(n, "") for n in range(1, 27)),
        ]
    )


def test_criteo_keeps_what_is_missing_missing(tmp_path: Path) -> None:
    raw = tmp_path / "day"
    raw.write_text(
        "\n".join([_line("0", {1: "-1", 13: "7"}, {26: "0a"}), _line("1", {}, {1: "null"})]) + "\n"
    )
    assert prepare_criteo([raw, raw], tmp_path / "out" / "criteo.parquet") == 4
    table = pq.read_table(tmp_path / "out" / "criteo.parquet")
    assert table.column_names == list(COLUMNS)
    rows = [{k: v for k, v in row.items() if v is not None} for row in table.to_pylist()]
    once = [
        {"label": 0, "int_1": -1, "int_13": 7, "cat_26": "0a"},
        {"label": 1, "cat_1": "null"},
    ]
    assert rows == once * 2


@pytest.mark.parametrize("number", ["2.0", "-3.", " 4", "+5.00", "9007199254740993.0", "007.0"])
def test_criteo_reads_whole_numbers_with_decimals(tmp_path: Path, number: str) -> None:
    raw = tmp_path / "train.txt"
    lines = [_line("1.0", {1: number, 13: "7"}, {1: "2.0"}), _line("0", {2: "1"}, {})]
    raw.write_text("".join(f"{line}\n" for line in lines))
    assert prepare_criteo([raw], tmp_path / "criteo.parquet") == 2
    table = pq.read_table(tmp_path / "criteo.parquet")
    assert table["label"].to_pylist() == [1, 0]
    assert table["int_1"].to_pylist() == [int(number.split(".")[0]), None]
    assert (table["int_2"].to_pylist(), table["int_13"].to_pylist()) == ([None, 1], [7, None])
    assert table["cat_1"].to_pylist() == ["2.0", None]


@pytest.mark.parametrize("label", ["0", ""], ids=["labelled", "unlabelled"])
@pytest.mark.parametrize("wrong", ["2.5", "five", "nan", "1e3", "-", " "])
def test_criteo_names_column_and_row(tmp_path: Path, wrong: str, label: str) -> None:
    raw = tmp_path / "train.txt"
    start = 0 if label else 1  # of what comes behind the first tab
    lines = [_line(label, {3: "1"}, {}), _line(label, {3: wrong}, {})]
    raw.write_text("".join(f"{line[start:]}\n" for line in lines))
    if not wrong.strip():
        assert prepare_criteo([raw], tmp_path / "criteo.parquet") == 2
        return
    with pytest.raises(ValueError, match=rf"column 'int_3' .* Received '{wrong}' in row 2\."):
        prepare_criteo([raw], tmp_path / "criteo.parquet")


def test_criteo_names_columns_of_other_errors(tmp_path: Path) -> None:
    raw = tmp_path / "train.txt"
    raw.write_bytes(_line("0", {}, {2: "ab"}).encode().replace(b"ab", b"\xff\xfe"))
    with pytest.raises(ValueError, match=r"in column 'cat_2'.*UTF8"):
        prepare_criteo([raw], tmp_path / "criteo.parquet")
    raw.write_text(_line("300", {}, {}))
    with pytest.raises(ValueError, match=r"column 'label' should hold integers of 8 bits.*300"):
        prepare_criteo([raw], tmp_path / "criteo.parquet")


def test_criteo_reads_gzip_in_row_groups(tmp_path: Path) -> None:
    raw = tmp_path / "day_0.gz"
    lines = "".join(_line("1", {1: str(n)}, {1: f"{n:08x}"}) + "\n" for n in range(100_000))
    raw.write_bytes(gzip.compress(lines.encode(), 1))
    prepare_criteo([raw], tmp_path / "criteo.parquet")
    file = pq.ParquetFile(tmp_path / "criteo.parquet")
    groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert groups == [65_536, 34_464]
    assert file.read(["int_1"])["int_1"].to_pylist() == list(range(100_000))


def test_criteo_sample_row_by_row(tmp_path: Path) -> None:
    raw = _real("criteo", "train_first_10000.txt")
    prepare_criteo([raw], tmp_path / "criteo.parquet")
    rows = pq.read_table(tmp_path / "criteo.parquet").to_pylist()
    lines = raw.read_text().splitlines()
    assert len(rows) == len(lines) == 10_000
    for row, line in zip(rows, lines, strict=True):
        assert ["" if value is None else str(value) for value in row.values()] == line.split("\t")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, "should be a file of the raw Criteo log. Received no such file"),
        ("", "should have 40 tab-separated columns a line.*Empty CSV file"),
        ("1\t2\t3\n", "should have 40 tab-separated columns a line.*Expected 40 columns, got 3"),
        (
            _line("1", {1: "five"}, {}) + "\n",
            "column 'int_1' should hold integers.*'five' in row 1",
        ),
    ],
    ids=["missing", "empty", "columns", "no-integer"],
)
def test_criteo_refuses(tmp_path: Path, text: str | None, match: str) -> None:
    raw = tmp_path / "train.txt"
    if text is not None:
        raw.write_text(text)
    with pytest.raises(ValueError, match=match) as caught:
        prepare_criteo([raw], tmp_path / "criteo.parquet")
    assert str(raw) in str(caught.value)
    assert not (tmp_path / "criteo.parquet").exists()
    assert list(tmp_path.glob(".*")) == []


def _write_movielens(
    folder: Path, ratings: str = "1::20::5::978300760\n2::10::3::978302109\n"
) -> Path:
    folder.mkdir()
    users = "1::F::1::10::48067\n2::M::56::16::70072-12\n"
    movies = '10::Amélie: a "quoted" one (2001)::Comedy|Romance\n20::Untitled::Drama\n'
    (folder / "users.dat").write_text(users, "iso-8859-1")
    (folder / "movies.dat").write_text(movies, "iso-8859-1")
    (folder / "ratings.dat").write_text(ratings, "iso-8859-1")
    return folder


def test_movielens_joins(tmp_path: Path) -> None:
    out = tmp_path / "movielens.parquet"
    assert prepare_movielens(_write_movielens(tmp_path / "ml"), out) == 2
    first, second = pq.read_table(out).to_pylist()
    assert first == {
        "user_id": 1,
        "movie_id": 20,
        "rating": 5,
        "timestamp": 978300760,
        "gender": "F",
        "age": 1,
        "occupation": 10,
        "zip": "48067",
        "title": "Untitled",
        "genres": ["Drama"],
        "year": None,
        "label": 1,
    }
    assert second["title"] == 'Amélie: a "quoted" one (2001)'
    assert (second["year"], second["genres"]) == (2001, ["Comedy", "Romance"])
    assert (second["zip"], second["label"]) == ("70072-12", 0)


def test_movielens_drops_neutral_ratings(tmp_path: Path) -> None:
    out = tmp_path / "movielens.parquet"
    assert prepare_movielens(_write_movielens(tmp_path / "ml"), out, drop_neutral=True) == 1
    assert pq.read_table(out)["rating"].to_pylist() == [5]


def test_movielens_refuses_ratings_of_nobody(tmp_path: Path) -> None:
    folder = _write_movielens(tmp_path / "ml", "1::20::5::1\n7::20::5::1\n")
    with pytest.raises(
        ValueError, match=r"`user_id` of the ratings .* the 2 of its own.*Received 7"
    ):
        prepare_movielens(folder, tmp_path / "movielens.parquet")


def test_movielens_refuses_other_files(tmp_path: Path) -> None:
    folder = _write_movielens(tmp_path / "ml", "userId,movieId\n")
    with pytest.raises(
        ValueError, match=r"ratings\.dat' should have lines of the form user_id::movie"
    ):
        prepare_movielens(folder, tmp_path / "movielens.parquet")
    with pytest.raises(ValueError, match=r"should hold ratings\.dat, users\.dat and movies.dat"):
        prepare_movielens(tmp_path, tmp_path / "movielens.parquet")


@pytest.mark.slow
def test_movielens_row_by_row(tmp_path: Path) -> None:
    raw, split = _real("ml-1m", "raw"), _real("ml-1m", "split")
    prepare_movielens(raw, tmp_path / "movielens.parquet", drop_neutral=True)
    ours = pq.read_table(tmp_path / "movielens.parquet")
    theirs = pa.concat_tables(
        pq.read_table(split / f"{part}.parquet") for part in ("train", "valid", "test")
    )
    key = ["user_id", "movie_id"]
    frames = [
        table.select(theirs.column_names).to_pandas().sort_values(key).reset_index(drop=True)
        for table in (ours, theirs)
    ]
    for frame in frames:
        frame["genres"] = frame["genres"].map("|".join)
    pd.testing.assert_frame_equal(*frames, check_dtype=False)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.gz", b"text"), ("b.gz", gzip.compress(b"x" * 99)[:-9]), ("c.zst", b"PK")],
)
def test_criteo_names_files_that_are_not_whole(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"'.*{name}' should be whole and readable. Received: "):
        prepare_criteo([tmp_path / name], tmp_path / "criteo.parquet")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_criteo_without_labels(tmp_path: Path, packed: bool) -> None:
    raw, out = tmp_path / ("test.gz" if packed else "test.txt"), tmp_path / "criteo.parquet"
    line = _line("1", {1: "-1"}, {26: "0a"})
    content = (line[2:] + "\n").encode() * 3
    raw.write_bytes(gzip.compress(content) if packed else content)
    assert prepare_criteo([raw, raw], out) == 6
    table = pq.read_table(out)
    assert table.column_names == list(COLUMNS[1:])
    assert table["int_1"].to_pylist() == [-1] * 6
    assert table["cat_26"].to_pylist() == ["0a"] * 6
    (tmp_path / "train.txt").write_text(line + "\n")
    with pytest.raises(
        ValueError, match=r"train.txt' should have 39 .* a line: 13 integers, 26 cat"
    ):
        prepare_criteo([raw, tmp_path / "train.txt"], out)
    with pytest.raises(ValueError, match=r"test.*' should have 40 .* a line: a label, 13 integers"):
        prepare_criteo([tmp_path / "train.txt", raw], out)
    assert pq.read_metadata(out).num_rows == 6
