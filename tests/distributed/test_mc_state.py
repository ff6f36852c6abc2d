"""Maps in states and checkpoints: saved under one plan, loaded under another, ids and rows stay together."""

from __future__ import annotations

import pytest
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from tests.distributed.ranks import run
from tests.distributed.test_collections import loss
from tests.distributed.test_mc_embedding_modules import TABLES, batch, make, maps, shard
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LRU_EvictionPolicy,
    MCHManagedCollisionModule,
)

pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore:.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
]


def roomy():
    """Maps that are a third full, and exchange ids every second batch: some wait when a state is saved."""
    users = MCHManagedCollisionModule(200, "cpu", LRU_EvictionPolicy(), 2, name="users")
    offset = MCHManagedCollisionModule(
        150, "cpu", DistanceLFU_EvictionPolicy(), 2, name="offset", output_global_offset=2
    )
    return {
        "users": users,
        "shared": users,
        "offset": offset,
        "hashed": maps()["hashed"],
        "plain": None,
    }


ROOMY = {**TABLES, "users": (200, ["f1", "f2"]), "shared": (200, ["f2"]), "offset": (160, ["f3"])}


def model(pooled=True):
    return make(pooled, made=roomy, tables=ROOMY)


def step(module, number, rank):
    module.zero_grad()
    loss([module(batch(rank, number, 4))[0].values()]).backward()


def whole(value):
    return value.full_tensor() if hasattr(value, "full_tensor") else value.clone()


def by_id(module):
    """What each id has: its vector in each table, and the state of the optimizer; of all ranks together."""
    around = module._managed_collision_collection
    tables = module._embedding_module
    weights = {name.split(".")[1]: whole(v) for name, v in tables.state_dict().items()}
    states = tables.fused_optimizer.state_dict()["state"]
    sums = {name.split(".")[1]: whole(each["sum"]) for name, each in sorted(states.items())}
    held = {table: [part.held() for part in parts] for table, parts in around.maps().items()}
    told = [None] * dist.get_world_size()
    dist.all_gather_object(told, held)
    found = {}
    for held in told:
        for table, parts in held.items():
            for rows, ids in parts:
                for row, number in zip(rows.tolist(), ids.tolist(), strict=True):
                    state = sums[table][row].tolist() if table in sums else None
                    assert (table, number) not in found
                    found[table, number] = weights[table][row].tolist(), state
    return found


def state_of(module):
    return {
        "model": module.state_dict(),
        "optimizer": module._embedding_module.fused_optimizer.state_dict()["state"],
    }


def load(module, folder):
    state = state_of(module)
    dcp.load(state, checkpoint_id=folder)
    module.load_state_dict(state["model"])
    optimizer = module._embedding_module.fused_optimizer
    fitted = module.fit_optimizer_state({"state": state["optimizer"]})
    optimizer.load_state_dict({**optimizer.state_dict(), "state": fitted["state"]})
    return module


def save(kind, folder):
    module, rank = shard(model(), kind), dist.get_rank()
    for number in range(3):
        step(module, number, rank)
    dcp.save(state_of(module), checkpoint_id=folder)
    before = by_id(module)
    # A run that is taken up goes on as one that never stopped.
    resumed = load(shard(model(), kind), folder)
    assert by_id(resumed) == before
    for number in range(3, 6):
        step(module, number, rank), step(resumed, number, rank)
    assert by_id(resumed) == by_id(module)
    return before


def take_up(kind, folder):
    module = load(shard(model(), kind), folder)
    found = by_id(module)
    for number in range(3, 5):
        step(module, number, dist.get_rank())
    after = by_id(module)
    assert len(after) >= len(found)
    return found


@pytest.mark.parametrize(
    ("kind", "others"),
    [
        ("row_wise", [("row_wise", 3), ("table_wise", 2), ("table_wise", 1), ("column_wise", 2)]),
        ("table_wise", [("row_wise", 2), ("table_wise", 3)]),
    ],
)
def test_ids_keep_their_vectors_under_another_plan(tmp_path, kind, others):
    before, *rest = run(save, 2, kind, str(tmp_path))
    assert rest == [before]
    assert len(before) > 90
    for other, world_size in others:
        for found in run(take_up, world_size, other, str(tmp_path)):
            assert found == before
