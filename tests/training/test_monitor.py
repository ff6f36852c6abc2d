"""Which evaluation is the best."""

from __future__ import annotations

import math
from typing import Any

import pytest

from torchrec.metrics import Report
from torchrec.training import EarlyStoppingOptions
from torchrec.training.evaluation import Evaluation
from torchrec.training.monitor import Monitor

BETTER: dict[str, Any] = {"auc": "higher", "logloss": "lower"}


def evaluation(auc: float, logloss: float) -> Evaluation:
    return Evaluation(Report({"auc": auc, "logloss": logloss}, better=BETTER), logloss, 1.0)


# AUC rises all the time, the logloss first falls and then rises.
COURSE = [(0.60, 0.70), (0.70, 0.60), (0.71, 0.62), (0.72, 0.65), (0.74, 0.63), (0.75, 0.70)]


@pytest.mark.parametrize(
    ("metric", "min_delta", "expected"),
    [
        ("auc", 0.0, [1, 1, 1, 1, 1, 1]),
        ("logloss", 0.0, [1, 1, 0, 0, 0, 0]),
        (["auc", "logloss"], 0.0, [1, 1, 0, 0, 1, 0]),
        (["logloss", "auc"], 0.0, [1, 1, 0, 0, 1, 0]),
        (["auc", "logloss"], 0.05, [1, 1, 0, 0, 0, 0]),
        (["auc"], 0.015, [1, 1, 0, 1, 1, 0]),
        (None, 0.0, [1, 1, 0, 0, 0, 0]),
    ],
    ids=str,
)
def test_which_is_better(metric: Any, min_delta: float, expected: list[int]) -> None:
    options = metric and EarlyStoppingOptions(metric, min_delta=min_delta)
    monitor = Monitor(options)
    found = [monitor.improves(evaluation(*each), i, i + 1) for i, each in enumerate(COURSE)]
    assert found == [bool(each) for each in expected]
    last = max(i for i, each in enumerate(expected) if each)
    assert (monitor.best_step, monitor.best_epoch) == (last, last + 1)
    assert monitor.waited == len(COURSE) - 1 - last
    assert monitor.kept_step == (None if metric is None else last)


def test_one_of_several_that_is_not_defined_is_named() -> None:
    monitor = Monitor(EarlyStoppingOptions(["auc", "logloss"]))
    with pytest.raises(ValueError, match="Received logloss, which is not: it is NaN"):
        monitor.improves(evaluation(0.5, math.nan), 1, 1)
    with pytest.raises(ValueError, match=r"should be one of auc, logloss. Received acu; did you"):
        Monitor(EarlyStoppingOptions(["logloss", "acu"])).check_metrics(evaluation(0, 0).report)


def test_goes_on_from_a_state_of_one_metric() -> None:
    """As versions before those of several metrics wrote it."""
    monitor = Monitor(EarlyStoppingOptions("auc", patience=2))
    monitor.load_state_dict({"best": 0.7, "best_step": 30, "waited": 1})
    assert not monitor.improves(evaluation(0.7, 0.1), 40, 4)
    assert monitor.is_over
    assert monitor.improves(evaluation(0.71, 0.1), 50, 5)
    assert (monitor.best_step, monitor.best_epoch, monitor.is_over) == (50, 5, False)
