"""Malformed sparse types are refused in words, or right. The cases are in ``fuzz_cases.py``."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("fuzz_cases.py")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((10, {}), id="some"),
        pytest.param((1, {}), id="all", marks=pytest.mark.slow),
        pytest.param(
            (1, {"ROWWISE_BACKEND": "reference"}), id="all-reference", marks=pytest.mark.slow
        ),
    ],
)
def outcome(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Run a share of the cases in a process of their own, so that a crash is a failure that names its case."""
    share, backend = request.param
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | backend
    result = subprocess.run(
        [sys.executable, "-W", "error", SCRIPT, str(share)],
        capture_output=True,
        text=True,
        env=environment,
    )
    lines = result.stdout.splitlines()
    assert result.returncode == 0, f"{result.returncode} after {lines[-1:]}: {result.stderr[-500:]}"
    families = {k: v for line in lines if line.startswith("{") for k, v in json.loads(line).items()}
    return {"share": share, "families": families}


def test_malformed_input_is_refused_or_right(outcome):
    assert outcome["families"].keys() == {
        "jagged", "bags", "keyed", "variable", "operate", "lists", "dense",
    }  # fmt: skip
    cases = 0
    for results in outcome["families"].values():
        assert results["wrong"] == []
        # Neither half is empty: the cases are neither all right nor all nonsense.
        assert min(results["accepted"], results["refused"]) > 250 / outcome["share"]
        cases += results["accepted"] + results["refused"]
    assert cases >= 10_000 / outcome["share"]
