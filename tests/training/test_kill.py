"""Runs killed with ``kill -9`` at random moments end as those that were left alone, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the trials fork"),
]


def trials(folder: Path, count: int, seed: int) -> dict[str, int]:
    """Run trials, and return how often each way of killing met a run."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.killing", str(folder), str(count), str(seed)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["different"] == [], done.stderr
    assert found["compared"] > 20
    return found["met"]


@pytest.mark.slow
def test_killed_runs_end_the_same(tmp_path: Path) -> None:
    met = trials(tmp_path, 4, seed=1)
    assert sum(met.values()) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_many_killed_runs_end_the_same(seed: int, tmp_path: Path) -> None:
    met = trials(tmp_path, 25, seed)
    # A run may end before its time comes: how many do depends on how busy the machine is.
    assert sum(met.values()) >= 20
    assert min(met["at a time"], met["at a call"]) >= 3
