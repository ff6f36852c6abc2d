"""Which evaluation is the best."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from tests.training.clicks import ClickModel, Notes, Source, make_trainer, valid_batches
from torchrec.datasets.utils import Batch
from torchrec.metrics import Report
from torchrec.training import EarlyStoppingOptions
from torchrec.training.evaluation import Evaluation
from torchrec.training.monitor import Monitor

pytestmark = pytest.mark.once

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


class Turning(Source):
    """Labels of the later epochs are turned round, so the model gets worse."""

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            turned = batch.labels if self.epoch < 2 else 1 - batch.labels
            yield Batch(batch.dense_features, batch.sparse_features, turned)


def test_early_stopping_restores_the_best() -> None:
    notes = Notes()
    stopping = {"metric": "logloss", "patience": 2}
    trainer = make_trainer(ClickModel(), epochs=9, early_stopping=stopping, observers=[notes])
    result = trainer.fit(Turning(batches=30), valid_batches())
    assert (result.epochs, result.best_step, result.steps) == (4, 60, 120)
    assert trainer.evaluate(valid_batches()) == result.valid
    assert result.valid is not None
    assert result.valid.logloss == min(r.report.logloss for r in notes.of("valid"))
    assert notes.messages == [
        "stopping early: logloss has not improved for 2 evaluations",
        "best epoch: 2; the model has the weights of step 60",
    ]


def test_the_usual_protocol() -> None:
    """A tenth of the rates at the first epoch without improvement, the end after two, the best back."""
    notes = Notes()
    trainer = make_trainer(
        ClickModel(),
        epochs=9,
        schedule={"decay": "plateau"},
        early_stopping={"metric": "auc", "patience": 2},
        observers=[notes],
    )
    result = trainer.fit(Turning(batches=30), valid_batches())
    assert (result.epochs, result.best_step, result.best_epoch) == (4, 60, 2)
    assert notes.messages == [
        "learning rates lowered to 0.1 of the first ones: auc has not improved for 1 evaluation",
        "stopping early: auc has not improved for 2 evaluations",
        "best epoch: 2; the model has the weights of step 60",
    ]
    rates = {round(record.epoch, 2): record.learning_rate for record in notes.of("train")}
    assert rates == pytest.approx({1: 0.01, 1.67: 0.01, 2: 0.01, 3: 0.01, 3.33: 0.001, 4: 0.001})
    assert trainer.optimizer.param_groups[-1]["lr"] == 0.01  # for whoever trains on


def test_a_plateau_without_early_stopping_goes_by_the_loss() -> None:
    notes = Notes()
    trainer = make_trainer(
        ClickModel(), epochs=4, schedule={"decay": "plateau", "final": 0.05}, observers=[notes]
    )
    result = trainer.fit(Turning(batches=30), valid_batches())
    assert (result.epochs, result.best_step, result.best_epoch) == (4, None, 2)
    # The rates of the fourth epoch; those after it are of no interest.
    assert [message for message in notes.messages if "rates" in message] == [
        "learning rates lowered to 0.1 of the first ones: the loss has not improved for 1 evaluation"
    ]
