"""What planning is written in: memory, ranks, ways to place a table."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from tests.distributed.table_sharder import collection
from torchrec import EmbeddingCollection, EmbeddingConfig
from torchrec.distributed.planner.types import (
    BasicCommsBandwidths,
    CollectiveType,
    CustomTopologyData,
    Perf,
    PlannerError,
    PlannerErrorType,
    Shard,
    ShardingOption,
    Storage,
    Topology,
)
from torchrec.distributed.types import CacheParams
from torchrec.modules.feature_processor_ import PositionWeightedModule

pytestmark = pytest.mark.once


def test_storage():
    assert Storage(1, 2, 3) + Storage(10, 20, 30) == Storage(11, 22, 33)
    assert Storage(10, 20, 30) - Storage(1, 2, 3) == Storage(9, 18, 27)
    assert len({Storage(1, 2), Storage(1, 2), Storage(2, 1)}) == 2


@pytest.mark.parametrize(
    ("needed", "fits"),
    [
        ((1, 2, 3), True),
        ((2, 2, 3), False),
        ((1, 3, 3), False),
        ((1, 2, 4), False),
        ((0, 0, 0), True),
    ],
)
def test_what_fits(needed, fits):
    assert Storage(*needed).fits_in(Storage(1, 2, 3)) is fits


def test_perf():
    perf = Perf(1, 2, 3, 4, 5, 6)
    assert perf.total == 21
    assert perf + perf == Perf(2, 4, 6, 8, 10, 12)


def test_bandwidths():
    topology = Topology(world_size=4, compute_device="cpu", intra_host_bw=10.0, inter_host_bw=1.0)
    assert (topology.intra_host_bw, topology.inter_host_bw) == (10.0, 1.0)
    bandwidths = topology.comms_bandwidths
    assert bandwidths.get_bw(2, 2, CollectiveType.ALL_TO_ALL) == 10.0
    assert bandwidths.get_bw(2, 4, CollectiveType.ALL_TO_ALL) == 1.0
    own = BasicCommsBandwidths(inter_host_bw=2.0, intra_host_bw=20.0)
    topology = Topology(world_size=4, compute_device="cpu", generalized_comms_bandwidths=own)
    assert (topology.intra_host_bw, topology.inter_host_bw) == (20.0, 2.0)


def test_memory_by_device():
    cpu = Topology(world_size=2, compute_device="cpu", hbm_cap=5, ddr_cap=7, ssd_cap=9)
    assert [device.storage for device in cpu.devices] == [Storage(0, 7, 9)] * 2
    gpu = Topology(world_size=1, compute_device="cuda", hbm_cap=5, ddr_cap=7, ssd_cap=9)
    assert gpu.devices[0].storage == Storage(5, 7, 9)
    assert Topology(world_size=1, compute_device="cuda").devices[0].storage.hbm == 32 * 2**30


def test_memory_that_differs_from_rank_to_rank():
    data = CustomTopologyData({"ddr_cap": [10, 20], "hbm_cap": [1, 2]}, world_size=2)
    topology = Topology(world_size=2, compute_device="cuda", ssd_cap=0, custom_topology_data=data)
    assert [device.storage for device in topology.devices] == [Storage(1, 10), Storage(2, 20)]
    assert not CustomTopologyData({"ddr_cap": [1]}, world_size=1).has_data("hbm_cap")


@pytest.mark.parametrize("data", [{"ddr_cap": [1]}, {"ram": [1, 2]}], ids=str)
def test_memory_of_other_ranks_or_kinds(data):
    with pytest.raises(ValueError, match=r"hbm_cap and ddr_cap, each with one size for each of 2"):
        CustomTopologyData(data, world_size=2)


def test_hosts():
    topology = Topology(world_size=5, compute_device="cpu", local_world_size=2)
    assert [topology.host_of(rank) for rank in range(5)] == [
        range(0, 2),
        range(0, 2),
        range(2, 4),
        range(2, 4),
        range(4, 5),
    ]
    assert topology.intra_group_size == 2
    assert Topology(world_size=4, compute_device="cpu", pod_size=3).intra_group_size == 3


def test_other_memory_is_another_topology():
    topology = Topology(world_size=1, compute_device="cpu", ddr_cap=10)
    other = topology.with_storage(lambda storage: storage - Storage(0, 4))
    assert (other.devices[0].storage.ddr, topology.devices[0].storage.ddr) == (6, 10)
    assert other.world_size == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compute_device": "tpu"}, r"one of cuda, cpu, mtia. Received 'tpu'"),
        ({"world_size": 0}, r"`world_size` should be at least 1. Received 0"),
        ({"local_world_size": -1}, r"`local_world_size` should be at least 1. Received -1"),
        ({"pod_size": -2}, r"`pod_size` should be at least 1. Received -2"),
    ],
)
def test_ranks_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        Topology(**({"world_size": 1, "compute_device": "cpu"} | options))


def test_errors_keep_their_kind_on_the_way_to_another_process():
    error = pickle.loads(pickle.dumps(PlannerError("none", PlannerErrorType.PARTITION)))
    assert str(error) == "none"
    assert error.error_type is PlannerErrorType.PARTITION


def option(collection: nn.Module, name: str = "t", **options) -> ShardingOption:
    given = {
        "tensor": torch.empty(10, 4),
        "module": ("sparse.ebc", collection),
        "input_lengths": [1.0, 2.0],
        "batch_size": 8,
        "sharding_type": "row_wise",
        "partition_by": "uniform",
        "compute_kernel": "fused",
        "shards": [
            Shard([5, 4], [0, 0], Storage(0, 80), Perf(1, 1, 1, 1), rank=0),
            Shard([5, 4], [5, 0], Storage(0, 90), None, rank=None),
        ],
    }
    return ShardingOption(name=name, **(given | options))


def test_ways_to_place_a_table():
    way = option(collection(t=(10, 4)))
    assert (way.fqn, way.path, way.num_shards, way.num_inputs) == (
        "sparse.ebc.t",
        "sparse.ebc",
        2,
        2,
    )
    assert way.total_storage == Storage(0, 170)
    assert way.total_perf == 4
    assert way.get_shards_assignment() == [0, None]
    assert way.module_type_key.endswith(".EmbeddingBagCollection")
    assert way.num_poolings == [1.0, 1.0]
    assert way.cache_load_factor is None
    assert option(way.module[1], cache_params=CacheParams(load_factor=0.5)).cache_load_factor == 0.5
    assert way.storage_hash() == option(way.module[1]).storage_hash()
    assert way.storage_hash() != option(way.module[1], compute_kernel="dense").storage_hash()
    assert repr(way) == (
        "ShardingOption(fqn='sparse.ebc.t', sharding_type='row_wise', compute_kernel='fused', ranks=[0, None])"
    )
    assert option(way.module[1], module=("", way.module[1])).fqn == "t"


def test_pooled_or_not_is_asked_of_the_collection():
    sequences = EmbeddingCollection(
        tables=[EmbeddingConfig(name="s", num_embeddings=10, embedding_dim=4, feature_names=["f"])]
    )
    assert option(collection(t=(10, 4))).is_pooled
    assert not option(sequences, name="s").is_pooled
    both = nn.ModuleDict({"a": sequences, "b": collection(t=(10, 4))})
    assert option(both, name="t").is_pooled
    assert not option(both, name="s").is_pooled
    assert not option(both, name="t", is_pooled=False).is_pooled


def test_feature_processors():
    plain = collection(t=(10, 4))
    assert not option(plain).has_feature_processor
    assert option(nn.ModuleList([plain, PositionWeightedModule(3)])).has_feature_processor
