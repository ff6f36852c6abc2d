"""Parts as the local tensors of DTensors: what is shown where the environment asks for these."""

from __future__ import annotations

import copy
import tempfile
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from tests.distributed.four_tables import PLANS, Model, assert_same, plan_of, sharded, train, wholes
from tests.distributed.test_state import results
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.shards_wrapper import LocalShardsWrapper
from torchrec.distributed.types import ShardingEnv
from torchrec.distributed.unshard import unshard

pytestmark = [
    pytest.mark.once,  # what ranks tell one another does not depend on the kernels
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of torch.distributed.checkpoint
]


def with_dtensors(plan):
    model = Model()
    env = ShardingEnv(dist.get_world_size(), dist.get_rank(), dist.group.WORLD, output_dtensor=True)
    return DistributedModelParallel(model, env=env, plan=plan_of(model, PLANS[plan]))


def shown(plan, folder):
    model, same = with_dtensors(plan), sharded(plan)
    for each in (model, same):
        train(each, 0, 1)
    expected = wholes(same)
    weights = {name: value for name, value in expected.items() if "/" not in name}
    state = model.state_dict()
    for name, value in state.items():
        if name.startswith("over"):
            continue
        assert isinstance(value, DTensor)
        assert value.shape == weights[name].shape
        local, there = value.to_local(), same.state_dict()[name].local_shards()
        assert isinstance(local, LocalShardsWrapper)
        assert local.is_empty_shard() == (not there)
        assert [list(each) for each in local.local_offsets()] == [
            shard.metadata.shard_offsets for shard in there
        ]
        assert [list(each) for each in local.local_sizes()] == [
            shard.metadata.shard_sizes for shard in there
        ]
        for mine, shard in zip(local.local_shards(), there, strict=True):
            assert torch.equal(mine, shard.tensor)
    # They save and load under another plan, into DTensors and into what is none.
    dcp.save(state, checkpoint_id=folder)
    for other in (with_dtensors("columns"), sharded("tables")):
        wanted = other.state_dict()
        dcp.load(wanted, checkpoint_id=folder)
        other.load_state_dict(wanted)
        dcp.save(other.state_dict(), checkpoint_id=f"{folder}/again")
        model.load_state_dict(sharded(plan).state_dict())
        wanted = model.state_dict()
        dcp.load(wanted, checkpoint_id=f"{folder}/again")
        model.load_state_dict(wanted)
        found = sharded(plan)
        found.load_state_dict(model.state_dict())
        found = {name: value for name, value in wholes(found).items() if name in weights}
        assert_same(found, weights)
    # `model` has been loaded again: it is what it was.
    for name, value in model.state_dict().items():
        if not name.startswith("over"):
            assert_is_whole(value, weights[name])
    full = get_model_state_dict(model.module, options=StateDictOptions(full_state_dict=True))
    assert_same(full, weights)
    plain = unshard(model)
    assert_same(plain.state_dict(), weights)
    copy.deepcopy(model).state_dict()


def assert_is_whole(value, expected):
    rank, world_size = dist.get_rank(), dist.get_world_size()
    assert torch.equal(value.full_tensor(), expected)
    copies = value.detach().clone()
    with torch.no_grad():
        for part in copies.to_local().local_shards():
            part.add_(1.0)
    assert torch.equal(copies.to(torch.float64).full_tensor(), (expected + 1.0).double())
    assert torch.equal(value.full_tensor(), expected)
    replicated = value.redistribute(placements=[Replicate()])
    assert replicated.placements == (Replicate(),)
    assert torch.equal(replicated.to_local(), expected)
    assert value.redistribute(placements=value.placements) is value
    (axis,) = {0, 1} - {value.placements[0].dim}
    cut = value.redistribute(placements=[Shard(axis)])
    piece = expected.chunk(world_size, axis)[rank]
    assert torch.equal(cut.to_local(), piece)
    assert torch.equal(cut.full_tensor(), expected)
    half = value.redistribute(placements=[Replicate()], forward_dtype=torch.bfloat16)
    assert half.to_local().dtype == torch.bfloat16
    with pytest.raises(ValueError, match="`grad_placements` should be None"):
        value.full_tensor(grad_placements=[Replicate()])


