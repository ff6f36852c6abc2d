"""Formats of times that are found out are those in which they were written."""

from __future__ import annotations

import datetime
import random
from pathlib import Path

import pyarrow as pa
import pytest

from torchrec.datasets.source import TableSource
from torchrec.datasets.text_dialect import TextDialect
from torchrec.experiment.propose.time_form import TimeForm, time_form_of

pytestmark = pytest.mark.once
DAY = 86_400


def written(folder: Path, format: str, times: list[datetime.datetime]) -> TableSource:
    path = folder / "a.csv"
    lines = [f"{i};{time.strftime(format)}" for i, time in enumerate(times)]
    path.write_text("\n".join(["user;at", *lines]) + "\n")
    return TableSource(path, dialect=TextDialect(delimiter=";"))


def drawn(days: int, count: int = 200) -> list[datetime.datetime]:
    generator = random.Random(0)
    start = datetime.datetime(2019, 1, 1)
    seconds = sorted(generator.randrange(days * DAY) for _ in range(count))
    return [start + datetime.timedelta(seconds=one) for one in seconds]


@pytest.mark.parametrize(
    ("format", "found"),
    [
        ("%d.%m.%Y", "%d.%m.%Y"),
        ("%m/%d/%Y %H:%M", "%m/%d/%Y %H:%M"),
        ("%d/%m/%Y %I:%M %p", "%d/%m/%Y %I:%M %p"),
        ("%m/%d/%y", "%m/%d/%y"),
        ("%a, %d %b %Y %H:%M:%S GMT", "%a, %d %b %Y %H:%M:%S GMT"),
        ("%a, %d %b %Y %H:%M:%S +0200", "%a, %d %b %Y %H:%M:%S %z"),
        ("%d/%b/%Y:%H:%M:%S +0000", "%d/%b/%Y:%H:%M:%S %z"),
        ("%a %b %d %H:%M:%S +0000 %Y", "%a %b %d %H:%M:%S %z %Y"),
        ("%b %d, %Y", "%b %d, %Y"),
        ("%Y%m%d %H:%M", "%Y%m%d %H:%M"),
        ("%Y-%m-%d %H:%M:%S +0100", "%Y-%m-%d %H:%M:%S %z"),
    ],
)
def test_formats_are_found(tmp_path: Path, format: str, found: str) -> None:
    source, times = written(tmp_path, format, drawn(300)), drawn(300)
    form = time_form_of(source)
    assert form == TimeForm((found,))
    assert form.notice == f"Times are read as {found} (`data.times`)."
    dialect = TextDialect(delimiter=";", times=form.times)
    again = TableSource(tmp_path / "a.csv", dialect=dialect)
    read = next(again.scan(["at"]))["at"]
    assert pa.types.is_timestamp(read.type)
    expected = [datetime.datetime.strptime(time.strftime(format), found) for time in times]
    if read.type.tz:
        assert [one.timestamp() for one in read.to_pylist()] == [t.timestamp() for t in expected]
    else:
        assert read.to_pylist() == expected


@pytest.mark.parametrize("format", ["%Y-%m-%d", "%Y-%m-%d %H:%M:%S UTC", "%Y-%m-%dT%H:%M:%SZ"])
def test_usual_times_need_no_format(tmp_path: Path, format: str) -> None:
    assert time_form_of(written(tmp_path, format, drawn(300))) == TimeForm()


@pytest.mark.parametrize(
    "values", [["1.2.3", "1.2.4", "2.0.1"], ["a/b", "c/d", "e/f"], ["5.1.20"], ["Heat 1995"] * 5]
)
def test_other_text_is_no_time(tmp_path: Path, values: list[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["x", *values]) + "\n")
    assert time_form_of(TableSource(path)) == TimeForm()


def test_day_and_month_are_told_by_order_or_said_to_be_unsure(tmp_path: Path) -> None:
    times = [t for t in drawn(365, 2000) if t.day <= 12]
    assert time_form_of(written(tmp_path, "%d/%m/%Y", times)) == TimeForm(("%d/%m/%Y",))
    assert time_form_of(written(tmp_path, "%m/%d/%Y", times)) == TimeForm(("%m/%d/%Y",))
    random.Random(0).shuffle(times)
    form = time_form_of(written(tmp_path, "%d/%m/%Y", times))
    assert form == TimeForm(("%m/%d/%Y",), ("at",))
    assert "may be the other way round in at" in form.notice
