"""How text files write numbers: the sign before the decimals, and what stands for missing ones."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rowwise import cli
from torchrec.datasets.source import TableSource
from torchrec.datasets.text_dialect import TextDialect
from torchrec.experiment.files import load_experiment
from torchrec.experiment.propose.number_form import NumberForm, number_form_of

pytestmark = pytest.mark.once

ROWS = 1000
NUMBERS = [str(11 * i % 301) for i in range(ROWS)]


def form_of(folder: Path, name: str, values: list[str], delimiter: str = ";") -> NumberForm:
    lines = [delimiter.join(map(str, row)) for row in zip(range(ROWS), values, strict=True)]
    (folder / "a.csv").write_text("\n".join([f"id{delimiter}{name}", *lines]))
    return number_form_of(TableSource(folder / "a.csv", dialect=TextDialect(delimiter=delimiter)))


def among(values: list[str], *words: str, every: int = 9) -> list[str]:
    """Put words in the place of some numbers, in turn."""
    return [
        words[i // every % len(words)] if i % every == 0 else value
        for i, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("name", "values", "decimal"),
    [
        ("x", [f"{i},05" for i in range(ROWS)], ","),
        ("x", [f"{1 + i % 8}.{i:03},50" for i in range(ROWS)], ","),
        ("price", [f"{i},5" for i in range(ROWS)], ","),
        ("price", [f"{i}.5" for i in range(ROWS)], "."),
        ("x", [f"{i % 90},{i % 17}" for i in range(ROWS)], "."),
        ("x", [f"{i % 9},{100 + i % 800}" for i in range(ROWS)], "."),
        ("x", NUMBERS, "."),
    ],
    ids=["hundredths", "thousands", "name", "point", "lists", "commas-between-thousands", "whole"],
)
def test_the_sign_before_the_decimals(
    tmp_path: Path, name: str, values: list[str], decimal: str
) -> None:
    assert form_of(tmp_path, name, values) == NumberForm(decimal)  # type: ignore[arg-type]


def test_both_signs_are_left_to_the_person(tmp_path: Path) -> None:
    lines = [f"{i},05;{i}.5" for i in range(ROWS)]
    (tmp_path / "a.csv").write_text("\n".join(["one;other", *lines]))
    assert (
        number_form_of(TableSource(tmp_path / "a.csv", dialect=TextDialect(delimiter=";")))
        == NumberForm()
    )


@pytest.mark.parametrize(
    ("values", "missing"),
    [
        (among(NUMBERS, "k.A."), ("k.A.",)),
        (among([f"{i},05" for i in range(ROWS)], "k.A."), ("k.A.",)),
        (among(NUMBERS, "refused", "moved"), ("refused", "moved")),
        (among(NUMBERS, "NA", "refused"), ("refused",)),
        (among(NUMBERS, "-999"), ("-999",)),
        (among([f"{i}.5" for i in range(ROWS)], "-9999.0"), ("-9999.0",)),
        (among(NUMBERS, "NA"), ()),
        (among(NUMBERS, "-1"), ()),
        (among(NUMBERS, "-998"), ()),
        (among(NUMBERS, "-999", "-5"), ()),
        (among(NUMBERS, "-999", every=ROWS), ()),
        (among(NUMBERS, "moved", every=ROWS), ()),
        (among(NUMBERS, "refused", "moved", "late"), ()),
        (among([str(30 + i % 20) for i in range(ROWS)], "XL"), ()),
        (among([f"{i:05}" for i in range(ROWS)], "moved"), ()),
        (among(NUMBERS, "12a"), ()),
        (["de", "fr"] * (ROWS // 2), ()),
    ],
    ids=[
        "word", "word-among-decimals", "two-words", "known-too", "sentinel", "sentinel-of-decimals", "known",
        "one-below", "no-sentinel", "others-below", "sentinel-once", "word-once", "three-words", "sizes",
        "codes", "digits", "text",
    ],
)  # fmt: skip
def test_what_stands_for_missing_numbers(
    tmp_path: Path, values: list[str], missing: tuple[str, ...]
) -> None:
    assert form_of(tmp_path, "x", values).missing == missing


def test_parquet_says_itself(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": among(NUMBERS, "k.A.")}), tmp_path / "a.parquet")
    assert number_form_of(TableSource(tmp_path / "a.parquet")) == NumberForm()


def test_init_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ages = among(NUMBERS, "k.A.")
    lines = [f"{i % 7};{i % 50},05;{ages[i]};{i * i % 3 % 2}" for i in range(ROWS)]
    for name in ("train", "valid"):
        Path(f"{name}.csv").write_text("\n".join(["user;price;age;click", *lines]))
    options = ["--label", "click", "--valid", "valid.csv"]
    assert cli.main(["init", "train.csv", *options]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "The files are read as having numbers with a decimal comma (`data.decimal`), and 'k.A.' for "
        "missing numbers (`data.missing`)." in out
    )
    experiment = load_experiment("experiment.yaml")
    assert (experiment.data.decimal, experiment.data.missing) == (",", ["k.A."])
    assert experiment.data.types == {}
    found = {name: feature.type for name, feature in (experiment.features or {}).items()}
    assert (found["price"], "age" in found) == ("dense", True)
    assert cli.main(["train", "experiment.yaml", "training.epochs=1"]) == 0
