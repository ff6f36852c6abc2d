"""Numbers as people write them: read where text files may say so, and told to be converted elsewhere."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec.datasets.source import TableSource
from torchrec.datasets.text_dialect import TextDialect
from torchrec.experiment.files import load_experiment
from torchrec.experiment.propose import Inference, infer_features, write_experiment
from torchrec.experiment.schema import DataSection

pytestmark = pytest.mark.once

ROWS = 1000


def drawn(form: str, most: float) -> list[str]:
    return [form.format(value) for value in np.random.default_rng(3).uniform(0, most, ROWS)]


def spaced(texts: list[str], space: str) -> list[str]:
    return [text.replace(",", space) for text in texts]


def infer_text(path: Path, name: str, values: list[str], decimal: str = ".") -> Inference:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["user", name, "click"])
        writer.writerows((i % 7, value, i * i % 3 % 2) for i, value in enumerate(values))
    source = TableSource(
        path, dialect=TextDialect(delimiter=";", decimal="," if decimal == "," else ".")
    )
    return infer_features(source, "click")


@pytest.mark.parametrize(
    ("name", "values", "decimal"),
    [
        ("ctr", drawn("{:.1f}%", 100), "."),
        ("ctr", drawn("{:.0f} %", 100), "."),
        ("x", drawn("${:,.2f}", 5000), "."),
        ("x", drawn("{:.2f} €", 50), "."),
        ("x", drawn("{:,.0f}", 90_000), "."),
        ("x", spaced(drawn("{:,.0f}", 90_000), " "), "."),
        ("x", spaced(drawn("{:,.0f}", 90_000), "'"), "."),
        ("x", spaced(drawn("{:.2f} €", 50), " "), "."),
        ("x", [text.replace(".", ",") for text in drawn("{:.1f}%", 100)], ","),
    ],
    ids=["percent", "whole-percent", "dollar", "euro", "commas", "blanks", "quotes", "blank-euro", "decimal-comma"],
)  # fmt: skip
def test_text_files_hold_numbers_as_people_write_them(
    tmp_path: Path, name: str, values: list[str], decimal: str
) -> None:
    inference = infer_text(tmp_path / "a.csv", name, values, decimal)
    assert inference.types == {name: "number"}
    assert inference.features[name].type == "dense"
    data = DataSection(
        train=[str(tmp_path / "a.csv")],
        delimiter=";",
        decimal="," if decimal == "," else ".",
        label="click",
    )
    write_experiment(tmp_path / "x.yaml", inference, data)
    loaded = load_experiment(tmp_path / "x.yaml")
    assert (loaded.data.types, loaded.data.decimal) == ({name: "number"}, decimal)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("history", [f"{i % 90},{i % 17}" for i in range(ROWS)]),
        ("shops", [f"{100 + i % 90} {200 + i % 17}" for i in range(ROWS)]),
        ("memory", ["64GB", "128GB"] * (ROWS // 2)),
        ("title", [f"{i % 400} % more" for i in range(ROWS)]),
        ("seat", [f"{i % 40}{'ABCDEF'[i % 5]}" for i in range(ROWS)]),
    ],
)
def test_other_text_stays(tmp_path: Path, name: str, values: list[str]) -> None:
    inference = infer_text(tmp_path / "a.csv", name, values)
    assert inference.types == {}
    assert inference.features[name].type in ("sparse", "multi_hot", "sequence")


def test_a_later_value_that_is_no_number_makes_it_text(tmp_path: Path) -> None:
    first = drawn("{:.1f}%", 100) * 300  # beyond the first block
    inference = infer_text(tmp_path / "a.csv", "ctr", [*first, "much"])
    assert inference.types == {"ctr": "string"}


@pytest.mark.parametrize("values", [drawn("{:.1f}%", 40), drawn("{:,.0f}", 90_000)])
def test_strings_that_were_asked_for_stay(tmp_path: Path, values: list[str]) -> None:
    rows = [f'{i % 7},"{value}","{value}",{i * i % 3 % 2}' for i, value in enumerate(values)]
    (tmp_path / "a.csv").write_text("\n".join(["user,x,y,click", *rows]))
    schema = pa.schema({"x": pa.string()})
    inference = infer_features(TableSource(tmp_path / "a.csv", schema=schema), "click")
    assert inference.types == {"y": "number"}
    assert inference.features["x"].type in ("sparse", "multi_hot")
    assert inference.features["y"].type == "dense"
    numbers = pa.schema({"x": pa.float64()})
    inference = infer_features(TableSource(tmp_path / "a.csv", schema=numbers), "click")
    assert inference.types == {"y": "number"}
    assert inference.features["x"].type == "dense"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (drawn("{:.1f}%", 100), "numbers with a percent or currency sign"),
        (spaced(drawn("{:,.0f}", 90_000), " "), "numbers with spaces between thousands"),
        (drawn("{:,.0f}", 90_000), "numbers with commas between thousands"),
        (drawn("{:.1f} km", 90), "numbers with a unit (km)"),
    ],
    ids=["percent", "blanks", "commas", "unit"],
)
def test_elsewhere_they_should_be_converted(tmp_path: Path, values: list[str], reason: str) -> None:
    clicks = np.arange(ROWS) % 3 % 2
    table = pa.table({"user": np.arange(ROWS) % 7, "x": values, "click": clicks})
    pq.write_table(table, tmp_path / "a.parquet")
    inference = infer_features(tmp_path / "a.parquet", "click")
    assert "x" not in inference.features
    column = next(column for column in inference.columns if column.name == "x")
    assert column.reason.startswith(reason)
