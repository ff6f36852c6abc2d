"""Runs functions on several ranks, in processes that start from one that has imported everything."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

_processes = multiprocessing.get_context("forkserver")
# What a model on ranks, a checkpoint or a plan imports when it is first asked for, too; and what files of tests import,
# as a rank imports the one that its function is from.
_processes.set_forkserver_preload(
    [
        "torch",
        "torch._dynamo",
        "torch.distributed.checkpoint",
        "torch.distributed.checkpoint.state_dict",
        "torchrec.distributed",
        "torchrec.distributed.planner",
        "torchrec.inference",
        "torchrec.metrics.metric_module",
        "torchrec.modules.mc_modules",
        "torchrec.training.run",
        "hypothesis",
        "networkx",
        "pytest",
        "tests.distributed.ranks",
    ]
)


def run(
    function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 60
) -> list[Any]:
    """Call ``function(*args)`` on every rank of new processes, with a process group over gloo.

    Returns:
        what it returned, or the error that it raised, by rank.
    """
    with Workers() as workers:
        return workers.run(function, world_size, *args, timeout=timeout)


@dataclass
class _NotMet:
    """What a rank answers that has found no process group: nothing of what it was asked for has begun."""

    reason: str


class Workers:
    """Processes that are started when they are first asked for, and do one thing after another.

    Each call has a process group of its own. One that raises, or does not end in time, takes the processes with it,
    as others may wait for them: the next call has new ones.
    """

    def __init__(self) -> None:
        self._workers: list[tuple[Any, Connection]] = []
        self._folder = tempfile.TemporaryDirectory()
        self._calls = 0

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._end_well()
        finally:
            self.stop()
            self._folder.cleanup()

    def run(
        self, function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 60
    ) -> list[Any]:
        """Call ``function(*args)`` on every rank, with a process group over gloo.

        Returns:
            what it returned, or the error that it raised, by rank.
        """
        # On a busy machine gloo fails to connect now and then ("Connection closed by peer").
        for _ in range(3):
            answers = self._answers(function, world_size, args, timeout)
            if not any(isinstance(each, _NotMet) for each in answers):
                return answers
        raise ChildProcessError(f"Ranks should have met. Received {answers}.")

    def _answers(
        self, function: Callable[..., Any], world_size: int, args: tuple[Any, ...], timeout: float
    ) -> list[Any]:
        """Return what ranks answer, up to the first that has met no others."""
        while len(self._workers) < world_size:
            ours, theirs = _processes.Pipe()
            worker = _processes.Process(target=_serve, args=(theirs,), daemon=True)
            worker.start()
            theirs.close()
            self._workers.append((worker, ours))
        self._calls += 1
        store, end = f"{self._folder.name}/{self._calls}", time.monotonic() + timeout
        asked = self._workers[:world_size]
        for rank, (_, connection) in enumerate(asked):
            connection.send((store, rank, world_size, function, args))
        answers: list[Any] = []
        try:
            for rank, (_, connection) in enumerate(asked):
                answers.append(_receive(rank, connection, end, timeout))
                if isinstance(answers[-1], _NotMet):
                    break
        finally:
            if len(answers) < world_size or any(
                isinstance(each, Exception | _NotMet) for each in answers
            ):
                self.stop()
        return answers

    def _end_well(self) -> None:
        """Let the processes end by themselves, which they do: not by a signal, while Python ends, say."""
        for _, connection in self._workers:
            connection.close()
        for worker, _ in self._workers:
            worker.join(30)
        ends = [worker.exitcode for worker, _ in self._workers]
        assert not any(code != 0 for code in ends), f"Ranks should exit by 0, and do by {ends}."

    def stop(self) -> None:
        """End the processes."""
        for _, connection in self._workers:
            connection.close()  # a worker without work ends by itself
        for worker, _ in self._workers:
            worker.join(0.2)
            worker.kill()
            worker.join()
        self._workers = []


def _receive(rank: int, connection: Connection, end: float, timeout: float) -> Any:
    if not connection.poll(max(0.0, end - time.monotonic())):
        raise TimeoutError(f"Rank {rank} should have answered within {timeout} s.")
    try:
        return pickle.loads(connection.recv_bytes())
    except (EOFError, ConnectionError) as error:
        raise ChildProcessError(f"Rank {rank} should have answered. It ended.") from error


def _serve(connection: Connection) -> None:
    faulthandler.enable()
    torch.set_num_threads(1)
    # As tests have it: memory that nobody has written to shows.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    while True:
        try:
            store, rank, world_size, function, args = connection.recv()
        except (EOFError, ConnectionError):
            return
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size))
        try:
            dist.init_process_group(
                "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size
            )
        except RuntimeError as error:
            connection.send_bytes(pickle.dumps(_NotMet(str(error))))
            return
        try:
            # By value: what shares memory with a process that ends is gone.
            connection.send_bytes(pickle.dumps(function(*args)))
        except Exception as error:
            error.add_note(traceback.format_exc())
            connection.send_bytes(pickle.dumps(error))
            return  # with all connections, so that nobody waits for this rank
        if dist.is_initialized():
            dist.destroy_process_group()
