"""Which rank of which host this process is: from the environment that ``torchrun`` sets, or from the process group."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from torchrec.distributed._environment import ShardingEnv2D


def get_local_size(world_size: int | None = None) -> int:
    """Return how many ranks a host has.

    That is ``LOCAL_WORLD_SIZE`` of the environment where it divides the number of ranks; otherwise all ranks are taken
    to be on one host.

    Args:
        world_size: how many ranks there are. Default: those of the process group; 1 without one.

    Example:
        >>> get_local_size(world_size=1)
        1
    """
    world_size = _world_size(world_size)
    local_size = _number("LOCAL_WORLD_SIZE")
    return local_size if local_size and world_size % local_size == 0 else world_size


def get_local_rank(world_size: int | None = None, rank: int | None = None) -> int:
    """Return which rank of its host a rank is.

    That of this process is ``LOCAL_RANK`` of the environment, if it is set; otherwise hosts have consecutive ranks.

    Args:
        world_size: how many ranks there are. Default: those of the process group; 1 without one.
        rank: which of them. Default: this process.

    Example:
        >>> get_local_rank(world_size=8, rank=5)
        5
    """
    local_rank = _number("LOCAL_RANK")
    if local_rank is not None and rank in (None, _own_rank()):
        return local_rank
    return _rank(rank) % get_local_size(world_size)


def get_group_rank(world_size: int | None = None, rank: int | None = None) -> int:
    """Return which host a rank is on.

    Args:
        world_size: how many ranks there are. Default: those of the process group; 1 without one.
        rank: which of them. Default: this process.

    Example:
        >>> get_group_rank(world_size=8, rank=5)
        0
    """
    return _rank(rank) // get_local_size(world_size)


def get_num_groups(world_size: int | None = None) -> int:
    """Return how many hosts there are.

    Args:
        world_size: how many ranks there are. Default: those of the process group; 1 without one.

    Example:
        >>> get_num_groups(world_size=8)
        1
    """
    return _world_size(world_size) // get_local_size(world_size)


def intra_and_cross_node_pg(
    device: torch.device | None = None, backend: str | None = None
) -> tuple[ProcessGroup | None, ProcessGroup | None]:
    """Make two process groups: the ranks of this host, and the ranks of the same number on all hosts.

    Every rank calls it, and each call makes new ones.

    Args:
        device: on ``meta`` nothing is exchanged: both are None.
        backend: what they exchange by. Default: that of all ranks.
    """
    if device is not None and device.type == "meta":
        return None, None
    world_size = dist.get_world_size()
    return _node_groups([list(range(world_size))], get_local_size(world_size), backend)


def intra_and_cross_node_pg_2D(  # noqa: N802
    env: ShardingEnv2D, device: torch.device | None = None
) -> tuple[ProcessGroup | None, ProcessGroup | None]:
    """Make two process groups within a sharding group: its ranks on this host, and those of the same number on all.

    Every rank calls it, and each call makes new ones.

    Args:
        env: the sharding groups; ``node_group_size`` says how many ranks of one are on a host.
        device: on ``meta`` nothing is exchanged: both are None.
    """
    if (device is not None and device.type == "meta") or env.device_mesh is None:
        return None, None
    step = env.node_group_size or get_local_size(env.world_size)
    return _node_groups(env.device_mesh.mesh.tolist(), step, None)


def _node_groups(
    groups: list[list[int]], step: int, backend: str | None
) -> tuple[ProcessGroup | None, ProcessGroup | None]:
    hosts = [group[i : i + step] for group in groups for i in range(0, len(group), step)]
    across = [group[i::step] for group in groups for i in range(step)]
    intra, _ = dist.new_subgroups_by_enumeration(hosts, backend=backend)
    cross, _ = dist.new_subgroups_by_enumeration(across, backend=backend)
    return intra, cross


def _world_size(world_size: int | None) -> int:
    if world_size is not None:
        return world_size
    return dist.get_world_size() if dist.is_initialized() else 1


def _rank(rank: int | None) -> int:
    return (_own_rank() or 0) if rank is None else rank


def _own_rank() -> int | None:
    return dist.get_rank() if dist.is_initialized() else _number("RANK")


def _number(variable: str) -> int | None:
    value = os.environ.get(variable)
    if value is None:
        return None
    if not value.isdecimal():
        raise ValueError(f"`{variable}` should be a number in the environment. Received {value!r}.")
    return int(value)
