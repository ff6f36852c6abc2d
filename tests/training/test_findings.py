"""What a person is told of a training."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.clicks import ClickModel, Notes, Source, make_trainer, valid_batches
from torchrec.datasets.utils import Batch
from torchrec.metrics import Report
from torchrec.training.findings import Overfitting, useless, without_signal

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("losses", "kept", "clear"),
    [
        ([0.5, 0.4, 0.41, 0.42, 0.43], [1, 1, 1, 1, 1], [0, 0, 0, 1, 1]),
        ([0.5, 0.4, 0.41, 0.42, 0.43], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]),
        ([0.5, 0.4, 0.42, 0.39, 0.392], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]),
        ([0.4, 0.401, 0.402, 0.403], [1, 1, 1, 1], [0, 0, 0, 0]),
        ([0.4, 0.5, 0.6], [1, 0, 1], [0, 0, 1]),
        ([math.inf, math.inf], [1, 1], [0, 0]),
        ([-0.4, -0.3, -0.2], [1, 1, 1], [0, 0, 1]),
    ],
    ids=["rises", "best are kept", "falls again", "noise", "at last", "infinite", "negative"],
)
def test_when_it_is_clear(losses: list[float], kept: list[int], clear: list[int]) -> None:
    overfitting = Overfitting("loss")
    found = []
    for epoch, (loss, keep) in enumerate(zip(losses, kept, strict=True), 1):
        overfitting.note(loss, epoch, kept=bool(keep))
        found.append(int(overfitting.is_clear))
    assert found == clear
    again = Overfitting("loss")
    again.load_state_dict(overfitting.state_dict())
    assert again.state_dict() == overfitting.state_dict()
    assert again.is_clear == overfitting.is_clear
    overfitting.is_told = True
    assert not overfitting.is_clear


@pytest.mark.parametrize(
    ("loss", "what"),
    [
        (
            "logloss",
            "probabilities get worse. Early stopping by logloss, or by auc and logloss, more",
        ),
        ("mse", "predictions get worse. Early stopping by mse, more weight decay"),
    ],
)
def test_what_gets_worse_is_what_the_task_predicts(loss: str, what: str) -> None:
    overfitting = Overfitting(loss)
    for epoch, value in enumerate((0.0021, 0.0011, 0.0013), 1):
        overfitting.note(value, epoch, kept=True)
    begin = f"validation {loss} has been rising since epoch 2 (0.00110 -> 0.00130): the "
    assert overfitting.sentence().startswith(begin + what)


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ({"ne": 1.0}, []),
        ({"ne": math.nan}, []),
        ({"logloss": 3.0}, []),
        (
            {"ne": 1.0001},
            ["on test the model is worse than always predicting the mean (NE 1.000100)"],
        ),
        (
            {"a.ne": 0.9, "b.ne": 2.0},
            ["on test the model of b is worse than always predicting the mean (NE 2.00)"],
        ),
    ],
    ids=str,
)
def test_what_is_useless(report: dict[str, float], expected: list[str]) -> None:
    assert useless("test", Report(report)) == expected
    assert useless("test", None) == []


@pytest.mark.parametrize("metric", [None, "auc", ["auc", "logloss"], "logloss"], ids=str)
def test_a_rising_loss_of_weights_that_are_kept_is_told_once(metric: Any) -> None:
    """Outputs that are stretched in later evaluations leave the order, and AUC, as good as they were."""

    class Growing(ClickModel):
        seen = 0

        def forward(self, dense: Tensor, sparse: Any) -> Tensor:
            self.seen += self.training
            stretched = 1.0 if self.training else max(1.0, self.seen / 20 - 2)
            return super().forward(dense, sparse) * stretched

    notes = Notes()
    stopping = metric and {"metric": metric, "patience": 9}
    torch.manual_seed(0)
    options = {"early_stopping": stopping} if stopping else {}
    trainer = make_trainer(Growing(), epochs=6, observers=[notes], **options)
    result = trainer.fit(Source(batches=30), valid_batches())
    losses = [record.loss for record in notes.of("valid")]
    lowest = losses.index(min(losses)) + 1
    assert lowest < 4  # the loss does rise
    told = [message for message in notes.messages if "has been rising since epoch" in message]
    if metric in (None, "auc"):
        assert len(told) == 1
        assert (
            f"validation logloss has been rising since epoch {lowest} ({min(losses):.4f}" in told[0]
        )
        assert len(result.notes) >= 1
        assert result.notes[0].startswith("validation logloss has been rising since")
    else:
        assert told == []
        assert not [note for note in result.notes if "rising" in note]


def test_predictions_worse_than_the_mean_are_told() -> None:
    """Labels of validation and test turned round: NE is above 1 for both."""
    turned = [Batch(b.dense_features, b.sparse_features, 1 - b.labels) for b in valid_batches()]
    notes = Notes()
    result = make_trainer(ClickModel(), epochs=4, observers=[notes]).fit(
        Source(batches=30), turned, test=turned
    )
    assert result.valid is not None
    number = f"{result.valid.ne:.2f}"
    expected = [
        f"on {split} the model is worse than always predicting the mean (NE {number})"
        for split in ("valid", "test")
    ]
    assert list(result.notes[-2:]) == expected == notes.messages[-2:]
    fine = make_trainer(ClickModel(), epochs=1).fit(Source(batches=30), valid_batches())
    assert fine.notes == ()


def test_chance_is_as_wide_as_scores_drawn_at_random() -> None:
    samples, positives = 90, 15
    generator = torch.Generator().manual_seed(0)
    ranks = torch.rand(4000, samples, generator=generator).argsort(1).double()
    wins = ranks[:, :positives].sum(1) - positives * (positives - 1) / 2
    deviation = (wins / (positives * (samples - positives))).std().item()
    counts = {"click.samples": samples, "click.positives": positives}
    for sign in (1, -1):
        near, far = (0.5 + sign * factor * deviation for factor in (1.9, 2.1))
        (note,) = without_signal("test", Report({"click.auc": near}, counts))
        assert note.startswith(
            f"on test predictions of click order samples as chance does (AUC {near:.3f}"
        )
        assert without_signal("test", Report({"click.auc": far}, counts)) == []
    assert without_signal("test", Report({"auc": 0.5}, {"samples": 9, "positives": 0})) == []
    assert without_signal("test", None) == []
