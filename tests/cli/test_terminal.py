"""Names from files of others, through the real commands: shown, and steering nothing."""

from __future__ import annotations

import random
import sys
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rowwise import cli
from rowwise.cli.console import console, table

pytestmark = pytest.mark.once

TITLE = "\x1b]0;owned\x07\x1b[31mRED"
BIDI = "user\u202egpj.exe\u2066\u200b\ufeff"
LINES = "price\r\n  [bold]all is well[/]\x9b2J\u2028"
ROWS = 400


def data(path: str) -> None:
    draw = random.Random(0)
    columns = {
        TITLE: [draw.randrange(9) for _ in range(ROWS)],
        BIDI: [draw.choice("abcd") for _ in range(ROWS)],
        LINES: [draw.choice([draw.random(), None]) for _ in range(ROWS)],
        "click": [draw.randrange(2) for _ in range(ROWS)],
    }
    pq.write_table(pa.table(columns), path)


def unseen(text: str) -> set[str]:
    """Return the characters that a terminal acts on or does not show, line breaks apart."""
    return {
        mark for mark in text if unicodedata.category(mark) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    } - {"\n"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    inside = tmp_path / "new\x1b[2J\u202efolder [bold]"
    inside.mkdir()
    monkeypatch.chdir(inside)
    data("clicks.parquet")
    return inside


def run(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    assert cli.main(arguments) == code, capsys.readouterr().err
    said = capsys.readouterr()
    assert unseen(said.out) == unseen(said.err) == set()
    return said.err if code else said.out


def test_columns_in_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    train, name = "clicks.parquet", "my\x1b[1mexperiment.yaml"
    shown = run(
        capsys, 0, "init", train, "--label", "click", "--valid", train, "--test", train, "-o", name
    )
    assert r"\x1b]0;owned\x07\x1b[31mRED" in shown
    assert r"user\u202egpj.exe\u2066\u200b\ufeff" in shown
    assert r"price\r\n  [bold]all is well[/]\x9b2J\u2028" in shown
    assert r"Written to my\x1b[1mexperiment.yaml" in shown
    output = "run\x1b[3m[red]"
    shown = run(capsys, 0, "train", name, "-o", output, "model.dim=4", "training.log_every=1")
    assert r"The run is in run\x1b[3m[red], its report is run\x1b[3m[red]/report.html" in shown
    page = Path(output, "report.html").read_text(encoding="utf-8")
    assert r"\x1b]0;owned\x07\x1b[31mRED" in page
    assert r"user\u202egpj.exe" in page
    assert unseen(page) <= {"\t"}
    assert r"run\x1b[3m[red]/report.html" in run(capsys, 0, "report", output)
    assert "400 rows" in run(capsys, 0, "evaluate", output, train)
    predictions = "out\x07.parquet"
    assert r"in out\x07.parquet" in run(capsys, 0, "predict", output, train, "-o", predictions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["init", "clicks.parquet", "--label", "clic"], r"\x1b]0;owned\x07"),
        (["init", "clicks.parquet", "--label", TITLE + " > 3 3"], r"\x1b[31mRED"),
        (["init", "clicks.parquet", "--label", "click", "--exclude", "\x1b[1m"], r"'\x1b[1m'"),
        (["init", "no\x1b[31m.parquet", "--label", "click"], r"no\x1b[31m.parquet"),
        (["report", "no\x1b[31m\u202erun"], r"no\x1b[31m\u202erun"),
        (["train", "\x1b[31m.yaml"], r"\x1b[31m.yaml"),
        (["train", "whole.yaml", "data.\x1b[31m=3"], r"\x1b[31m"),
        (["train", "e.yaml"], r"\x9b31m"),
        (["\x1b[31mtrain"], r"\x1b[31mtrain"),
        (["train", "--\x1b[31m"], r"--\x1b[31m"),
        (["report", "\x1b[31mrun", "--debug"], r"\x1b[31mrun"),
    ],
    ids=lambda value: "-".join(value).encode("unicode_escape").decode()[:30]
    if isinstance(value, list) else "",
)  # fmt: skip
def test_error_lines(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    Path("e.yaml").write_text('data: {train: clicks.parquet, label: click, "\\x9b31m": 3}')
    Path("whole.yaml").write_text("data: {train: clicks.parquet, label: click}")
    assert message in run(capsys, 2, *arguments)


def test_what_else_is_written_while_a_command_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def warn(*_: object, **options: object) -> str:
        print("UserWarning: map '\x1b[31m\u202e'\r\n\tnext line", file=sys.stderr)
        return "page\x1b[31m.html"

    monkeypatch.setattr("torchrec.report.write_report", warn)
    before = sys.stderr
    assert cli.main(["report", "x"]) == 0
    assert sys.stderr is before
    said = capsys.readouterr()
    assert said.err == "UserWarning: map '\\x1b[31m\\u202e'\\r\n\tnext line\n"
    assert said.out == "page\\x1b[31m.html\n"


def test_lines_keep_the_breaks_around_them(capsys: pytest.CaptureFixture[str]) -> None:
    out = console()
    out.print("\n\nname\nforged\n", markup=False)
    out.print("\n")
    out.print(table(("a\x1b", "[/b]"), [("[red]x", "1\n2")]))
    assert capsys.readouterr().out.splitlines() == [
        *["", "", r"name\nforged", "", "", ""], r"a\x1b    [/b]", r"[red]x   1\n2"
    ]  # fmt: skip
