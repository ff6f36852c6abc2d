"""Which rank of which host: from the environment, from the process group, or one rank without either."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from tests.distributed.ranks import run
from torchrec.distributed.comm import (
    get_group_rank,
    get_local_rank,
    get_local_size,
    get_num_groups,
    intra_and_cross_node_pg,
    intra_and_cross_node_pg_2D,
)
from torchrec.distributed.types import ShardingEnv, ShardingEnv2D, ShardingType

pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)


def test_without_anything_there_is_one_rank():
    assert (get_local_size(), get_local_rank(), get_group_rank(), get_num_groups()) == (1, 0, 0, 1)


def test_without_an_environment_all_ranks_are_on_one_host():
    assert get_local_size(8) == 8
    assert get_local_rank(8, 5) == 5
    assert get_group_rank(8, 5) == 0
    assert get_num_groups(8) == 1


def test_hosts_of_two_ranks(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert get_local_size(8) == 2
    assert [get_local_rank(8, rank) for rank in range(4)] == [0, 1, 0, 1]
    assert [get_group_rank(8, rank) for rank in range(4)] == [0, 0, 1, 1]
    assert get_num_groups(8) == 4


def test_a_size_that_does_not_divide_the_ranks(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert (get_local_size(8), get_num_groups(8)) == (8, 1)
    assert get_local_size(6) == 3


def test_the_local_rank_is_that_of_the_environment_for_this_process_only(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert get_local_rank() == 1
    assert get_local_rank(8) == 1
    monkeypatch.setenv("RANK", "5")
    assert get_local_rank(8, rank=5) == 1
    assert get_local_rank(8, rank=4) == 0


def test_what_is_no_number(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "two")
    with pytest.raises(ValueError, match=r"`LOCAL_WORLD_SIZE` should be a number.*Received 'two'"):
        get_local_size(8)


def _groups_of_hosts() -> tuple[list[int], ...]:
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    assert intra_and_cross_node_pg(torch.device("meta")) == (None, None)
    intra, cross = intra_and_cross_node_pg()
    mesh = DeviceMesh("cpu", [[0, 2], [1, 3]], mesh_dim_names=("copies", "shards"))
    env = ShardingEnv2D(
        mesh.get_group("shards"),
        mesh.get_group("copies"),
        dist.group.WORLD,
        mesh,
        node_group_size=1,
    )
    assert (env.world_size, env.global_world_size) == (2, 4)
    assert (env.rank, env.global_rank) == (dist.get_rank() // 2, dist.get_rank())
    assert env.num_sharding_groups() == 2
    assert [env.remap_rank(rank, ShardingType.ROW_WISE) for rank in range(4)] == [0, 0, 1, 1]
    with pytest.raises(ValueError, match=r"should have shards\. Received data_parallel"):
        env.remap_rank(0, ShardingType.DATA_PARALLEL)
    with pytest.raises(ValueError, match=r"from 0 to 3\. Received 4"):
        env.remap_rank(4, ShardingType.ROW_WISE)
    wrong = DeviceMesh("cpu", [[0, 1, 2, 3]], mesh_dim_names=("copies", "shards"))
    with pytest.raises(ValueError, match=r"`device_mesh` should be .* 2 by 2. Received 1 by 4"):
        ShardingEnv2D(env.sharding_pg, env.replica_pg, dist.group.WORLD, wrong)
    assert intra_and_cross_node_pg_2D(env, torch.device("meta")) == (None, None)
    groups = (intra, cross, *intra_and_cross_node_pg_2D(env))
    world = ShardingEnv.from_process_group(dist.group.WORLD)
    assert (world.world_size, world.rank) == (get_local_size() * 2, dist.get_rank())
    dtensors = ShardingEnv(4, dist.get_rank(), dist.group.WORLD, output_dtensor=True)
    assert dtensors.device_mesh is not None
    assert dtensors.device_mesh.size() == 4
    return tuple(dist.get_process_group_ranks(group) for group in groups)


def test_process_groups_of_hosts():
    hosts = [[0, 1], [0, 1], [2, 3], [2, 3]]
    across = [[0, 2], [1, 3], [0, 2], [1, 3]]
    alone = [[0], [1], [2], [3]]
    shards = [[0, 2], [1, 3], [0, 2], [1, 3]]
    expected = list(zip(hosts, across, alone, shards, strict=True))
    assert run(_groups_of_hosts, 4) == expected
