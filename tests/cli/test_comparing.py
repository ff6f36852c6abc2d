"""``torchrec compare``: what it prints of two runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rowwise import cli

pytestmark = pytest.mark.once


def _write(folder: Path, auc: float, batch_size: int) -> Path:
    folder.mkdir()
    scores = {"auc": auc, "logloss": 0.4}
    result = {"train": scores, "test": scores, "samples_per_second": 1.0, "seconds": 1.0}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "experiment.yaml").write_text(
        f"data: {{train: a.csv, label: y}}\ntraining: {{batch_size: {batch_size}}}\n"
    )
    return folder


def test_it_says_what_differs_and_what_cannot_be_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = _write(tmp_path / "one", 0.75, 64)
    two = _write(tmp_path / "two", 0.76, 128)
    page = tmp_path / "compare.html"
    assert cli.main(["compare", str(one), str(two), "--html", str(page)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["AUC", "0.7500", "0.7600"] in lines
    assert ["training.batch_size", "64", "128"] in lines
    text = " ".join(word for line in lines for word in line)
    assert "The AUC of two on its test data is 0.0100 above that of one" in text
    assert "one: no intervals." in text
    assert "training.batch_size" in page.read_text("utf-8")


def test_one_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", str(_write(tmp_path / "one", 0.75, 64))]) == 2
    assert "Runs to compare should be two or more. Received 1." in capsys.readouterr().err
