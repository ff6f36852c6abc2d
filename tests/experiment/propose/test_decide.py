"""Columns whose values say something else than their names, or than their type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec.datasets.transform import FeatureTransform
from torchrec.experiment.propose import Inference, infer_features

pytestmark = pytest.mark.once

ROWS = 5000
RANDOM = np.random.default_rng(5)


def infer(tmp_path: Path, name: str, values: object) -> Inference:
    clicks = np.random.default_rng(1).integers(0, 2, ROWS)
    table = pa.table({"other": np.arange(ROWS) % 3, name: values, "click": clicks})
    pq.write_table(table, tmp_path / "a.parquet")
    return infer_features(tmp_path / "a.parquet", "click")


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("cost", RANDOM.choice([0, 1], ROWS), "sparse"),
        ("price", RANDOM.choice([10, 20], ROWS), "sparse"),
        ("num_flag", RANDOM.choice([0.0, 1.0], ROWS), "sparse"),
        ("rate", RANDOM.choice([0.5, 1.5], ROWS), "dense"),
        ("rate", RANDOM.choice([1.0, 2.0], ROWS), "sparse"),
        ("rate", RANDOM.choice([1.0, 2.0, 3.0], ROWS), "dense"),
        ("cost", RANDOM.choice([5, 10, 20], ROWS), "dense"),
        ("c14", RANDOM.choice(RANDOM.integers(375, 24_052, 600), ROWS), "sparse"),
        ("c20", RANDOM.choice([-1, *RANDOM.integers(100_000, 100_900, 160)], ROWS), "sparse"),
        ("region_code", RANDOM.choice(RANDOM.integers(10_000, 99_999, 300), ROWS), "sparse"),
        ("plz", RANDOM.integers(10_000, 99_999, ROWS), "sparse"),
        ("seen", RANDOM.integers(-1, 400, ROWS), "dense"),
        ("c1", RANDOM.poisson(RANDOM.gamma(0.4, 400, ROWS)), "dense"),
        ("c2", 50 * RANDOM.poisson(RANDOM.gamma(0.4, 400, ROWS)), "dense"),
        ("c3", RANDOM.lognormal(8, 1, ROWS).astype(np.int64), "dense"),
    ],
    ids=[
        "two-costs", "two-prices", "two-floats", "two-fractions", "two-whole-floats",
        "three-whole-floats", "three-costs", "gaps", "gaps-and-none", "code", "plz",
        "smooth-and-none", "counts", "steps", "wide",
    ],
)  # fmt: skip
def test_ids_and_quantities(tmp_path: Path, name: str, values: object, kind: str) -> None:
    assert infer(tmp_path, name, values).features[name].type == kind


def test_one_fraction_or_none_tells_them_apart(tmp_path: Path) -> None:
    values = [0.5 if i % 3 else None for i in range(ROWS)]
    inference = infer(tmp_path, "rate", values)
    assert inference.notes["rate"].endswith("One value, or none, which counts as 0.")
    transform = FeatureTransform({"rate": inference.features["rate"]})
    table = pa.table({"rate": values})
    dense = transform.fit([table])(table, labels=False).dense_features[:, 0].tolist()
    assert dense == [0.0 if value else -0.5 for value in values]


@pytest.mark.parametrize(
    ("name", "first", "rows"),
    [("year", 1919, 82), ("shop", 1_000_000, 82), ("floor", 5, 87), ("slot", 0, 82)],
)
def test_ids_that_start_high_waste_no_rows(
    tmp_path: Path, name: str, first: int, rows: int
) -> None:
    feature = infer(tmp_path, name, first + np.arange(ROWS) % 82).features[name]
    assert feature.type == "sparse"
    assert (feature.ids, feature.rows) == ("plain" if first < 10 else "vocabulary", rows)


@pytest.mark.parametrize(
    ("name", "form", "unit"),
    [
        ("date", "%Y%m%d", "days as YYYYMMDD"),
        ("dt", "%Y%m%d", "days as YYYYMMDD"),
        ("x", "%Y%m%d", "days as YYYYMMDD"),
        ("date", "%y%m%d", "days as YYMMDD"),
        ("month", "%Y%m", "months as YYYYMM"),
        ("yyyymm", "%Y%m", "months as YYYYMM"),
        ("hour", "%y%m%d%H", "hours as YYMMDDHH"),
    ],
)
def test_dates_as_integers_are_times(tmp_path: Path, name: str, form: str, unit: str) -> None:
    days = np.datetime64("2019-03-05") + RANDOM.integers(0, 900, ROWS).astype("timedelta64[D]")
    values = [int(day.strftime(form)) for day in days.astype(object)]
    inference = infer(tmp_path, name, values)
    assert name not in inference.features
    assert f"a time ({unit})" in inference.notes[name].lower().replace(unit.lower(), unit)
    assert inference.time_column == name


@pytest.mark.parametrize("name", ["date", "count"])
def test_integers_that_are_no_dates(tmp_path: Path, name: str) -> None:
    values = RANDOM.integers(190_332, 211_299, ROWS)  # with months that there are not
    assert infer(tmp_path, name, values).time_column is None
