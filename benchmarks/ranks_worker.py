"""One rank of what `benchmarks.ranks` measures, with whichever ``torchrec`` this Python has, by its public API alone.

``python -m benchmarks.ranks_worker WORK RANK WORLD STORE`` builds what the JSON says, prints "ready", and for each line
of input, a number of steps, takes them and prints a line of JSON: milliseconds a step by the clock and of the
processor, messages and bytes that its process group was asked to send, page faults. All ranks have to be asked.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from benchmarks import models
from benchmarks.work import Work, features

WARM = 3


class Pooled(torch.nn.Module):
    """A collection, of which only the numbers are wanted."""

    def __init__(self, collection: torch.nn.Module) -> None:
        super().__init__()
        self.collection = collection

    def forward(self, data: Any) -> torch.Tensor:
        return self.collection(data).values()


def sharding_of(kind: str, world: int) -> dict[str, Any]:
    """Return how each table of `benchmarks.models` is sharded."""
    from torchrec.distributed import sharding_plan

    tables = [config.name for config in models.configs()]
    if kind == "table_wise":
        return {name: sharding_plan.table_wise(rank=t % world) for t, name in enumerate(tables)}
    if kind == "row_wise":
        return {name: sharding_plan.row_wise() for name in tables}
    return {name: sharding_plan.column_wise(ranks=list(range(world))) for name in tables}


def sharded(model: torch.nn.Module, path: str, kind: str, world: int) -> torch.nn.Module:
    """Shard the collection at a path of a model."""
    from torchrec.distributed.model_parallel import DistributedModelParallel, get_default_sharders
    from torchrec.distributed.sharding_plan import construct_module_sharding_plan
    from torchrec.distributed.types import ShardingPlan

    collection, sharders = model.get_submodule(path), get_default_sharders()
    sharder = next(each for each in sharders if each.module_type is type(collection))
    tables = construct_module_sharding_plan(
        collection,
        sharding_of(kind, world),
        sharder=sharder,
        local_size=world,
        world_size=world,
        device_type="cpu",
    )
    return DistributedModelParallel(
        model, device=torch.device("cpu"), plan=ShardingPlan({path: tables}), sharders=sharders
    )


def batches(batch: int, length: int, rank: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(rank)
    lengths = torch.full((models.F * batch,), length)
    shape = (models.F * batch * length,)
    return [(torch.randint(models.E, shape, generator=generator), lengths) for _ in range(4)]


def collection(kind: str, batch: int, length: int, rank: int, world: int) -> Work:
    model: torch.nn.Module = Pooled(models.optimizer_in_backward())
    if kind != "unsharded":
        model = sharded(model, "collection", kind, world)
    gradient = torch.randn(batch, models.F * models.D)

    def step(data: tuple[torch.Tensor, torch.Tensor]) -> None:
        model(features(data, batch)).backward(gradient)

    return Work(itertools.cycle(batches(batch, length, rank)), step)


def dlrm(kind: str, batch: int, length: int, rank: int, world: int) -> Work:
    from torchrec.datasets.utils import Batch
    from torchrec.models.dlrm import DLRMTrain

    made = DLRMTrain(models.make_model("dlrm", models.optimizer_in_backward()))
    model: torch.nn.Module = made
    if kind != "unsharded":
        model = sharded(made, "model.sparse_arch.embedding_bag_collection", kind, world)
    dense = [p for n, p in model.named_parameters() if "embedding_bags" not in n]
    optimizer = torch.optim.SGD(dense, lr=0.01)
    generator = torch.Generator().manual_seed(rank)
    inputs = torch.randn(batch, models.DENSE, generator=generator)
    labels = torch.randint(2, (batch,), generator=generator)

    def step(data: tuple[torch.Tensor, torch.Tensor]) -> None:
        loss, _ = model(Batch(inputs, features(data, batch), labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return Work(itertools.cycle(batches(batch, length, rank)), step)


def exchange(kind: str, batch: int, length: int, rank: int, world: int) -> Work:
    """The vectors of a step, to the other ranks and back, by ``all_to_all_single``: ``(W - 1) / W`` of them move."""
    sent = torch.randn(world * batch * models.F * models.D // world)
    received = torch.empty_like(sent)

    def step(_: object) -> None:
        dist.all_to_all_single(received, sent)
        dist.all_to_all_single(sent, received)

    return Work(itertools.repeat(None), step)


def halved(kind: str, batch: int, length: int, rank: int, world: int) -> Work:
    """A training step of this rank's share of the tables for the batches of all ranks, nothing exchanged."""
    tables, bags = models.F // world, batch * world
    made = models.optimizer_in_backward(tables)
    gradient = torch.randn(bags, tables * models.D)
    generator = torch.Generator().manual_seed(rank)
    lengths = torch.full((tables * bags,), length)
    ids = [
        torch.randint(models.E, (tables * bags * length,), generator=generator) for _ in range(4)
    ]

    def step(values: torch.Tensor) -> None:
        made(features((values, lengths), bags)).values().backward(gradient)

    return Work(itertools.cycle(ids), step)


MAKERS: tuple[Callable[..., Work], ...] = (collection, dlrm, exchange, halved)


class Counter:
    """Counts what is sent: calls by the profiler of PyTorch, bytes by the loopback device of Linux."""

    def __init__(self) -> None:
        self._profiler = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True
        )

    def counted(self, work: Work, steps: int) -> dict[str, float]:
        """Return calls of the process group a step, and bytes that all ranks have sent in it."""
        dist.barrier()
        before = loopback()
        dist.barrier()
        for _ in range(steps):
            work.step(next(work.inputs))
        dist.barrier()
        sent = loopback() - before
        dist.barrier()
        with self._profiler as profiler:
            for _ in range(steps):
                work.step(next(work.inputs))
        calls = sum(e.count for e in profiler.key_averages() if e.key.startswith("c10d::"))
        return {"calls": calls / steps, "bytes": sent / steps}


def loopback() -> int:
    """Return how many bytes processes of this machine have sent one another."""
    with contextlib.suppress(OSError), open("/proc/net/dev") as lines:
        for line in lines:
            name, _, numbers = line.partition(":")
            if name.strip() == "lo":
                return int(numbers.split()[8])
    return 0


def measure(work: Work, steps: int) -> dict[str, float]:
    for _ in range(WARM):
        work.step(next(work.inputs))
    dist.barrier()
    walls, faults = [], -resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    processor = -time.process_time()
    for _ in range(steps):
        given = next(work.inputs)
        start = time.perf_counter()
        work.step(given)
        walls.append(time.perf_counter() - start)
    processor += time.process_time()
    faults += resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    dist.barrier()
    return {
        "wall": statistics.median(walls) * 1e3,
        "mean": statistics.fmean(walls) * 1e3,
        "least": min(walls) * 1e3,
        "processor": processor * 1e3 / steps,
        "faults": faults / steps,
    }


def main() -> None:
    work, rank, world, store = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    name, kind, batch, length = json.loads(work)
    made = {maker.__name__: maker for maker in MAKERS}[name](kind, batch, length, rank, world)
    print("ready", flush=True)
    for line in sys.stdin:
        steps = int(line)
        found = Counter().counted(made, -steps) if steps < 0 else measure(made, steps)
        print(json.dumps(found), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
