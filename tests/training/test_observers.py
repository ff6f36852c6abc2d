"""The log of a run and TensorBoard."""

from __future__ import annotations

import builtins
import dataclasses
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.training.test_progress import RECORD
from torchrec.training import Extent, MetricsLog, TensorBoard

pytestmark = pytest.mark.once


def test_a_line_is_an_object(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.recorded(RECORD)
    log.recorded(dataclasses.replace(RECORD, split="valid", time={"lookup": 0.25}, loss=math.nan))
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first["auc"] == 0.7654
    assert "time" not in first
    assert (second["split"], second["loss"], second["time"]) == ("valid", None, {"lookup": 0.25})


def test_the_log_goes_back(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert log.state_dict() == {"bytes": 0}
    log.load_state_dict({})
    log.recorded(RECORD)
    state = log.state_dict()
    before = log.path.read_bytes()
    log.recorded(RECORD)
    log.load_state_dict(state)
    assert log.path.read_bytes() == before
    with pytest.raises(ValueError, match=r"should have the \d+ bytes that it had .* Received"):
        log.load_state_dict({"bytes": 10_000})


def test_tensorboard_gets_all_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path)
    board.started(Extent(steps=100, samples=None, epochs=1))
    board.recorded(RECORD)
    board.ended()
    events = EventAccumulator(str(tmp_path)).Reload()
    tags = events.Tags()["scalars"]
    assert {"train/auc", "train/loss", "train/learning_rate", "train/ids/unknown"} <= set(tags)
    (event,) = events.Scalars("train/auc")
    assert (event.step, round(event.value, 4)) == (50, 0.7654)


def test_tensorboard_drops_what_a_killed_run_wrote_after_its_checkpoint(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for begins, steps in ((0, (10, 20, 30)), (10, (20, 30, 40))):
        board = TensorBoard(tmp_path)
        board.started(Extent(steps=40, samples=None, epochs=1, step=begins))
        for step in steps:
            board.recorded(dataclasses.replace(RECORD, step=step, loss=step + begins))
        board.ended()
        time.sleep(1.1)  # files of events are named by the second
    events = EventAccumulator(str(tmp_path)).Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(10, 10.0), (20, 30.0), (30, 40.0), (40, 50.0)]


def test_tensorboard_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any) -> Any:
        if "tensorboard" in name:
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(
        ValueError, match=r"TensorBoard should be installed .* pip install tensorboard"
    ):
        TensorBoard(tmp_path)


@pytest.mark.slow
def test_tensorboard_is_imported_only_when_asked_for() -> None:
    code = "import sys, torchrec.training.run; print('tensorboard' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
