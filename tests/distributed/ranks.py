"""Runs a function on several ranks, in processes that start from one that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["torch", "torchrec.distributed", "tests.distributed.ranks"])


def run(
    function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 60
) -> list[Any]:
    """Call ``function(*args)`` on every rank, with a process group over gloo.

    Returns:
        what it returned, or the error that it raised, by rank.
    """
    with tempfile.TemporaryDirectory() as folder:
        workers = []
        for rank in range(world_size):
            ours, theirs = _processes.Pipe(duplex=False)
            target = (theirs, f"{folder}/store", rank, world_size, function, args)
            worker = _processes.Process(target=_work, args=target, daemon=True)
            worker.start()
            theirs.close()
            workers.append((worker, ours))
        try:
            return [_receive(rank, ours, timeout) for rank, (_, ours) in enumerate(workers)]
        finally:
            for worker, _ in workers:
                worker.join(5)
                worker.kill()


def _receive(rank: int, connection: Connection, timeout: float) -> Any:
    if not connection.poll(timeout):
        raise TimeoutError(f"Rank {rank} should have answered within {timeout} s.")
    return pickle.loads(connection.recv_bytes())


def _work(
    connection: Connection,
    store: str,
    rank: int,
    world_size: int,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size))
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    try:
        # By value: what shares memory with a process that ends is gone.
        connection.send_bytes(pickle.dumps(function(*args)))
    except Exception as error:
        connection.send_bytes(pickle.dumps(error))
    finally:
        dist.destroy_process_group()
