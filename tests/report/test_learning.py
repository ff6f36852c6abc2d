"""What is marked on the curves of learning: the best, overfitting, and what is cut off."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from torchrec.report import write_report
from torchrec.report.cards.learning import overfitting
from torchrec.report.scale import clipped, focus
from torchrec.runs import read_run

pytestmark = pytest.mark.once


def _run(folder: Path, valid: list[float], train: list[float]) -> Path:
    lines: list[dict[str, object]] = []
    for number, (of_valid, of_train) in enumerate(zip(valid, train, strict=True), 1):
        for split, loss in (("train", of_train), ("valid", of_valid)):
            lines.append({"step": number, "epoch": number, "samples": number, "split": split})
            lines[-1] |= {"logloss": loss, "loss": loss}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    ("valid", "train", "begins"),
    [
        ([0.5, 0.4, 0.45, 0.5], [0.5, 0.4, 0.3, 0.2], 2.0),
        ([0.5, 0.4, 0.35, 0.3], [0.5, 0.4, 0.3, 0.2], None),  # still falling
        ([0.5, 0.4, 0.45, 0.5], [0.5, 0.4, 0.5, 0.6], None),  # both rise: that is no overfitting
        ([0.5, 0.4, 0.4001, 0.4002], [0.5, 0.4, 0.3, 0.2], None),  # noise
        ([0.5, 0.4, 0.6, 0.4], [0.5, 0.4, 0.3, 0.2], None),  # it came back
        ([0.5], [0.5], None),
    ],
    ids=["overfits", "falls", "both-rise", "noise", "comes-back", "one-evaluation"],
)
def test_overfitting(
    tmp_path: Path, valid: list[float], train: list[float], begins: float | None
) -> None:
    run = _run(tmp_path, valid, train)
    found = overfitting(read_run(run))
    assert (None if found is None else found.start.step) == begins
    text = write_report(run).read_text("utf-8")
    assert ('class="stretch"' in text) == (begins is not None)
    said = "Overfitting: since epoch 2 the log loss of the validation data has risen (0.4000 to 0.5000)"
    assert (said in text) == (begins is not None)


def test_the_best_evaluation_is_named(tmp_path: Path) -> None:
    text = write_report(_run(tmp_path, [0.5, 0.4, 0.45], [0.5, 0.4, 0.3])).read_text("utf-8")
    assert "valid (best 0.4000, epoch 2)" in text


def test_the_steep_start_is_cut_and_what_rises_late_is_not() -> None:
    x = [float(n) for n in range(100)]
    steep = [10.0 if n < 5 else 1.0 - n / 1000 for n in range(100)]
    (low, high), cut = focus([(x, steep)])
    assert cut
    assert high < 1.1
    late = [*steep[:-1], 3.0]
    (_, high), _ = focus([(x, late), ([90.0, 95.0], [2.0, 2.5])])
    assert high > 2.5  # of few points none is an outlier
    assert low < 0.91
    assert focus([(x, [math.nan] * 100)]) == ((0.0, 1.0), False)
    assert focus([(x[:4], steep[2:6])])[1] is False


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0.0, 0.5), (1.0, 0.7)], [(0.0, 0.5), (1.0, 0.7)]),
        ([(0.0, 2.0), (1.0, 0.0)], [(0.5, 1.0), (1.0, 0.0)]),
        ([(0.0, -1.0), (3.0, 2.0)], [(1.0, 0.0), (2.0, 1.0), None]),
        ([(0.0, 0.5), (1.0, math.nan), (2.0, 0.5)], [(0.0, 0.5), None, (2.0, 0.5)]),
        ([(0.0, 2.0), (1.0, 3.0)], []),
        (
            [(0.0, 0.5), (1.0, 1.5), (2.0, 0.5)],
            [(0.0, 0.5), (0.5, 1.0), None, (1.5, 1.0), (2.0, 0.5)],
        ),
    ],
)
def test_lines_end_at_the_bounds(
    points: list[tuple[float, float]], expected: list[tuple[float, float] | None]
) -> None:
    assert clipped(points, 0.0, 1.0) == expected
