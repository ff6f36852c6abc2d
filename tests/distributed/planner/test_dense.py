"""Layers that are measured: what they have and take, and what plans say of it."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from tests.distributed.planner.test_calibrate import RATES
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
)
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.dense import DensePart, measure_dense
from torchrec.distributed.planner.storage_reservations import HeuristicalStorageReservation
from torchrec.distributed.sharding_plan import get_default_sharders
from torchrec.distributed.types import ShardingPlan
from torchrec.report.plan_page import render_plan
from torchrec.report.scale import memory

pytestmark = pytest.mark.once

BATCH = KeyedJaggedTensor(["f", "g"], torch.arange(6), lengths=torch.tensor([2, 1, 1, 2]))


class Model(nn.Module):
    """Two tables on ``meta``, pooled or not, and a layer on the sums of all vectors of a sample."""

    def __init__(self, is_pooled: bool) -> None:
        super().__init__()
        kinds = EmbeddingBagConfig if is_pooled else EmbeddingConfig
        configs = [
            kinds(num_embeddings=10, embedding_dim=8, name=name, feature_names=[name])
            for name in ("f", "g")
        ]
        made = EmbeddingBagCollection if is_pooled else EmbeddingCollection
        self.tables = made(tables=configs, device=torch.device("meta"))
        self.layer = nn.Linear(16 if is_pooled else 8, 100, bias=False)

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        found = self.tables(features)
        if isinstance(found, dict):
            return self.layer(torch.cat([each.values() for each in found.values()])).relu().sum()
        return self.layer(found.values()).relu().sum()


def trained(optimizer, seen=None):
    def training(model):
        made = optimizer(model.parameters(), lr=0.1)
        if seen is not None:
            seen.append(model)

        def step():
            made.zero_grad()
            model(BATCH).backward()
            made.step()

        return step

    return training


@pytest.mark.parametrize("is_pooled", [True, False], ids=["pooled", "sequences"])
def test_bytes_of_layers(is_pooled):
    model, seen = Model(is_pooled), []
    before = model.layer.weight.clone()
    plain = measure_dense(model, trained(torch.optim.SGD, seen), seconds=0.001)
    inputs, rows = (16, 2) if is_pooled else (8, 6)
    weights = 4 * 100 * inputs
    assert (plain.parameter_bytes, plain.gradient_bytes) == (weights, weights)
    assert plain.training_bytes == weights
    # What the layer gives of each row, or its gradient, when gradients of weights are there; and vectors side by side.
    assert rows * 400 <= plain.step_bytes < 2 * rows * 400
    assert plain.step_ms > 0
    adam = measure_dense(model, trained(torch.optim.Adam), seconds=0.001)
    assert adam.training_bytes == 3 * weights  # with two moments
    assert model.layer.weight.equal(before)
    assert model.layer.weight.grad is None
    assert not seen[0].layer.weight.equal(before)  # a copy was trained


def test_tables_in_other_modules_are_refused():
    class Sharder:
        module_type = nn.Linear

        def shardable_parameters(self, module):
            return dict(module.named_parameters())

    with pytest.raises(TypeError, match="Module 'layer' should be an EmbeddingBagCollection"):
        measure_dense(Model(True), trained(torch.optim.SGD), [Sharder()], 0.001)


def test_numbers_below_0_are_refused():
    with pytest.raises(ValueError, match=r"`step_bytes` should be 0 or more\. Received -1"):
        DensePart(1, 1, -1, 1, 1.0)


def plan(dense: DensePart | None) -> ShardingPlan:
    topology = Topology(2, "cpu", rates=RATES)
    kept = HeuristicalStorageReservation(0.0, dense_tensor_estimate=dense)
    planner = EmbeddingShardingPlanner(topology, 2, storage_reservation=kept)
    return planner.plan(Model(True), get_default_sharders())


def test_plans_say_what_layers_take():
    unknown, dense = plan(None), DensePart(3 * 2**20, 6 * 2**20, 0, 3 * 2**20, 2.0)
    assert unknown.report is not None
    assert unknown.report.dense_ms is None
    assert "Layers have 6.25 KiB of parameters on each rank; what a step" in unknown.explain()
    known = plan(dense)
    report = known.report
    assert report is not None
    # Two ranks at once, 1.25 times as long; and of 3 MiB of gradients, as many bytes are sent as there are, 1 ns each.
    assert report.dense_ms == pytest.approx(1.25 * 2 + 3 * 2**20 / 1e6 + 0.125)
    assert report.step_ms == pytest.approx(unknown.report.step_ms + report.dense_ms)
    assert [rank.dense_bytes for rank in report.ranks] == [9 * 2**20] * 2
    assert [rank.reserved for rank in report.ranks] == [9 * 2**20] * 2
    text = known.explain()
    assert "a step takes" in text
    assert "for tables and layers" in text
    assert (
        "Layers take 5.77 ms of a step, and 9 MiB on each rank (measured): 3 MiB of parameters, 6 MiB"
        in text
    )
    page = render_plan(known)
    assert f"{memory(9 * 2**20)} of these for layers" in page
    assert "Tables and layers" in page
    assert not re.findall(r"\d [KMGT]B\b", text + page)  # of 1000 or of 1024: units say which
