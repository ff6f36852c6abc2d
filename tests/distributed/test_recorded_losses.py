"""A training program as the API's users write it gives the losses that were recorded of it there.

Weights are set by name and data by rank and step, so that losses do not hang on random streams.
"""

from __future__ import annotations

import zlib

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.ranks import run
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.sharding_plan import get_default_sharders
from torchrec.optim import RowWiseAdagrad, apply_optimizer_in_backward
from torchrec.optim.optimizers import in_backward_optimizer_filter

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels

DIM, TABLES, BATCH = 64, {"a": 50, "b": 40, "c": 33, "d": 64}, 16
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, 0.5),
    "adagrad": (torch.optim.Adagrad, 0.05),
    "rowwise_adagrad": (RowWiseAdagrad, 0.05),
}
# Of two ranks, with tables by table: the first four losses of twenty steps and the last three.
RECORDED = {
    "sgd": [
        [0.72326, 0.69936, 0.86031, 0.68283, 0.62411, 0.68268, 0.68189],
        [0.98135, 0.58684, 0.81338, 0.90303, 0.63519, 0.75848, 0.76431],
    ],
    "adagrad": [
        [0.72326, 0.81354, 0.74173, 0.67492, 0.67154, 0.64114, 0.71846],
        [0.98135, 0.76448, 0.91168, 0.82877, 0.66756, 0.77017, 0.68153],
    ],
    "rowwise_adagrad": [
        [0.72326, 0.86588, 0.71635, 0.65948, 0.68077, 0.67999, 0.69288],
        [0.98135, 0.76343, 0.92210, 0.75052, 0.66908, 0.73814, 0.66893],
    ],
}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        tables = [
            EmbeddingBagConfig(rows, DIM, f"t_{key}", feature_names=[key])
            for key, rows in TABLES.items()
        ]
        self.tables = EmbeddingBagCollection(tables, device=torch.device("meta"))
        self.over = nn.Sequential(nn.Linear(DIM * len(TABLES), 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, features, labels):
        logits = self.over(self.tables(features).values()).squeeze(1)
        return nn.functional.binary_cross_entropy_with_logits(logits, labels)


def drawn(rank, step):
    generator = torch.Generator().manual_seed(1000 * rank + step)
    lengths = torch.randint(0, 8, (len(TABLES) * BATCH,), generator=generator)
    of_keys = lengths.view(len(TABLES), BATCH).sum(1).tolist()
    values = torch.cat(
        [
            torch.randint(0, rows, (count,), generator=generator)
            for rows, count in zip(TABLES.values(), of_keys, strict=True)
        ]
    )
    features = KeyedJaggedTensor(keys=list(TABLES), values=values, lengths=lengths)
    return features, torch.randint(0, 2, (BATCH,), generator=generator).float()


@torch.no_grad()
def fill(model):
    for name, value in sorted(model.state_dict().items()):
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        whole = torch.randn(tuple(value.shape), generator=generator) * 0.2
        if not hasattr(value, "local_shards"):
            value.copy_(whole)
            continue
        for shard in value.local_shards():
            (row, column), (rows, columns) = (
                shard.metadata.shard_offsets,
                shard.metadata.shard_sizes,
            )
            shard.tensor.copy_(whole[row : row + rows, column : column + columns])


def losses(kind, optimizer):
    model = Model()
    cls, lr = OPTIMIZERS[optimizer]
    apply_optimizer_in_backward(cls, model.tables.parameters(), {"lr": lr})
    constraint = ParameterConstraints(sharding_types=[kind], min_partition=16)
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=2, compute_device="cpu", local_world_size=2),
        batch_size=BATCH,
        constraints={f"t_{key}": constraint for key in TABLES},
    )
    plan = planner.collective_plan(model, get_default_sharders(), dist.group.WORLD)
    model = DistributedModelParallel(model, plan=plan)
    types = {
        table.sharding_type for tables in model.plan.plan.values() for table in tables.values()
    }
    assert types == {kind}
    fill(model)
    dense = dict(in_backward_optimizer_filter(model.named_parameters()))
    layers = torch.optim.SGD(dense.values(), 0.1)
    found = []
    for step in range(20):
        layers.zero_grad()
        loss = model(*drawn(model.rank, step))
        loss.backward()
        layers.step()
        found.append(loss.item())
    return [*found[:4], *found[-3:]]


def all_losses(optimizer):
    kinds = ["table_wise", "row_wise", "column_wise", "table_row_wise", "grid_shard"]
    return {kind: losses(kind, optimizer) for kind in kinds}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_losses_are_those_that_were_recorded_under_every_plan(optimizer):
    for rank, found in enumerate(run(all_losses, 2, optimizer)):
        expected = torch.tensor(RECORDED[optimizer][rank])
        for kind, of_kind in found.items():
            difference = (torch.tensor(of_kind) - expected).abs().max().item()
            assert difference < 2e-5, (kind, rank, of_kind)
