"""What is marked on the curves of learning: the best, overfitting, and what is cut off."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from torchrec.report import write_report
from torchrec.report.cards.learning import overfitting, standard_error
from torchrec.report.charts import Axis, Series, line_chart
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


def _with_result(run: Path, rows: int, best_step: int | None = None) -> None:
    """End a run, with scores whose log losses are .105 or 2.30, as many of each: they deviate by 1.1."""
    result = {"train": {}, "valid": {"samples": rows}, "seconds": 1, "samples_per_second": 2}
    (run / "result.json").write_text(json.dumps(result | {"best_step": best_step}))
    curves = {"histogram_edges": [0.05, 0.15], "positives": [50], "negatives": [50]}
    (run / "report.json").write_text(json.dumps({"curves": curves}))


@pytest.mark.parametrize(
    ("rows", "risen", "is_told"),
    [(100, 0.5, False), (10_000, 0.5, True), (10_000, 0.41, False), (10**9, 0.4005, False)],
    ids=["chance", "clear", "within-an-error", "next-to-nothing"],
)
def test_overfitting_is_more_than_chance(
    tmp_path: Path, rows: int, risen: float, is_told: bool
) -> None:
    run = _run(tmp_path, [0.5, 0.4, risen], [0.5, 0.4, 0.3])
    _with_result(run, rows)
    found = overfitting(read_run(run))
    assert standard_error(read_run(run)) == pytest.approx(math.log(9) / 2 / math.sqrt(rows))
    assert (found is not None) == is_told


def test_overfitting_that_the_saved_weights_were_spared(tmp_path: Path) -> None:
    run = _run(tmp_path, [0.5, 0.4, 0.5], [0.5, 0.4, 0.3])
    for best, is_said in ((2, True), (3, False)):
        _with_result(run, 10_000, best)
        text = write_report(run).read_text("utf-8")
        assert "(0.4000 to 0.5000, standard error 0.0110) while that of training fell." in text
        assert ("The weights of before were saved." in text) == is_said


def test_baselines_and_what_is_best_are_lines(tmp_path: Path) -> None:
    run = _run(tmp_path, [0.5, 0.45, 0.4], [0.5, 0.4, 0.3])
    scores = {"auc": 0.7, "ne": 0.8, "logloss": 0.4}
    result = {"train": {}, "valid": scores, "seconds": 1, "samples_per_second": 2}
    baselines = {
        "constant": {"valid": {"auc": 0.5, "ne": 1.0, "logloss": 1.25}, "test": None},
        "lr": {"valid": {"auc": 0.6, "ne": 0.9, "logloss": 0.45}, "test": None},
    }
    (run / "result.json").write_text(json.dumps(result | {"baselines": baselines}))
    text = write_report(run).read_text("utf-8")
    assert text.count('class="reference linear" d=') == 1  # the loss is all that was measured
    assert "logistic regression 0.45<" in text
    assert "base rate of training 1.25 (further up)" in text
    assert 'class="reference constant" d=' not in text
    assert "valid, logistic regression" in text  # of the table
    assert "logistic regression 0.6000" in text  # beside the AUC


def test_what_training_said_stands_on_the_page(tmp_path: Path) -> None:
    run = _run(tmp_path, [0.5, 0.4], [0.5, 0.4])
    result = {"train": {}, "seconds": 1, "samples_per_second": 2, "epochs": 3, "best_epoch": 2}
    notes = ["on test the model is worse than always predicting the mean (NE 1.39)"]
    (run / "result.json").write_text(json.dumps(result | {"notes": notes}))
    text = write_report(run).read_text("utf-8")
    assert "On test the model is worse than always predicting the mean (NE 1.39).</p>" in text
    assert "<dt>best epoch</dt><dd>2 of 3</dd>" in text


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
    assert focus([(x[:4], steep[2:6])] * 3)[1] is False  # many short lines are not a long one


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


def test_the_legend_says_what_is_not_to_be_seen() -> None:
    lines = [
        Series("a", "train", [0.0, 1.0], [0.1, 0.2]),
        Series("b", "valid", [0.0, 1.0], [-3.0, -2.0]),
    ]
    chart = line_chart("t", "", lines, x=Axis(), y=Axis(bounds=(0.0, 1.0)))
    assert chart is not None
    assert [name for _, name in chart.legend] == ["a", "b (beyond the bounds)"]


def test_each_of_several_tasks_has_its_charts(tmp_path: Path) -> None:
    """Clicks with AUC, entropy and calibration, numbers with their squared error; one task without a name."""
    lines = [
        {"step": step, "samples": step, "split": split, "loss": 1 / step, "click.auc": 0.6}
        | {"click.ne": 0.9, "seconds.mse": 3.0 / step, "stars.accuracy": 0.4}
        for step in (1, 2)
        for split in ("train", "valid")
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _with_result(tmp_path, rows=10)
    curves = {"histogram_edges": [0.0, 0.5, 1.0], "positives": [2, 5], "negatives": [4, 1]}
    curves |= {"predicted": [0.2, 0.8], "observed": [0.25, 0.7]}
    of_click = {f"click.{name}": curve for name, curve in curves.items()}
    (tmp_path / "report.json").write_text(json.dumps({"curves": of_click}))
    text = write_report(tmp_path).read_text("utf-8")
    titles = ["AUC of click", "Normalised entropy of click", "Squared error of seconds"]
    titles += ["Accuracy of stars", "Calibration of click", "Scores of click"]
    assert [title for title in titles if f">{title}<" in text] == titles
    (tmp_path / "report.json").write_text(json.dumps({"curves": curves}))
    assert ">Calibration<" in write_report(tmp_path).read_text("utf-8")
