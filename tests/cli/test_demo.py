"""Everything at once: what ``make demo`` does, smaller."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from torchrec import cli

ARGUMENTS = ["--rows", "20000", "--epochs", "1"]


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    assert cli.main(["demo", "-o", str(folder), *ARGUMENTS]) == 0
    said = capsys.readouterr().out
    for command in ("data synthetic", "init", "train", "evaluate", "predict", "report"):
        assert f"$ torchrec {command}" in said
    assert sorted(path.name for path in folder.iterdir()) == [
        "clicks",
        "experiment.yaml",
        "predictions.parquet",
        "runs",
    ]
    result = json.loads((folder / "runs" / "demo" / "result.json").read_text())
    assert f"{result['test']['auc']:.4f}" in said
    assert 0.55 < result["test"]["auc"] < 0.9
    assert pq.read_metadata(folder / "predictions.parquet").num_rows == 2_000
    assert "AUC" in (folder / "runs" / "demo" / "report.html").read_text("utf-8")
    assert "click_probability" not in json.dumps(
        [table["name"] for table in json.loads(_text(folder, "report.json"))["tables"]]
    )

    # What the demo leaves is a run like any other.
    data = str(folder / "clicks" / "test.parquet")
    assert cli.main(["evaluate", str(folder / "runs" / "demo"), data]) == 0
    assert f"{result['test']['auc']:.4f}" in capsys.readouterr().out
    assert cli.main(["demo", "-o", str(folder), *ARGUMENTS]) == 2
    assert "should be an empty or new folder" in capsys.readouterr().err
    again = ["train", str(folder / "experiment.yaml"), "-o", str(folder / "runs" / "demo")]
    assert cli.main(again) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "which exists" in error


def _text(folder: Path, name: str) -> str:
    return (folder / "runs" / "demo" / name).read_text("utf-8")
