"""Each private name of PyTorch that sharding uses is there and does what it thinks."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.distributed import _shard
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor import Shard as PlacedShard
from torch.testing._internal.distributed import fake_pg  # noqa: F401 (registers the group "fake")

from tests.distributed.ranks import run
from torchrec.distributed import _private

pytestmark = pytest.mark.once


def test_metadata_of_shards_compare_by_value():
    def make(placement: str) -> _private.EnumerableShardingSpec:
        shard = _private.ShardMetadata([0, 0], [2, 3], placement)
        return _private.EnumerableShardingSpec([shard])

    assert make("rank:1/cpu") == make("rank:1/cpu")
    assert make("rank:1/cpu") != make("rank:0/cpu")
    assert isinstance(make("rank:0/cpu"), _private.ShardingSpec)


@pytest.mark.parametrize(
    ("placement", "rank", "device"),
    [("rank:1/cpu", 1, "cpu"), ("rank:3/cuda:1", 3, "cuda:1"), ("cpu", None, "cpu")],
)
def test_placements_name_rank_and_device(placement: str, rank: int | None, device: str):
    metadata = _private.ShardMetadata([0, 0], [2, 3], placement)
    assert _private.placement_of(metadata) == (rank, device)


def test_a_shard_without_a_placement_names_no_rank():
    assert _private.placement_of(_private.ShardMetadata([0, 0], [2, 3])) == (None, "")


def test_local_shards_are_tensors_with_metadata():
    shard = _private.Shard(torch.ones(2, 3), _private.ShardMetadata([4, 0], [2, 3], "rank:0/cpu"))
    assert shard.metadata.shard_offsets == [4, 0]
    assert shard.tensor.shape == (2, 3)


def test_sharded_tensors_are_those_of_pytorch():
    properties = _private.TensorProperties(dtype=torch.float16)
    metadata = _private.ShardedTensorMetadata([], torch.Size([2, 3]), properties)
    assert metadata.tensor_properties.dtype == torch.float16
    assert _private.ShardedTensor is _shard.sharded_tensor.ShardedTensor


def test_leaves_of_containers_are_mapped():
    doubled = _private.map_leaves(lambda leaf: 2 * leaf, {"a": (1, [2]), "b": 3})
    assert doubled == {"a": (2, [4]), "b": 6}


def test_what_is_not_compiled_runs_between_graphs():
    seen = []

    @_private.not_compiled
    def outside(value: torch.Tensor) -> torch.Tensor:
        seen.append(type(value))
        return value + 1

    @torch.compile(backend="eager")
    def graph(value: torch.Tensor) -> torch.Tensor:
        return outside(value * 2) * 3

    assert graph(torch.ones(2)).tolist() == [9.0, 9.0]
    assert seen == [torch.Tensor]


def test_what_keeps_sizes_copies_or_casts():
    aten = torch.ops.aten
    kept = [aten.clone, aten.empty_like, aten.zeros_like, aten._to_copy]
    assert all(_private.keeps_sizes(operator.default) for operator in kept)
    assert not any(_private.keeps_sizes(each) for each in (aten.sum.default, aten.clone, None))


class OwnDTensor(DTensor):
    pass


def test_parts_of_dtensors_begin_where_they_are_cut():
    dist.init_process_group("fake", rank=2, world_size=3)
    try:
        mesh = DeviceMesh("cpu", torch.arange(3))
        made = DTensor.from_local(
            torch.zeros(1, 2), mesh, [PlacedShard(0)], shape=torch.Size([7, 2]), stride=(2, 1)
        )
        assert _private.offsets_of(made) == (6, 0)  # 3, 3 and 1 rows
        same = _private.same_dtensor_as(OwnDTensor, made)
        assert type(same) is OwnDTensor
        assert (same.shape, same.placements) == (made.shape, made.placements)
        assert same.to_local().data_ptr() == made.to_local().data_ptr()
    finally:
        dist.destroy_process_group()


def test_parameters_are_those_that_a_module_has_itself():
    module = torch.nn.Sequential(torch.nn.Linear(2, 1))
    assert list(_private.parameters_by_name(module)) == []
    found = _private.parameters_by_name(module[0])
    module[0].weight = torch.nn.Parameter(torch.ones(1, 2))
    assert found["weight"] is module[0].weight


def prepared():
    layer = torch.nn.Linear(2, 1)
    outer = torch.nn.Module()
    outer.forward = lambda x: {"lazy": layer(x)}
    outer.layer = layer
    wrapped = _private.PreparedDataParallel(outer, lambda found: found["lazy"], static_graph=True)
    for _ in range(2):
        wrapped(torch.full((1, 2), dist.get_rank() + 1.0)).sum().backward()
    return layer.weight.grad.tolist()


def test_data_parallel_looks_into_what_was_prepared():
    assert run(prepared, 2) == [[[3.0, 3.0]]] * 2


def test_bytes_of_tensors_that_are_made_are_counted():
    before = torch.zeros(100)
    live = _private.LiveBytes()
    with live:
        made = before + 1
        assert live.num_bytes == 400
        views = [before[1:], made[1:], made.view(10, 10)]
        before.add_(1)
        assert live.num_bytes == 400
        del made, views
        assert (live.num_bytes, live.peak) == (0, 400)


def test_versions_count_changes_in_place_also_through_views():
    tensor = torch.zeros(3)
    before = _private.version_of(tensor)
    tensor[:1].add_(1)
    assert _private.version_of(tensor) == before + 1
    with torch.inference_mode():
        assert _private.version_of(torch.zeros(3).add_(1)) == 0