@pytest.mark.parametrize("plan", ["rows", pytest.param("columns", marks=pytest.mark.slow), "many"])
def test_states_are_dtensors_where_the_environment_asks_for_them(plan):
    with tempfile.TemporaryDirectory() as folder:
        results(shown, 2, plan, folder)


def asked_alone():
    group = dist.new_group(timeout=timedelta(seconds=5))
    env = ShardingEnv(2, dist.get_rank(), group, output_dtensor=True)
    model = Model()
    model = DistributedModelParallel(model, env=env, plan=plan_of(model, PLANS["rows"]))
    value = model.state_dict()["tables.embedding_bags.user.weight"]
    dist.barrier()
    if dist.get_rank() == 0:
        with pytest.raises(RuntimeError, match=r"should take part in .* within 5 s.*rank 1"):
            value.full_tensor()
    dist.barrier()
    return True


@pytest.mark.slow
def test_a_rank_that_asks_for_a_whole_alone_is_told_so_in_time():
    assert results(asked_alone, 2) == [True, True]


def gathered_by_pytorch():
    mesh = init_device_mesh("cpu", (2,))
    local = LocalShardsWrapper([torch.ones(2, 2)], [(2 * dist.get_rank(), 0)])
    made = DTensor.from_local(local, mesh, [Shard(0)], run_check=False)
    with pytest.raises(TypeError, match="should be asked of a `DTensor` in the state of a sharded"):
        made.full_tensor()


def test_parts_in_a_dtensor_of_others_are_not_taken_for_pieces():
    results(gathered_by_pytorch, 2)


def wrapper(fill=1.0):
    parts = [torch.full((4, 2), fill), torch.full((4, 3), fill)]
    return LocalShardsWrapper(parts, [(0, 0), (0, 6)])


def test_what_keeps_sizes_is_done_with_each_part():
    one = wrapper()
    assert one.shape == (4, 5)
    assert torch.equal(one.clone(), one)
    assert not torch.equal(wrapper(2.0), one)
    assert not torch.equal(LocalShardsWrapper(one.local_shards(), [(0, 0), (0, 7)]), one)
    zeros = torch.zeros_like(one)
    assert [float(part.sum()) for part in zeros.local_shards()] == [0.0, 0.0]
    zeros.copy_(one)
    assert torch.equal(zeros, one)
    assert one.to(torch.float64).local_shards()[1].dtype == torch.float64
    assert one.detach().local_shards()[0].data_ptr() == one.local_shards()[0].data_ptr()
    assert torch.empty_like(one).local_offsets() == one.local_offsets()
    assert one.new_empty((4, 5)).local_sizes() == one.local_sizes()
    assert (one.device.type, one.is_meta, one.is_pinned()) == ("cpu", False, False)
    assert one.requires_grad_().local_shards()[0].requires_grad
    assert one.storage_metadata().size == torch.Size([4, 5])
    empty = LocalShardsWrapper([], [])
    assert (empty.is_empty_shard(), empty.device.type, tuple(empty.shape)) == (True, "meta", (0, 0))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda one: one.sum(), "should be given the parts of a LocalShardsWrapper"),
        (lambda one: one.copy_(torch.zeros(4, 5)), "Received Tensor"),
        (lambda one: one.view(5, 4), r"`size` should be that of the parts, \(4, 5\)"),
        (lambda one: one.new_empty(3), r"`size` should be that of the parts, \(4, 5\)"),
        (
            lambda one: LocalShardsWrapper(one.local_shards(), [(0, 0)]),
            "one for each of the 2 shards",
        ),
    ],
    ids=["sums", "copies of a tensor", "views", "new sizes", "offsets"],
)
def test_what_would_take_parts_for_the_whole_is_refused(act, message):
    with pytest.raises((TypeError, ValueError), match=message):
        act(wrapper())
