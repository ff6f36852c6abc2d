"""A trainer keeps its state in whatever has the methods of a `StateStore`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.training.clicks import (
    ClickModel,
    Source,
    assert_same,
    everything,
    make_trainer,
    valid_batches,
)
from torchrec.training import Observer, StateStore, Trainer

pytestmark = pytest.mark.once


class Memory:
    """Keeps all states in memory, and how it was asked."""

    def __init__(self) -> None:
        self.states: dict[int, Any] = {}
        self.best: dict[int, Any] = {}
        self.needed: list[int | None] = []
        self.tidied = 0

    def latest(self) -> int | None:
        return max(self.states, default=None)

    def save(self, step: int, state: Any, best: int | None = None) -> None:
        assert step not in self.states
        self.states[step] = copy.deepcopy(state)
        self.needed.append(best)

    def load(self, step: int, into: Any) -> Any:
        return copy.deepcopy(self.states[step])

    def save_best(self, step: int, weights: Any) -> None:
        self.best[step] = copy.deepcopy(weights)

    def load_best(self, step: int, into: Any) -> Any:
        return self.best[step]

    def tidy(self) -> None:
        self.tidied += 1


class Interrupted(Exception):  # noqa: N818
    pass


class Interrupt(Observer):
    def stepped(self, step: int, samples: int) -> None:
        if step == 9:
            raise Interrupted


def trainer(store: StateStore, *observers: Observer) -> Trainer:
    torch.manual_seed(0)
    return make_trainer(
        ClickModel(),
        checkpoints=store,
        observers=observers,
        checkpoint_every=4,
        epochs=3,
        early_stopping={"metric": "ne", "patience": 99},
        evaluate_every=3,
    )


def test_goes_on_from_a_store_in_memory() -> None:
    whole = trainer(Memory())
    expected = whole.fit(Source(), valid_batches())
    store = Memory()
    with pytest.raises(Interrupted):
        trainer(store, Interrupt()).fit(Source(), valid_batches(), resume=True)
    assert list(store.states) == [4, 7, 8]
    again = trainer(store)
    result = again.fit(Source(), valid_batches(), resume=True)
    assert store.tidied == 1
    assert store.needed[-1] == result.best_step
    assert (result.train, result.valid) == (expected.train, expected.valid)
    assert_same(everything(again.model, again.optimizer), everything(whole.model, whole.optimizer))


def test_best_weights_come_from_the_store() -> None:
    store = Memory()
    one = trainer(store)
    result = one.fit(Source(), valid_batches())
    assert result.best_step in store.best
    assert_same(one.model.state_dict(), store.best[result.best_step])
