"""Averages of weights, against those of PyTorch and against plain sums."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tests.training.clicks import (
    ClickModel,
    NormedModel,
    Notes,
    Source,
    assert_same,
    make_batch,
    make_trainer,
    valid_batches,
)
from torchrec.training import AverageOptions, Checkpoints, Observer
from torchrec.training.averaging import WeightAverage

pytestmark = pytest.mark.once


class Reference(Observer):
    """Averages a model as PyTorch does, after each step."""

    def __init__(self, model: nn.Module, kind: str, decay: float, start: int) -> None:
        self.model, self.start = model, start

        def ema(average: Tensor, weight: Tensor, count: Tensor | int) -> Tensor:
            if not average.is_floating_point():
                return weight
            n = int(count) + 1
            share = min(decay, n / (9 + n)) if kind == "ema" else (n - 1) / n
            return share * average + (1 - share) * weight

        self.average = AveragedModel(model, avg_fn=ema, use_buffers=True)

    def stepped(self, step: int, samples: int) -> None:
        if step > self.start:
            self.average.update_parameters(self.model)


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_is_that_of_pytorch(kind: str) -> None:
    """Of dense parameters, fused and other tables, and statistics; training itself goes on as ever."""
    options: dict[str, Any] = {"decay": 0.8} if kind == "ema" else {"start": 0.5}
    torch.manual_seed(1)
    model = NormedModel()
    plain = copy.deepcopy(model)
    reference = Reference(model, kind, 0.8, 0 if kind == "ema" else 14)
    notes = Notes()
    trainer = make_trainer(
        model, epochs=4, average={"kind": kind, **options}, observers=[reference, notes]
    )
    result = trainer.fit(Source(), valid_batches())
    expected = reference.average.module.state_dict()
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    # What is evaluated is the model that one has in the end.
    assert trainer.evaluate(valid_batches()) == result.valid == notes.of("valid")[-1].report
    # The same steps as without an average.
    others = Notes()
    ordinary = make_trainer(plain, epochs=4, observers=[others])
    ordinary.fit(Source(), valid_batches())
    losses = [[record.loss for record in each.of("train")] for each in (notes, others)]
    assert losses[0] == losses[1]
    assert float((found["over.1.weight"] - plain.state_dict()["over.1.weight"]).abs().max()) > 1e-4
    assert_same(
        {name: value for name, value in found.items() if "num_batches" in name},
        {name: value for name, value in plain.state_dict().items() if "num_batches" in name},
    )


def test_best_weights_are_averages(tmp_path: Path) -> None:
    """In memory and in checkpoints alike, of the step that is kept."""
    models = []
    for checkpoints in (None, Checkpoints(tmp_path)):
        torch.manual_seed(2)
        model = NormedModel()
        reference = Reference(model, "ema", 0.9, 0)
        kept: dict[int, Any] = {}

        class Keeps(Observer):
            def stepped(self, step: int, samples: int) -> None:
                kept[step] = copy.deepcopy(reference.average.module.state_dict())  # noqa: B023

        trainer = make_trainer(
            model,
            epochs=6,
            learning_rate=0.3,  # gets worse
            average={"kind": "ema", "decay": 0.9},
            early_stopping={"metric": "logloss", "patience": 2},
            checkpoints=checkpoints,
            observers=[reference, Keeps()],
        )
        result = trainer.fit(Source(), valid_batches())
        assert result.best_step is not None
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, kept[result.best_step][name], rtol=1e-5, atol=1e-6)
        assert trainer.evaluate(valid_batches()) == result.valid
        models.append(model.state_dict())
    assert_same(*models)


def test_a_mean_that_has_not_begun_leaves_the_weights() -> None:
    stopping = {"metric": "logloss", "patience": 1, "min_delta": 9.0}
    found = []
    for average in ({}, {"average": {"kind": "swa", "start": 0.9}}):
        torch.manual_seed(3)
        model = ClickModel()
        result = make_trainer(model, epochs=9, early_stopping=stopping, **average).fit(
            Source(), valid_batches()
        )
        found.append(model.state_dict())
    assert_same(*found)
    # Of 63 steps.
    said = "the model has the weights of step 7, not an average: .* begins after step 56. A lower"
    assert re.match(said, result.notes[-1])


@pytest.mark.parametrize(("start", "told"), [(0.5, True), (0.49, False)])
def test_a_mean_that_begins_is_not_told_of(start: float, told: bool) -> None:
    """At the end of the first epoch of two, whose weights are kept, half of the steps are made."""
    stopping = {"metric": "logloss", "patience": 1, "min_delta": 9.0}
    average = {"kind": "swa", "start": start}
    trainer = make_trainer(ClickModel(), epochs=2, early_stopping=stopping, average=average)
    notes = trainer.fit(Source(batches=8), valid_batches()).notes
    assert any("not an average" in note for note in notes) == told


def test_weights_of_half_precision_are_averaged_in_full() -> None:
    """Steps too small for BF16 add up."""
    layer = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    average = WeightAverage(AverageOptions("ema", decay=0.999), layer)
    nn.init.constant_(layer.weight, 1.0)
    average.update(1, None)
    expected = 1.0
    nn.init.constant_(layer.weight, 2.0)
    for n in range(2, 9001):
        average.update(n, None)
        expected += (1 - min(0.999, n / (9 + n))) * (2.0 - expected)
    with average.shown():
        assert layer.weight.item() == pytest.approx(expected, rel=2**-8)
        assert layer.weight.dtype == torch.bfloat16
    assert layer.weight.item() == 2.0
    assert expected == pytest.approx(2.0, abs=1e-2)


def test_weights_come_back_when_an_evaluation_fails() -> None:
    class Fails(Exception):  # noqa: N818
        pass

    layer = nn.Linear(2, 1)
    average = WeightAverage(AverageOptions("ema"), layer)
    average.update(1, None)
    nn.init.constant_(layer.weight, 5.0)

    def fails() -> None:
        with average.shown():
            assert not layer.weight.eq(5.0).any()
            raise Fails

    with pytest.raises(Fails):
        fails()
    assert layer.weight.eq(5.0).all()


def test_means_need_a_length_and_checkpoints_their_average(tmp_path: Path) -> None:
    swa = make_trainer(ClickModel(), average={"kind": "swa"})
    with pytest.raises(ValueError, match=r"`average.kind` should be ema for data whose length is"):
        swa.fit(iter([make_batch(4, 1)]))
    ema = make_trainer(ClickModel(), epochs=1, average={"kind": "ema"})
    ema.fit(iter([make_batch(4, 1)]))
    store = Checkpoints(tmp_path)
    make_trainer(ClickModel(), checkpoints=store).fit(Source())
    with pytest.raises(ValueError, match=r"`average` should be given, or not, .* without one"):
        make_trainer(ClickModel(), checkpoints=store, average={"kind": "ema"}).fit(
            Source(), resume=True
        )
