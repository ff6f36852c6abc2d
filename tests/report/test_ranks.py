"""The cards of ranks and of their plan, of a run of several."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.report.fake_run import write_fake_run
from torchrec.report import write_report

pytestmark = pytest.mark.once


def test_ranks_have_what_they_sent_and_held(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "run", steps=20)
    assert "Ranks" not in write_report(run).read_text("utf-8")
    sent = {"sent_bytes": 2_560_000.0, "messages": 11.5, "layer_bytes": 640}
    ranks = [
        {"seconds": 9.0, "waited": 0.5, "table_bytes": 4096, **sent},
        {"seconds": 9.0, "waited": 1.5, "table_bytes": 2048},  # as an earlier version has it
    ]
    report = json.loads((run / "report.json").read_text())
    plan = {"user": "row_wise on ranks 0, 1"}
    (run / "report.json").write_text(json.dumps({**report, "ranks": ranks, "plan": plan}))
    text = write_report(run).read_text("utf-8")
    for shown in (
        "sent a step",
        "2.4 MiB",
        "11.5",
        "640 B",
        "row_wise on ranks 0, 1",
        "1.33 times",
    ):
        assert shown in text, shown
