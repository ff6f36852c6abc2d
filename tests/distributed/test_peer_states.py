"""States with the names and parts that the kernels of the API have on many ranks: `ShardedTensor`s."""

from __future__ import annotations

import tempfile
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from tests.distributed.four_tables import Model, assert_same, plan_of, train, wholes
from tests.distributed.ranks import run
from tests.distributed.test_state import results
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.compat import original_state_dict
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.types import Shard, ShardedTensor, ShardingEnv, ShardMetadata

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


def their_state(model, split=()):
    """As ``state_dict()`` of model and fused optimizer are printed there, but of tables that are split by columns."""
    weights = {
        name: sharded_tensor(value) if hasattr(value, "local_shards") else value.clone()
        for name, value in model.state_dict().items()
    }
    states = {}
    for name, named in original_state_dict(model.fused_optimizer)["state"].items():
        if name.split(".")[2] in split:
            continue
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


def by_columns(value, counts):
    """A `ShardedTensor` of one number a row for each part of the columns, as the ranks that have them keep it."""
    rows, mine = value.shape[0], dist.get_rank()
    shards = []
    for k, rank in enumerate(counts):
        if rank == mine:
            numbers = torch.arange(rows, dtype=torch.float32) + 10 * k
            place = ShardMetadata([k * rows], [rows], f"rank:{rank}/cpu")
            shards.append(Shard(numbers, place))
    return ShardedTensor._init_from_local_shards(shards, rows * len(counts))


SPLIT = {"user": ("column_wise", [0, 1]), "town": ("column_wise", [1, 1])}


def their_columns(model):
    """Their state of tables whose columns are split: of each part of the columns, a number for each row."""
    state = their_state(model, ("user", "town"))
    for name, ranks in (("user", [0, 1]), ("town", [1, 1])):
        value = model.fused_optimizer.state_dict()["state"][f"tables.embedding_bags.{name}.weight"]
        found = by_columns(value["sum"], ranks)
        if found.local_shards():
            state["optimizer"]["state"][f"tables.embedding_bags.{name}.weight"] = {
                f"{name}.momentum1": found
            }
    return state


def expected_of_columns(model):
    """The mean of the numbers of both parts."""
    states = model.fused_optimizer.state_dict()["state"]
    for name, rows in (("user", 30), ("town", 3)):
        found = states[f"tables.embedding_bags.{name}.weight"]["sum"].full_tensor()
        assert torch.equal(found, torch.arange(rows).float().unsqueeze(1) + 5)


def split_by_columns(folder):
    model = made(SPLIT)
    train(model, 0)
    state = their_columns(model)
    dcp.save(state, checkpoint_id=folder)
    model.fused_optimizer.load_state_dict(state["optimizer"])
    expected_of_columns(model)
    train(model, 1)
    user = model.fused_optimizer.state_dict()["state"]["tables.embedding_bags.user.weight"]["sum"]
    told = [None] * 2
    dist.all_gather_object(told, [shard.tensor for shard in user.local_shards()])
    assert torch.equal(told[0][0], told[1][0])  # who shares rows goes on alike


def comes_late():
    """Take states of each part of the columns over, which the second rank does when the first one has given up."""
    group = dist.new_group(timeout=timedelta(seconds=3))
    model = Model(item="adagrad", shop="sgd", town="rowwise_adagrad")
    model = DistributedModelParallel(
        model, plan=plan_of(model, SPLIT), env=ShardingEnv.from_process_group(group)
    )
    state = their_columns(model)
    if dist.get_rank():
        time.sleep(6)
    model.fused_optimizer.load_state_dict(state["optimizer"])


@pytest.mark.slow
def test_a_rank_that_does_not_take_states_of_columns_over_is_named():
    error, other = run(comes_late, 2)
    assert isinstance(error, RuntimeError)
    assert "take part in bringing together the numbers of rows whose columns lie apart" in str(
        error
    )
    assert "from rank 1" in str(error)
    assert "from rank 0, which has ended" in str(other)  # as the first one does where it raises


def read_split(folder, kinds):
    model = made(kinds)
    split = {"user": 2, "town": 2}
    states = original_state_dict(model.fused_optimizer, column_shards=split)["state"]
    wanted = {"state": {name: values for name, values in states.items() if values}}
    dcp.load({"optimizer": wanted}, checkpoint_id=folder)
    model.fused_optimizer.load_state_dict(wanted)
    expected_of_columns(model)


def test_states_of_each_part_of_the_columns_become_one_of_the_row():
    with tempfile.TemporaryDirectory() as folder:
        results(split_by_columns, 2, folder)
        for kinds in (ROWS, SPLIT):
            results(read_split, 2, folder, kinds)


def test_one_process_reads_and_shows_states_of_each_part_of_the_columns():
    table = EmbeddingBagConfig(3, 4, "t", feature_names=["f"], optimizer="rowwise_adagrad", lr=0.1)
    optimizer = EmbeddingBagCollection([table]).fused_optimizer
    name = "embedding_bags.t.weight"
    values = {"t.momentum1": torch.tensor([1.0, 2.0, 3.0, 5.0, 6.0, 7.0])}
    optimizer.load_state_dict({"state": {name: values}})
    assert optimizer.state_dict()["state"][name]["sum"].tolist() == [[3.0], [4.0], [5.0]]
    shown = original_state_dict(optimizer, column_shards={"t": 2})["state"][name]["t.momentum1"]
    assert shown.tolist() == [3.0, 4.0, 5.0] * 2
