"""States with the names and parts that the kernels of the API have on many ranks: `ShardedTensor`s."""

from __future__ import annotations

import tempfile

import pytest
import torch.distributed.checkpoint as dcp

from tests.distributed.four_tables import Model, assert_same, plan_of, train, wholes
from tests.distributed.test_state import results
from torchrec.compat import original_state_dict
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.types import Shard, ShardedTensor

pytestmark = [
    pytest.mark.once,  # what ranks tell one another does not depend on the kernels
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of torch.distributed.checkpoint
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # `ShardedTensor` is deprecated
]


def sharded_tensor(value):
    """A tensor of PyTorch's type with the parts that ours has; of one number a row, a vector."""
    if value.shape[1:] == (1,):
        value = value.squeeze(1)
    shards = [Shard(shard.tensor.clone(), shard.metadata) for shard in value.local_shards()]
    return ShardedTensor._init_from_local_shards(shards, *value.size())


def their_state(model):
    """As ``state_dict()`` of model and fused optimizer are printed there."""
    weights = {
        name: sharded_tensor(value) if hasattr(value, "local_shards") else value.clone()
        for name, value in model.state_dict().items()
    }
    states = {}
    for name, named in original_state_dict(model.fused_optimizer)["state"].items():
        found = {key: sharded_tensor(value) for key, value in named.items()}
        if any(value.local_shards() for value in found.values()):
            states[name] = found  # tables that are elsewhere, or have no state, are not named
    return {"model": weights, "optimizer": {"state": states}}


def made(kinds):
    # Without Adam, whose step count they do not save.
    model = Model(item="adagrad", shop="sgd", town="rowwise_adagrad")
    return DistributedModelParallel(model, plan=plan_of(model, kinds))


ROWS = {"user": ("row_wise",), "item": ("row_wise",), "town": ("table_wise", 1)}
COLUMNS = {"item": ("column_wise", [0, 1]), "shop": ("column_wise", [1, 0])}


def loaded(kinds):
    """What a rank has of the same layout is loaded at once."""
    model, other = made(kinds), made(kinds)
    train(model, 0, 1)
    expected, state = wholes(model), their_state(model)
    other.load_state_dict(state["model"])
    other.fused_optimizer.load_state_dict(state["optimizer"])
    assert_same(wholes(other), expected)
    return sorted(state["optimizer"]["state"])


@pytest.mark.parametrize("kinds", [ROWS, COLUMNS], ids=["rows", "columns"])
def test_states_with_their_names_and_parts_load(kinds):
    first, second = results(loaded, 2, kinds)
    names = {f"tables.embedding_bags.{name}.weight" for name in ("user", "item", "town")}
    assert set(first) | set(second) == names
    assert first != second  # each names what it has


def save(folder):
    model = made(ROWS)
    train(model, 0, 1)
    dcp.save(their_state(model), checkpoint_id=folder)
    return wholes(model)


def load(folder, kinds):
    model = made(kinds)
    states = original_state_dict(model.fused_optimizer)["state"]
    states = {name: values for name, values in states.items() if values}
    wanted = {"model": model.state_dict(), "optimizer": {"state": states}}
    dcp.load(wanted, checkpoint_id=folder)
    model.load_state_dict(wanted["model"])
    model.fused_optimizer.load_state_dict(wanted["optimizer"])
    return wholes(model)


@pytest.mark.parametrize("world_size", [1, 2])
def test_checkpoints_of_theirs_load_under_another_plan(world_size):
    with tempfile.TemporaryDirectory() as folder:
        expected = results(save, 2, folder)[0]
        kinds = COLUMNS if world_size > 1 else {}
        for found in results(load, world_size, folder, kinds):
            assert_same(found, expected)
