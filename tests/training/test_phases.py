"""Where time goes: what belongs to a look-up is found in forward and backward."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.clicks import ClickModel, make_batch
from torchrec import EmbeddingCollection, EmbeddingConfig
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    LFU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)
from torchrec.training import phases
from torchrec.training.phases import PhaseTimer


class Slow(torch.autograd.Function):
    """Takes its time, both ways."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, seconds: float) -> torch.Tensor:
        ctx.seconds = seconds
        time.sleep(seconds)
        return x * 1

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        time.sleep(ctx.seconds)
        return grad, None


def test_phases_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense layers sleep 2 x 20 ms, the update of the tables 30 ms."""
    from torchrec.ops.embedding import BagGradient

    update = BagGradient.update

    def slow_update(*args: Any) -> None:
        time.sleep(0.03)
        update(*args)

    monkeypatch.setattr(BagGradient, "update", slow_update)
    model, batch, timer = ClickModel(dropout=0.0), make_batch(8, 1), PhaseTimer()

    def step() -> None:
        with timer("dense"):
            logits = model(batch.dense_features, batch.sparse_features)
            Slow.apply(logits, 0.02).sum().backward()

    with timer.step(model):
        step()
    watched = timer.fractions(1.0)
    assert 0.03 <= watched["lookup"] < 0.2
    assert 0.04 <= watched["dense"] < 0.2
    assert watched["reading"] == watched["optimizer"] == 0.0
    began = time.perf_counter()
    for _ in range(2):  # no hooks: shared as in the last step that was watched
        with timer.step(model):
            step()
    spent = (time.perf_counter() - began) / 2.0
    rest = timer.fractions(2.0)
    assert rest["lookup"] / rest["dense"] == pytest.approx(watched["lookup"] / watched["dense"])
    assert 0.06 <= rest["lookup"] + rest["dense"] <= spent
    assert set(timer.fractions(1.0).values()) == {0.0}


def test_one_step_in_eight_is_watched() -> None:
    model, timer = ClickModel(), PhaseTimer()
    hooked = []
    for _ in range(17):
        with timer.step(model):
            hooked.append(bool(model.ebc._forward_hooks))
        assert not model.ebc._forward_hooks
    assert [step for step, found in enumerate(hooked) if found] == [0, 8, 16]


def test_sequences_are_look_ups_too() -> None:
    model = nn.Sequential(
        EmbeddingCollection(
            [EmbeddingConfig(50, 4, "t", feature_names=["user", "item"], optimizer="sgd", lr=0.1)]
        )
    )
    batch, timer = make_batch(8, 1), PhaseTimer()
    with timer.step(model):
        out = model(batch.sparse_features)
        forward = timer._looking_up
        sum(o.values().sum() for o in out.values()).backward()
    assert 0 < forward < timer._looking_up


def test_maps_of_managed_tables_are_look_ups_too() -> None:
    tables = ClickModel().ebc
    configs = tables.embedding_bag_configs()
    maps = {config.name: managed(config.num_embeddings) for config in configs}
    model = ManagedCollisionEmbeddingBagCollection(
        tables, ManagedCollisionCollection(maps, configs)
    )
    batch, timer = make_batch(8, 1), PhaseTimer()
    with timer.step(model):
        pooled, _ = model(batch.sparse_features)
        forward = timer._looking_up
        pooled.values().sum().backward()
    assert 0 < forward < timer._looking_up


def managed(rows: int) -> MCHManagedCollisionModule:
    return MCHManagedCollisionModule(rows, torch.device("cpu"), LFU_EvictionPolicy(), 10)


def test_watching_is_cheap() -> None:
    """What a step adds: hooks and clocks, far below a hundredth of any step."""
    timer = PhaseTimer()
    taken = []
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(50):
            with timer("dense"):
                timer._start()
                timer._stop()
        taken.append((time.perf_counter() - began) / 50)
    assert min(taken) < 50e-6
    assert tuple(timer.fractions(1.0)) == phases.PHASES
