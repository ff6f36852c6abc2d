"""The constant and the logistic regression beside a result."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.test_run import Notes, experiment, run
from torchrec.metrics import BinaryMetrics, Report
from torchrec.models import registry
from torchrec.training import baselines
from torchrec.training.baselines import constant_baseline
from torchrec.training.fit_state import FitResult
from torchrec.training.run import run_experiment

pytestmark = pytest.mark.once


def report(labels: list[int], weights: list[float] | None = None) -> Report:
    metrics = BinaryMetrics()
    weighed = None if weights is None else torch.tensor(weights)
    metrics.update(torch.randn(len(labels)), torch.tensor(labels), weighed)
    return metrics.compute()


def fitted(train: Report, valid: Report | None, test: Report | None) -> FitResult:
    return FitResult(1, 1, 1, 1.0, 1.0, train, valid, test, None)


@pytest.mark.parametrize(
    "weights", [None, [1.0, 2.0, 0.5, 1.0, 3.0, 0.0]], ids=["plain", "weighted"]
)
def test_the_constant_is_the_base_rate_of_training(weights: list[float] | None) -> None:
    labels = [1, 0, 0, 1, 0, 1]
    found = constant_baseline(fitted(report([1, 0, 0, 0]), report(labels, weights), None))
    assert found["test"] is None
    metrics = BinaryMetrics()
    logits = torch.full((6,), math.log(0.25 / 0.75))
    metrics.update(logits, torch.tensor(labels), None if weights is None else torch.tensor(weights))
    expected = metrics.compute().to_json()
    assert found["valid"] == pytest.approx(expected)
    assert found["valid"]["ne"] > 1


def test_of_equal_rates_its_entropy_is_one() -> None:
    found = constant_baseline(fitted(report([1, 0, 0, 0]), None, report([0, 0, 1, 0] * 5)))
    assert found["test"] is not None
    assert found["test"]["ne"] == pytest.approx(1)
    assert found["test"]["calibration"] == pytest.approx(1)


def test_what_is_not_defined_is_none() -> None:
    found = constant_baseline(fitted(report([1, 0]), None, report([0, 0])))
    assert found["test"] is not None
    assert [found["test"][name] for name in ("auc", "ne", "calibration")] == [None] * 3
    assert found["test"]["logloss"] == pytest.approx(math.log(2))


def test_they_stand_beside_the_result(
    clicks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if baselines.LINEAR not in registry.names():
        monkeypatch.setattr(baselines, "LINEAR", "deepfm")
    result = run(experiment(clicks), tmp_path / "run")
    found = json.loads((tmp_path / "run" / "result.json").read_text())["baselines"]
    assert found == result.baselines
    assert found.keys() == {"constant", baselines.LINEAR}
    for baseline in found.values():
        assert baseline.keys() == {"valid", "test"}
        assert baseline["test"].keys() == result.test.keys()
    assert found["constant"]["test"]["auc"] == 0.5
    assert 0.99 < found["constant"]["test"]["ne"] < 1.1
    assert found[baselines.LINEAR]["test"]["auc"] > 0.6
    again = run(experiment(clicks), tmp_path / "again")
    assert again.baselines == result.baselines


def test_training_does_not_depend_on_them(clicks: Path, tmp_path: Path) -> None:
    training: dict[str, Any] = {"epochs": 2}
    results = [
        run(experiment(clicks, training=training | {"baselines": wanted}), tmp_path / str(wanted))
        for wanted in (True, False)
    ]
    assert results[0].test == results[1].test
    assert results[0].baselines
    assert results[1].baselines == {}


def test_of_large_data_they_are_left_out_unless_asked_for(
    clicks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(baselines, "LINEAR", "deepfm")
    monkeypatch.setattr(baselines, "MOST_ROWS", 2000)
    notes = Notes()
    result = run_experiment(experiment(clicks), tmp_path / "run", observers=[notes])
    assert result.baselines.keys() == {"constant"}
    assert any("`training.baselines=true`" in message for message in notes.messages)
    asked = run(experiment(clicks, training={"baselines": True}), tmp_path / "asked")
    assert asked.baselines.keys() == {"constant", "deepfm"}


@pytest.mark.parametrize("test", [0.1, 0.0], ids=["test", "valid"])
def test_a_model_that_the_regression_beats_is_told(
    clicks: Path, tmp_path: Path, test: float
) -> None:
    split = {"split": {"valid": 0.1, "test": test}}
    for rate, beaten in ((1e-7, True), (0.02, False)):
        notes = Notes()
        rates = {"learning_rate": rate, "embedding_learning_rate": rate}
        made = experiment(clicks, data=split, training=rates)
        result = run_experiment(made, tmp_path / str(rate), observers=[notes])
        part = "test" if test else "valid"
        ours, theirs = (
            (result.test or result.valid)["logloss"],
            result.baselines["lr"][part]["logloss"],
        )
        said = f"On {part} a logistic regression is better than the model: log loss {theirs:.4f} against {ours:.4f}."
        assert (said in notes.messages) == beaten == (theirs < ours)


def test_asking_for_them_where_nothing_is_evaluated_is_answered(
    clicks: Path, tmp_path: Path
) -> None:
    without = experiment(clicks, data={"split": {"valid": 0.0, "test": 0.0}})
    said = {}
    for asked in (True, None):
        notes = Notes()
        training = without.training.model_copy(update={"baselines": asked})
        result = run_experiment(
            without.model_copy(update={"training": training}),
            tmp_path / str(asked),
            observers=[notes],
        )
        assert result.baselines == {}
        said[asked] = any("there are neither validation nor test data" in m for m in notes.messages)
    assert said == {True: True, None: False}


def test_its_samples_are_bounded(
    clicks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(baselines, "LINEAR", "deepfm")
    monkeypatch.setattr(baselines, "_LEAST_SAMPLES", 0)
    seen: list[int] = []
    fit = baselines.Trainer.fit

    def counted(self: Any, *data: Any, **options: Any) -> FitResult:
        came = fit(self, *data, **options)
        seen.append(came.samples)
        return came

    monkeypatch.setattr(baselines.Trainer, "fit", counted)
    run(experiment(clicks, training={"epochs": 4, "early_stopping": None}), tmp_path / "run")
    main, linear = seen
    assert np.isclose(linear, main / 10, rtol=0.5)
    assert linear <= main / 10


def test_the_run_says_what_takes_its_time(clicks: Path, tmp_path: Path) -> None:
    class Activities(Notes):
        def began(self, activity: str) -> None:
            self.messages.append(activity)

    found = Activities()
    run_experiment(experiment(clicks), tmp_path / "run", observers=[found])
    wanted = [
        "reading the data",
        "evaluating on test",
        "saving the model",
        "training the baseline lr",
    ]
    assert [message for message in found.messages if message in wanted] == wanted
