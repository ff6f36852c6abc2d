"""Everything at once: what ``make demo`` does, smaller."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rowwise import cli

pytestmark = pytest.mark.once

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


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to send")
def test_ctrl_c_is_one_line(tmp_path: Path) -> None:
    """Written to in the middle, told to stop: one line, 130, and nothing half-written."""
    command = [sys.executable, "-m", "torchrec", "data", "synthetic", "-o", str(tmp_path / "out")]
    # A shell may have told its background jobs to ignore SIGINT; a person's terminal has not.
    with subprocess.Popen(
        [*command, "--rows", "100000000"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        while process.poll() is None and not list(tmp_path.glob("out/.*.part")):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "torchrec: stopped.\n")
    assert list((tmp_path / "out").iterdir()) == []
