"""Malformed sparse types are refused in words, or right. The cases are in ``fuzz_cases.py``."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FAMILIES = ["jagged", "bags", "keyed", "variable", "operate", "lists", "dense"]
SCRIPT = Path(__file__).with_name("fuzz_cases.py")


@pytest.fixture(scope="module")
def outcome() -> dict[str, Any]:
    """Run the cases in a process of their own, so that a crash is a failure that names its case."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-W", "error", SCRIPT], capture_output=True, text=True, env=environment
    )
    lines = result.stdout.splitlines()
    assert result.returncode == 0, f"{result.returncode} after {lines[-1:]}: {result.stderr[-500:]}"
    return {k: v for line in lines if line.startswith("{") for k, v in json.loads(line).items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_malformed_input_is_refused_or_right(family, outcome):
    results = outcome[family]
    assert results["wrong"] == []
    # Neither half is empty: the cases are neither all right nor all nonsense.
    assert min(results["accepted"], results["refused"]) > 250


def test_there_are_enough_cases(outcome):
    assert outcome.keys() == set(FAMILIES)
    assert sum(r["accepted"] + r["refused"] + len(r["wrong"]) for r in outcome.values()) >= 10_000
