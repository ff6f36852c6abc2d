"""What `torchrec init` makes of files that are not as its defaults expect."""

from __future__ import annotations

from pathlib import Path

import pytest

from rowwise import cli
from torchrec.datasets.files import resolve_files
from torchrec.datasets.source import TableSource
from torchrec.experiment.files import load_experiment

pytestmark = pytest.mark.once

ROWS = [("ann", "1.5", 0), ("ben", "2.5", 1), ("ann", "1.0", 0), ("ann", "1.0", 1)] * 10


def write(path: str, delimiter: str, header: bool = True, decimal: str = ".") -> None:
    lines = [("user", "price", "click")] if header else []
    text = [delimiter.join(map(str, row)) for row in [*lines, *ROWS]]
    Path(path).write_text("\n".join(text).replace(".", decimal))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["init", *arguments]) == 2
    assert not Path("experiment.yaml").exists()
    return capsys.readouterr().err


@pytest.mark.parametrize("delimiter", [";", "\t"], ids=["semicolon", "tab"])
def test_what_separates_columns_is_found(delimiter: str) -> None:
    write("log.csv", delimiter)
    assert cli.main(["init", "log.csv", "--label", "click"]) == 0
    experiment = load_experiment("experiment.yaml")
    assert experiment.data.delimiter == delimiter
    assert list(experiment.features or {}) == ["user", "price"]


@pytest.mark.parametrize("given", ["|", r"\t"], ids=["bar", "tab"])
def test_what_separates_columns_is_given(given: str) -> None:
    delimiter = given.replace(r"\t", "\t")
    write("log.csv", delimiter)
    assert cli.main(["init", "log.csv", "--label", "click", "--delimiter", given]) == 0
    assert load_experiment("experiment.yaml").data.delimiter == delimiter


@pytest.mark.parametrize(
    ("delimiter", "decimal"), [(",", "."), (";", ",")], ids=["comma", "semicolon"]
)
def test_files_without_a_header(delimiter: str, decimal: str) -> None:
    write("log.csv", delimiter, header=False, decimal=decimal)
    options = ["--label", "click", "--columns", "user, price,click"]
    assert cli.main(["init", "log.csv", *options]) == 0
    data = load_experiment("experiment.yaml").data
    assert data.columns == ["user", "price", "click"]
    assert data.delimiter == (None if delimiter == "," else ";")


def test_the_first_line_is_no_header(capsys: pytest.CaptureFixture[str]) -> None:
    write("log.csv", ",", header=False)
    error = refused(capsys, "log.csv", "--label", "click")
    assert "Received 'click'. 'log.csv' seems to have no header" in error
    assert "named by position, c1 to c3. Others are given with `--columns a,b,c`." in error
    Path("log.csv").write_text("ann,0,0\nben,1,0\n")  # no names either: one comes twice
    error = refused(capsys, "log.csv", "--label", "click")
    assert "Received 'click'. 'log.csv' seems to have no header" in error


@pytest.mark.parametrize("option", ["--valid", "--test"])
def test_other_files_should_exist(capsys: pytest.CaptureFixture[str], option: str) -> None:
    write("log.csv", ",")
    error = refused(capsys, "log.csv", "--label", "click", option, "nope.parquet")
    assert "Data file 'nope.parquet' should exist." in error


def test_a_delimiter_is_for_text(capsys: pytest.CaptureFixture[str]) -> None:
    write("log.csv", ",")
    error = refused(capsys, "log.csv", "--label", "click", "--delimiter", "ab")
    assert "`delimiter` should be one character" in error


def test_a_model_reads_what_is_separated_as_its_training_data(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write("log.csv", ";")
    small = ["model.layers=[4]", "training.epochs=1", "training.early_stopping=null"]
    assert cli.main(["init", "log.csv", "--label", "click"]) == 0
    assert cli.main(["train", "experiment.yaml", "-o", "run", *small]) == 0
    assert cli.main(["predict", "run", "log.csv"]) == 0
    assert "40 predictions" in capsys.readouterr().out
    write("other.csv", ",")
    assert cli.main(["predict", "run", "other.csv"]) == 2
    assert 'should be separated by ";". Received a header with "," instead' in (
        capsys.readouterr().err
    )
    Path("lower.csv").write_text("User;price\nann;1.5\n")
    assert cli.main(["predict", "run", "lower.csv"]) == 2
    error = capsys.readouterr().err
    assert "Received the columns User, price. The nearest is 'User'." in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", ""], "`--label` should name a column, or be an expression."),
        (
            ["--label", "click", "--exclude", "user", "--exclude", "price"],
            "`--exclude` should leave a column to be a feature. Received user, price, after which none",
        ),
        (["--label", "click", "-o", ".", "--overwrite"], "'.': Is a directory."),
        (["--label", "click", "-o", "", "--overwrite"], "'.': Is a directory."),
        (["--label", "not " * 1500 + "click"], "should be nested at most 100 deep."),
    ],
    ids=["label", "features", "folder", "output", "expression"],
)
def test_options_that_cannot_be(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write("log.csv", ",")
    error = refused(capsys, "log.csv", *arguments)
    assert message in error
    assert len(error) < 2_100


def test_several_columns_are_excluded_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"{i % 7},{i % 5},{i % 11},{i % 3},{i % 2}" for i in range(300)]
    Path("data.csv").write_text("\n".join(['user,shop,city,"a,b",click', *lines]))
    arguments = ["data.csv", "--label", "click", "--exclude"]
    assert "Received 'town'." in refused(capsys, *arguments, "shop,town")
    assert cli.main(["init", *arguments, "shop, city", "--exclude", "a,b"]) == 0
    assert list(load_experiment("experiment.yaml").features or {}) == ["user"]


