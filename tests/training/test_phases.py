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
    from torchrec.modules import _fused

    update = _fused.TablesUpdater.update_bags

    def slow_update(*args: Any) -> None:
        time.sleep(0.03)
        update(*args)

    monkeypatch.setattr(_fused.TablesUpdater, "update_bags", slow_update)
    model, batch, timer = ClickModel(dropout=0.0), make_batch(8, 1), PhaseTimer()
    with timer.watching(model), timer("dense"):
        logits = model(batch.dense_features, batch.sparse_features)
        Slow.apply(logits, 0.02).sum().backward()
    assert 0.03 <= timer.seconds["lookup"] < 0.2
    assert 0.04 <= timer.seconds["dense"] < 0.2
    fractions = timer.fractions(2.0)
    assert set(timer.seconds.values()) == {0.0}
    assert fractions["reading"] == fractions["optimizer"] == 0.0
    before = dict(timer.seconds)
    model(batch.dense_features, batch.sparse_features).sum().backward()
    assert timer.seconds == before  # no hook is left


def test_sequences_are_look_ups_too() -> None:
    model = nn.Sequential(
        EmbeddingCollection(
            [EmbeddingConfig(50, 4, "t", feature_names=["user", "item"], optimizer="sgd", lr=0.1)]
        )
    )
    batch, timer = make_batch(8, 1), PhaseTimer()
    with timer.watching(model):
        out = model(batch.sparse_features)
        forward = timer.seconds["lookup"]
        sum(o.values().sum() for o in out.values()).backward()
    assert 0 < forward < timer.seconds["lookup"]


def test_maps_of_managed_tables_are_look_ups_too() -> None:
    tables = ClickModel().ebc
    configs = tables.embedding_bag_configs()
    maps = {config.name: managed(config.num_embeddings) for config in configs}
    model = ManagedCollisionEmbeddingBagCollection(
        tables, ManagedCollisionCollection(maps, configs)
    )
    batch, timer = make_batch(8, 1), PhaseTimer()
    with timer.watching(model):
        pooled, _ = model(batch.sparse_features)
        forward = timer.seconds["lookup"]
        pooled.values().sum().backward()
    assert 0 < forward < timer.seconds["lookup"]


def managed(rows: int) -> MCHManagedCollisionModule:
    return MCHManagedCollisionModule(rows, torch.device("cpu"), LFU_EvictionPolicy(), 10)


def test_evaluations_are_no_part_of_a_step() -> None:
    model, batch, timer = ClickModel(), make_batch(8, 1), PhaseTimer()
    with timer.watching(model):
        model.eval()(batch.dense_features, batch.sparse_features)
    assert timer.seconds["lookup"] == 0.0


def test_watching_is_cheap() -> None:
    """What a step adds: hooks and clocks, far below a hundredth of any step."""
    timer = PhaseTimer()
    began = time.perf_counter()
    for _ in range(1000):
        with timer("dense"):
            timer._start()
            timer._stop()
    assert (time.perf_counter() - began) / 1000 < 50e-6
    assert tuple(timer.seconds) == phases.PHASES
