"""Maps in states and checkpoints: saved under one plan, loaded under another, ids and rows stay together."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from tests.distributed.ranks import run
from tests.distributed.test_collections import loss
from tests.distributed.test_mc_embedding_modules import TABLES, batch, make, maps, shard
from torchrec.distributed.checkpoint import ShardedCheckpoints
from torchrec.distributed.unshard import loadable_state_dict
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
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


def roomy(times=1):
    """Maps that are a third full, and exchange ids every second batch: some wait when a state is saved."""
    users = MCHManagedCollisionModule(200 * times, "cpu", LRU_EvictionPolicy(), 2, name="users")
    offset = MCHManagedCollisionModule(
        100 * times,
        "cpu",
        DistanceLFU_EvictionPolicy(),
        2,
        mch_size=50 * times,
        name="offset",
        output_global_offset=2,
    )
    return {
        "users": users,
        "shared": users,
        "offset": offset,
        "hashed": maps()["hashed"],
        "plain": None,
    }


def model(pooled=True, times=1):
    rows = {"users": 200 * times, "shared": 200 * times, "offset": 160 * times}
    tables = {name: (rows.get(name, n), features) for name, (n, features) in TABLES.items()}
    return make(pooled, made=lambda: roomy(times), tables=tables)


def step(module, number, rank):
    module.zero_grad()
    loss([module(batch(rank, number, 4))[0].values()]).backward()


def whole(value):
    return value.full_tensor() if hasattr(value, "full_tensor") else value.clone()


def by_id(module):
    """What each id has: its vector in each table, and the state of the optimizer; of all ranks together."""
    if isinstance(module, ManagedCollisionEmbeddingBagCollection):
        found = {}
        for table, each in module.managed_collision_collection().maps().items():
            state = module.table_store().fused_optimizer.state_dict()["state"]
            sums = state.get(f"embedding_bags.{table}.weight")
            for row, number in zip(*(part.tolist() for part in each.held()), strict=True):
                vector = module.table_store().export_rows(table, torch.tensor([row]))[1][0]
                found[table, number] = vector.tolist(), sums and sums["sum"][row].tolist()
        return found
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


def load(module, folder, ours=False):
    state = state_of(module)
    if ours:
        state = ShardedCheckpoints(f"{folder}/ours").load(3, state)
    else:
        dcp.load(state, checkpoint_id=folder)
    module.load_state_dict(state["model"])
    optimizer = module._embedding_module.fused_optimizer
    fitted = module.fit_optimizer_state({"state": state["optimizer"]})
    optimizer.load_state_dict({**optimizer.state_dict(), "state": fitted["state"]})
    return module


def save(kind, folder, times):
    module, rank = shard(model(times=times), kind), dist.get_rank()
    for number in range(3):
        step(module, number, rank)
    dcp.save(state_of(module), checkpoint_id=folder)
    ShardedCheckpoints(f"{folder}/ours").save(3, state_of(module))
    before = by_id(module)
    # A run that is taken up goes on as one that never stopped.
    resumed = load(shard(model(times=times), kind), folder)
    assert by_id(resumed) == before
    for number in range(3, 6):
        step(module, number, rank), step(resumed, number, rank)
    assert by_id(resumed) == by_id(module)
    return before


def take_up(kind, folder, times):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        module = load(shard(model(times=times), kind), folder)
    found = by_id(module)
    assert by_id(load(shard(model(times=times), kind), folder, ours=True)) == found
    for number in range(3, 5):
        step(module, number, dist.get_rank())
    after = by_id(module)
    assert len(after) >= len(found)
    return found, dropped(told)


def dropped(told):
    """How many ids of maps that are divided otherwise found no free row, as warnings say."""
    said = [str(each.message) for each in told if "is divided otherwise now" in str(each.message)]
    return sum(int(message.split(" dropped")[0].split()[-1]) for message in said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "ranks", "others"),
    [
        (
            "row_wise",
            2,
            [("row_wise", 3), ("table_wise", 2), ("table_wise", 1), ("column_wise", 2)],
        ),
        ("table_wise", 2, [("row_wise", 2), ("table_wise", 3)]),
        pytest.param(
            "row_wise",
            4,
            [("row_wise", 1), ("row_wise", 3), ("row_wise", 8), ("table_wise", 8)],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_ids_keep_their_vectors_under_another_plan(tmp_path, kind, ranks, others):
    times = ranks // 2  # as many more rows as there are more ids
    before, *rest = run(save, ranks, kind, str(tmp_path), times)
    assert rest == [before] * (ranks - 1)
    assert len(before) > 90
    for other, world_size in others:
        for found, lost in run(take_up, world_size, other, str(tmp_path), times):
            # Maps of many parts have small ones, which may be full.
            gone = before.keys() - found.keys()
            assert lost == sum(table != "shared" for table, _ in gone) <= (6 if ranks > 2 else 0)
            assert found == {key: value for key, value in before.items() if key not in gone}
    # One process, whose maps show as many ids that wait as there are, reads the folder as well, or has it as one file.
    dcp_to_torch_save(tmp_path, tmp_path / "one.pt")
    state = {"model": loadable_state_dict(model(times=times))}
    dcp.load(state, checkpoint_id=tmp_path)
    for found in (torch.load(tmp_path / "one.pt"), state):
        alone = model(times=times)
        alone(batch(7, 0, 6))  # which shows other ids that wait
        alone.load_state_dict(found["model"])
        vectors = {key: vector for key, (vector, _) in by_id(alone).items()}
        assert vectors == {key: vector for key, (vector, _) in before.items()}


def there_and_back(kind):
    """A state of one process is loaded on several ranks, and theirs, brought together, in one process."""
    plain, module = model(), shard(model(), kind)
    for number in range(3):
        step(plain, number, 7)
    before = by_id(plain)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        module.load_state_dict(plain.state_dict())
    said = any("to `fit_optimizer_state` before it is loaded" in str(each.message) for each in told)
    assert said == (kind == "row_wise")
    optimizer, states = (
        module._embedding_module.fused_optimizer,
        plain.table_store().fused_optimizer,
    )
    optimizer.load_state_dict(module.fit_optimizer_state(states.state_dict()))
    assert by_id(module) == before
    # Made of a trained module, it is the same.
    twin = model()
    twin.load_state_dict(plain.state_dict())
    twin.table_store().fused_optimizer.load_state_dict(states.state_dict())
    made = shard(twin, kind)
    assert by_id(made) == before
    for number in range(3, 6):
        for each in (module, made):
            step(each, number, dist.get_rank())
    after = by_id(module)
    assert after == by_id(made)
    assert len(after) > len(before)
    gathered = {name: whole(value) for name, value in module.state_dict().items()}
    other = model()
    other.load_state_dict(gathered)
    vectors = {each: vector for each, (vector, _) in by_id(other).items()}
    assert vectors == {each: vector for each, (vector, _) in after.items()}
    return True


@pytest.mark.parametrize("kind", ["row_wise", "table_wise"])
def test_states_of_one_process_are_those_of_several(kind):
    assert run(there_and_back, 2, kind) == [True, True]


def crowded():
    """Full maps, divided: some ids find no free row where they belong."""
    plain = make(True)
    for number in range(6):
        plain(batch(7, number, 6))
    before = by_id(plain)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        module = shard(plain, "row_wise")
    after = by_id(module)
    assert after.items() <= before.items()
    lost = sum(table != "shared" for table, _ in before.keys() - after.keys())
    assert dropped(told) == lost
    return lost


def test_ids_without_a_free_row_are_dropped_and_counted():
    one, other = run(crowded, 2)
    assert one == other > 0