def test_files_whose_names_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"{i % 7}::{i % 5}::{1 + i // 3 % 5}::{978300000 + i}" for i in range(300)]
    Path("ratings.dat").write_text("\n".join(lines))
    assert "Received 'ratin'; did you mean `rating`?" in refused(
        capsys, "ratings.dat", "--label", "ratin"
    )
    assert cli.main(["init", "ratings.dat", "--label", "rating > 3"]) == 0
    assert "'ratings.dat' is read as ratings of MovieLens" in capsys.readouterr().out
    experiment = load_experiment("experiment.yaml")
    assert (experiment.data.format, experiment.data.delimiter) == ("csv", "::")
    assert experiment.data.columns == ["user_id", "item_id", "rating", "timestamp"]
    assert list(experiment.features or {}) == ["user_id", "item_id"]
    tables = TableSource(
        resolve_files("ratings.dat", "csv"),
        dialect=experiment.data.dialect,
    ).scan(["rating"])
    assert sum(table.num_rows for table in tables) == 300


def test_columns_of_files_without_a_header_are_named_by_position(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write("log.txt", "|", header=False)
    assert cli.main(["init", "log.txt", "--label", "c3"]) == 0
    assert "'log.txt' seems to have no header" in capsys.readouterr().out
    data = load_experiment("experiment.yaml").data
    assert (data.format, data.delimiter, data.columns) == ("csv", "|", ["c1", "c2", "c3"])


def test_text_with_a_header_is_read_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    write("log.txt", ";")
    assert cli.main(["init", "log.txt", "--label", "click"]) == 0
    assert "'log.txt' is read as text with a header." in capsys.readouterr().out
    data = load_experiment("experiment.yaml").data
    assert (data.format, data.delimiter, data.columns) == ("csv", ";", None)


def log(path: str, columns: str, *rows: str) -> str:
    Path(path).write_text("\n".join([columns, *rows * 3]) + "\n")
    return path


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            [],
            "`--label` should be a column of 0 and 1, or an expression over columns. Received none.",
        ),
        (["--label", "a"], "should read columns of the data. Received 'a'."),
        (["--label", "a > b"], "should read columns of the data. Received 'a'."),
    ],
    ids=["none", "no column", "no columns"],
)
def test_who_names_no_label_learns_what_may_be_one(
    capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    binary = log("binary.csv", "user,click,bought,one,stars", "7,0,true,1,3", "8,1,false,1,4")
    rated = log("rated.csv", "user,Stars,title", "7,3,x", "8,4,y", "9,5,z")
    events = log("events.csv", "user,item", "7,3", "8,4")
    for path, advice in (
        (binary, "Columns: user, click, bought, one, stars. Of 0 and 1: click, bought."),
        (rated, "Columns: user, Stars, title. An expression would be 'Stars >= 4'."),
        (
            events,
            "Columns: user, item. None is of 0 and 1. Where each row is something that happened",
        ),
    ):
        error = refused(capsys, path, *given)
        assert f"{said} {advice}" in error


@pytest.mark.parametrize("given", ["user", "user:", ":item", "user:item,,"])
def test_negatives_that_cannot_be_drawn(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    write("log.csv", ",")
    said = refused(capsys, "log.csv", "--draw-negatives", given)
    assert "`--draw-negatives` should be a column of users and one of items" in said


def test_negatives_are_drawn_for_a_log_of_what_happened() -> None:
    Path("log.csv").write_text(
        "user,item\n" + "".join(f"{i % 9},i{i * i % 61}\n" for i in range(99))
    )
    assert cli.main(["init", "log.csv", "--draw-negatives", "user:item"]) == 0
    experiment = load_experiment("experiment.yaml")
    assert experiment.data.label == "positive"
    sampled = experiment.data.sampled_negatives
    assert sampled is not None
    assert (sampled.user, sampled.item, sampled.redraw) == ("user", ["item"], True)
    assert list(experiment.features or {}) == ["user", "item"]
