"""A sharded model brought back to one process, and checkpoints of one process in a sharded model."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.four_tables import (
    Model,
    assert_same,
    batch,
    sharded,
    steps_of,
    train,
    wholes,
)
from tests.distributed.test_state import results, state_of
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.checkpoint import ShardedCheckpoints
from torchrec.distributed.unshard import unshard
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    LFU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)
from torchrec.training.checkpoint import Checkpoints

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels


def weights_and_states(plain):
    found = {name: value.clone() for name, value in plain.state_dict().items()}
    for name, state in plain.tables.fused_optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if key != "step":
                found[f"tables.{name}/{key}"] = value.clone()
    return found


def train_plain(model, *steps):
    dense = torch.optim.SGD(model.over.parameters(), 0.1)
    for step in steps:
        dense.zero_grad()
        model(batch(0, step)).backward()
        dense.step()


def unsharded(plan):
    model, rank = sharded(plan), dist.get_rank()
    train(model, 0, 1)
    for group in model.fused_optimizer.param_groups:
        group["lr"] *= 0.5
    expected = wholes(model)
    plain, there = unshard(model), unshard(model, 1)
    assert (there is None) == (rank != 1)
    for found in (plain, there) if rank == 1 else (plain,):
        assert type(found) is Model
        assert_same(weights_and_states(found), expected)
        optimizer = found.tables.fused_optimizer
        assert [g["lr"] for g in optimizer.param_groups] == [0.05, 0.025, 0.01, 0.25]
        states = optimizer.state_dict()["state"].values()
        assert [float(state["step"]) for state in states] == [2.0] * 4
        # It trains on as what had these weights and states all along.
        other = Model()
        other.load_state_dict(found.state_dict())
        other.tables.fused_optimizer.load_state_dict(optimizer.state_dict())
        for each in (found, other):
            train_plain(each, 2, 3)
        assert_same(weights_and_states(found), weights_and_states(other))
    assert_same(wholes(model), expected)


@pytest.mark.parametrize("plan", ["rows", "many"])
def test_unshard_gives_the_plain_model(plan):
    results(unsharded, 2, plan)


def unsharded_alone():
    model = DistributedModelParallel(Model("meta"))
    plain = unshard(model, 0)
    assert_same(plain.state_dict(), dict(model.state_dict()))
    with pytest.raises(ValueError, match=r"`rank` should be from 0 to 0, or None\. Received 1"):
        unshard(model, 1)


def test_a_model_of_one_rank_is_unsharded_too():
    unsharded_alone()


def from_trainer(folder, plan):
    """What the plain trainer's store has is read part by part; what is unsharded it keeps again."""
    model, checkpoints = sharded(plan), ShardedCheckpoints(folder)
    state = checkpoints.load(7, state_of(model))
    model.load_state_dict(state["model"])
    model.fused_optimizer.load_state_dict(state["optimizer"])
    loaded, steps = wholes(model), set(steps_of(model).values())
    train(model, 2)
    plain = unshard(model, 0)
    if plain is not None:
        Checkpoints(f"{folder}/back").save(8, plain_state_of(plain))
    return loaded, steps, wholes(model)


def plain_state_of(model):
    state = model.tables.fused_optimizer.state_dict()
    states = {f"tables.{name}": values for name, values in state["state"].items()}
    groups = [
        {**group, "params": [f"tables.{name}" for name in group["params"]]}
        for group in state["param_groups"]
    ]
    return {
        "model": model.state_dict(),
        "optimizer": {"state": states, "param_groups": groups},
        "step": 7,
    }


def test_checkpoints_of_the_plain_trainer_load_into_a_sharded_model_and_back():
    plain = Model()
    train_plain(plain, 0, 1)
    with tempfile.TemporaryDirectory() as folder:
        Checkpoints(folder).save(7, plain_state_of(plain))
        expected = weights_and_states(plain)
        (loaded, steps, trained), (loaded_too, *_) = results(from_trainer, 2, folder, "columns")
        state = Checkpoints(Path(folder, "back")).load(8)
    for found in (loaded, loaded_too):
        assert_same(found, expected)
    assert steps == {2.0}
    plain.load_state_dict(state["model"])
    states = state["optimizer"]["state"]
    states = {name.removeprefix("tables."): values for name, values in states.items()}
    plain.tables.fused_optimizer.load_state_dict({"state": states})
    assert_same(weights_and_states(plain), trained)


def counted():
    """Nothing is sent for a state, nor to load what is at hand."""
    model = sharded("rows")
    train(model, 0)
    kinds = [kind for kind in dir(dist) if kind.startswith(("all_", "broadcast", "send", "recv"))]
    kinds += ["gather", "scatter", "reduce", "reduce_scatter", "isend", "irecv", "barrier"]
    with pytest.MonkeyPatch.context() as patch:
        for kind in kinds:
            patch.setattr(dist, kind, None)
        for kind in ("allreduce", "broadcast", "alltoall_base", "allgather", "send", "recv"):
            patch.setattr(dist.ProcessGroup, kind, None)
        state = state_of(model)
        model.load_state_dict(state["model"])
        model.fused_optimizer.load_state_dict(state["optimizer"])
        with pytest.raises(TypeError, match="NoneType"):
            state["model"]["tables.embedding_bags.user.weight"].full_tensor()
    dist.barrier()


def test_states_are_shown_and_loaded_without_an_exchange():
    results(counted, 2)


class Managed(nn.Module):
    def __init__(self):
        super().__init__()
        table = EmbeddingBagConfig(
            10, 4, "t", feature_names=["f"], optimizer="rowwise_adagrad", lr=0.1
        )
        module = MCHManagedCollisionModule(10, torch.device("cpu"), LFU_EvictionPolicy(), 2)
        self.inside = ManagedCollisionEmbeddingBagCollection(
            EmbeddingBagCollection([table]), ManagedCollisionCollection({"t": module}, [table])
        )
        self.over = nn.Linear(4, 1)

    def forward(self, features):
        return self.over(self.inside(features)[0].values()).square().mean()


def managed(folder):
    """Maps of ids go with their tables: into checkpoints, and back to one process."""
    torch.manual_seed(0)
    model = DistributedModelParallel(Managed())
    for step in range(3):
        ids = [[100 + step, 7 + model.rank], [5]]
        model(KeyedJaggedTensor.from_lists({"f": ids})).backward()
    checkpoints = ShardedCheckpoints(folder)
    checkpoints.save(1, state_of(model))
    other = DistributedModelParallel(Managed())
    state = checkpoints.load(1, state_of(other))
    other.load_state_dict(state["model"])
    other.fused_optimizer.load_state_dict(state["optimizer"])
    known = KeyedJaggedTensor.from_lists({"f": [[100, 7], [5, 102]]})
    losses = [float(each.eval()(known)) for each in (model, other, unshard(model))]
    assert losses[1:] == losses[:1] * 2


def test_maps_of_ids_go_with_their_tables():
    with tempfile.TemporaryDirectory() as folder:
        results(managed, 2, folder)
