"""The report of a run with several seeds: each of them, the means, and how far apart they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from torchrec.report import write_report
from torchrec.runs import RunFolder, Scores

pytestmark = pytest.mark.once

_METRICS = ("auc", "logloss", "ne", "calibration")


def _rows(text: str, title: str) -> dict[str, list[str]]:
    """Return the rows of the table of a card by name."""
    card = re.search(rf"<h3>{title}</h3>.*?</figure>", text, re.DOTALL)
    assert card is not None
    found = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', card[0])
    return {name: re.findall("<td>(.*?)</td>", cells) for name, cells in found}


def _written(scores: Scores | None) -> list[str]:
    assert scores is not None
    return [f"{scores[name]:.4f}" for name in _METRICS]


def test_each_seed_the_mean_and_the_deviation(seeds_run: RunFolder, tmp_path: Path) -> None:
    text = write_report(seeds_run.path, tmp_path / "page.html").read_text("utf-8")
    result = seeds_run.read_result()
    rows = _rows(text, "Seeds")
    assert list(rows) == ["seed-0", "seed-1", "mean", "standard deviation", "mean of the logits"]
    for member in seeds_run.members():
        assert rows[member.path.name][1:] == _written(member.read_result().test)
    assert rows["mean"][1:] == _written(result.test)
    assert rows["standard deviation"][1:] == _written(result.deviation["test"])
    assert rows["mean of the logits"][1:] == _written(result.ensemble["test"])
    assert result.test is not None
    shown = f"{result.test['auc']:.4f} \N{PLUS-MINUS SIGN} {result.deviation['test']['auc']:.4f}"
    assert _rows(text, "Result")["test"][0] == shown
    assert f"<span>\N{PLUS-MINUS SIGN} {result.deviation['test']['auc']:.4f}</span>" in text
    for title in ("AUC of the seeds", "AUC by seed", "Log loss by seed", "ROC"):
        assert f"<h3>{title}</h3>" in text


def test_a_single_run_has_no_seeds_to_show(run: RunFolder, tmp_path: Path) -> None:
    text = write_report(run.path, tmp_path / "page.html", predictions=False).read_text("utf-8")
    assert "<h3>Seeds</h3>" not in text
    assert "\N{PLUS-MINUS SIGN}" not in text
    assert list(_rows(text, "Result")) == [
        "train",
        "valid",
        "test",
        "test, logistic regression",
        "test, base rate of training",
    ]
