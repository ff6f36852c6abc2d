"""Processes of a test: ports, groups, seeds."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
import torch.distributed as dist

P = ParamSpec("P")
R = TypeVar("R")


def get_free_port() -> int:
    """Return a port of this host that nobody listens on.

    Another process may take it before it is used; who can, lets the system choose with port 0.

    Raises:
        OSError: there is none.

    Example:
        >>> 0 < get_free_port() < 65536
        True
    """
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        return _free_port(family)
    except OSError:  # IPv6 may be built in and switched off
        return _free_port(socket.AF_INET)


def _free_port(family: socket.AddressFamily) -> int:
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind(("localhost", 0))
        port: int = listener.getsockname()[1]
        return port


def cuda_device_count() -> int:
    """Return how many GPUs there are.

    Example:
        >>> cuda_device_count() >= 0
        True
    """
    return torch.cuda.device_count()


def init_distributed_single_host(
    rank: int, world_size: int, backend: str, local_size: int | None = None
) -> dist.ProcessGroup:
    """Start the process group of this process, one of several on this host.

    Sets ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK`` and ``LOCAL_WORLD_SIZE``, and waits for the others at
    ``MASTER_ADDR`` and ``MASTER_PORT``, which have to be set.

    Args:
        rank: of this process.
        world_size: number of processes.
        backend: ``"gloo"`` or ``"nccl"``.
        local_size: number of processes of what the test takes for one host. Default: all of them.

    Returns:
        The group of all processes.

    Raises:
        ValueError: rank and sizes do not fit, or ``MASTER_ADDR`` or ``MASTER_PORT`` is not set.
    """
    host_size = world_size if local_size is None else local_size
    if not (0 <= rank < world_size and 0 < host_size <= world_size):
        raise ValueError(
            "`rank` should be in [0, world_size), and `local_size` in [1, world_size]. "
            f"Received rank {rank}, world_size {world_size} and local_size {host_size}."
        )
    os.environ["RANK"] = str(rank)
    os.environ["WORLD_SIZE"] = str(world_size)
    os.environ["LOCAL_RANK"] = str(rank % host_size)
    os.environ["LOCAL_WORLD_SIZE"] = str(host_size)
    dist.init_process_group(backend, rank=rank, world_size=world_size)
    group = dist.group.WORLD
    assert group is not None
    return group


def seed_and_log(wrapped_func: Callable[P, R]) -> Callable[P, R]:
    """Have a test run from another seed each time, which is printed first.

    Args:
        wrapped_func: the test. Seeded are ``random``, PyTorch, and NumPy's global generator where NumPy
            is installed.
    """

    @wraps(wrapped_func)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        seed = int(time.time() * 1000) % (1 << 32)
        print(f"Using random seed: {seed}")
        torch.manual_seed(seed)
        random.seed(seed)
        try:
            import numpy as np
        except ModuleNotFoundError:
            pass
        else:
            np.random.seed(seed)
        return wrapped_func(*args, **kwargs)

    return run
