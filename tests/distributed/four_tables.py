"""A model with tables that are trained in different ways, for tests of what is saved of it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel, sharding_plan
from torchrec.distributed.sharding_plan import construct_module_sharding_plan
from torchrec.distributed.types import ShardingPlan

# A state a row, states an element, both, and none; one of each rule's kinds.
TABLES = {
    "user": {"num_embeddings": 30, "embedding_dim": 8, "optimizer": "rowwise_adagrad", "lr": 0.1},
    "item": {"num_embeddings": 11, "embedding_dim": 6, "optimizer": "adam", "lr": 0.05},
    "shop": {
        "num_embeddings": 7,
        "embedding_dim": 4,
        "optimizer": "partial_rowwise_adam",
        "lr": 0.02,
    },
    "town": {"num_embeddings": 3, "embedding_dim": 4, "optimizer": "sgd", "lr": 0.5},
}
PLANS = {
    "rows": {"user": ("row_wise",), "item": ("row_wise",), "shop": ("row_wise",)},
    "columns": {"user": ("column_wise", [0, 1]), "item": ("column_wise", [1, 0, 1])},
    "tables": {"user": ("table_wise", 1), "item": ("table_wise", 0), "shop": ("table_wise", 1)},
    "many": {"user": ("column_wise", [0, 0, 1, 1]), "shop": ("column_wise", [1, 1])},
    "grid": {"user": ("grid_shard", [0, 1]), "item": ("table_row_wise", 0), "shop": ("row_wise",)},
    "copies": {"user": ("data_parallel",), "item": ("row_wise",)},
    "alone": {name: ("column_wise", [0, 0]) for name in TABLES},
}


def trained(options, optimizer):
    """Options of a table that is trained by another optimizer; by none of its own, if it is None."""
    if optimizer is None:
        return {key: value for key, value in options.items() if key not in ("optimizer", "lr")}
    return {**options, "optimizer": optimizer or options["optimizer"]}


class Model(nn.Module):
    def __init__(self, device="cpu", **optimizers):
        super().__init__()
        torch.manual_seed(2)
        tables = [
            EmbeddingBagConfig(
                name=name, feature_names=[f"f_{name}"], **trained(options, optimizers.get(name, ""))
            )
            for name, options in TABLES.items()
        ]
        self.tables = EmbeddingBagCollection(tables, device=torch.device(device))
        self.over = nn.Linear(22, 1)

    def forward(self, features):
        return self.over(self.tables(features).values()).square().mean()


def plan_of(model, kinds):
    """Plan tables by the names of generators with their arguments; the others whole, on the first rank."""
    kinds = {name: kinds.get(name, ("table_wise", 0)) for name in TABLES}
    tables = construct_module_sharding_plan(
        model.tables,
        {name: getattr(sharding_plan, kind)(*given) for name, (kind, *given) in kinds.items()},
        local_size=min(2, dist.get_world_size()),
        world_size=dist.get_world_size(),
        device_type="cpu",
    )
    return ShardingPlan({"tables": tables})


def batch(rank, step):
    generator = torch.Generator().manual_seed(100 * rank + step)
    size = 3 + rank
    return KeyedJaggedTensor.from_lists(
        {
            f"f_{name}": torch.randint(
                0, options["num_embeddings"], (size, 2), generator=generator
            ).tolist()
            for name, options in TABLES.items()
        }
    )


def sharded(plan, device="cpu"):
    """The model under one of the `PLANS`."""
    model = Model(device)
    return DistributedModelParallel(model, plan=plan_of(model, PLANS[plan]))


def train(model, *steps):
    rank = dist.get_rank() if dist.is_initialized() else 0
    dense = torch.optim.SGD([p for n, p in model.named_parameters() if n.startswith("over")], 0.1)
    for step in steps:
        dense.zero_grad()
        model(batch(rank, step)).backward()
        dense.step()


def wholes(model):
    """Weights and states of the whole, by name; all ranks call this."""
    found = {}
    for name, value in model.state_dict().items():
        found[name] = value.full_tensor() if hasattr(value, "full_tensor") else value.clone()
    for name, state in model.fused_optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if key != "step":
                whole = value.full_tensor() if hasattr(value, "full_tensor") else value.clone()
                found[f"{name}/{key}"] = whole
    return found


def steps_of(model):
    """Step counts of the tables that this rank has something of."""
    states = model.fused_optimizer.state_dict()["state"]
    return {
        name: float(state["step"])
        for name, state in states.items()
        if type(state["step"]) is torch.Tensor
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
