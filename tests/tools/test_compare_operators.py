"""The comparison of operators: nothing differs from itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.once, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


def test_ours_beside_ours():
    run = subprocess.run(
        [sys.executable, "-m", "tools.compare_operators", "--peer", sys.executable],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith("batches each: 0 differ\n")
