"""Planned against measured: what a step of twenty models takes, and what it was said to take.

    python -m benchmarks.plans rates.json [--world-size 2] [--models 0 20]

``rates.json`` is a file of ``torchrec plan calibrate``, of the same machine. Each model is planned with it and then
trained under the plan; one line each has both times and how far they lie apart, and the same of the memory of the
fullest rank: weights, states, what a step exchanges, vectors and their gradients.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import random
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.calibrate import usual_ms
from torchrec.distributed.planner.types import Calibration
from torchrec.distributed.sharding_plan import get_default_sharders
from torchrec.distributed.types import ShardingPlan
from torchrec.types import OptimizerType

SECONDS = 0.25
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h


class Drawn:
    """One of the models: tables, ids a bag, samples, and under which types it may be placed.

    Args:
        number: which; each is another.
        most_rows: of a table. Default: as drawn.
        batch: samples. Default: as drawn.
    """

    def __init__(self, number: int, most_rows: int | None = None, batch: int | None = None) -> None:
        draw = random.Random(number)
        self.number = number
        self.tables = draw.choice([4, 8, 16, 26])
        self.columns = [draw.choice([8, 16, 32, 64, 128]) for _ in range(self.tables)]
        self.rows = [int(10 ** draw.uniform(2, 5.3)) for _ in range(self.tables)]
        self.ids = [draw.choice([1, 1, 1, 5, 20]) for _ in range(self.tables)]
        self.batch = batch or draw.choice([256, 512, 1024, 2048])
        if most_rows is not None:
            self.rows = [min(rows, most_rows) for rows in self.rows]
        self.types = [None, ["table_wise"], ["row_wise"], ["column_wise"]][number % 4]

    def model(self, device: str) -> torch.nn.ModuleDict:
        """Return the model, a collection."""
        configs = [
            EmbeddingBagConfig(
                self.rows[t],
                self.columns[t],
                f"t{t}",
                feature_names=[f"f{t}"],
                optimizer=OptimizerType.ROWWISE_ADAGRAD,
                lr=0.01,
            )
            for t in range(self.tables)
        ]
        return torch.nn.ModuleDict(
            {"tables": EmbeddingBagCollection(configs, device=torch.device(device))}
        )

    def features(self, seed: int) -> KeyedJaggedTensor:
        """Return a batch."""
        generator = torch.Generator().manual_seed(seed)
        values = [
            torch.randint(self.rows[t], (self.batch * self.ids[t],), generator=generator)
            for t in range(self.tables)
        ]
        lengths = [torch.full((self.batch,), ids) for ids in self.ids]
        keys = [f"f{t}" for t in range(self.tables)]
        return KeyedJaggedTensor(keys, torch.cat(values), lengths=torch.cat(lengths))

    def plan(self, world_size: int, rates: Calibration) -> ShardingPlan:
        """Return the plan."""
        constraints = {
            f"t{t}": ParameterConstraints(
                pooling_factors=[float(self.ids[t])], sharding_types=self.types
            )
            for t in range(self.tables)
        }
        topology = Topology(world_size, "cpu", rates=rates)
        planner = EmbeddingShardingPlanner(topology, self.batch, constraints=constraints)
        return planner.plan(self.model("meta"), get_default_sharders())


def resident(peak: bool = False) -> int:
    """Return the bytes of memory that this process has, or the most since `forget_peak`."""
    name = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def forget_peak() -> None:
    """Count the most memory from here on."""
    Path("/proc/self/clear_refs").write_text("5")


def _times(
    drawn: Drawn, plan: ShardingPlan, batches: list[KeyedJaggedTensor], seconds: float
) -> list[float]:
    """Return the seconds of each step."""
    sharded = DistributedModelParallel(drawn.model("meta"), plan=plan)
    tables = sharded.module.get_submodule("tables")
    gc.collect()
    forget_peak()  # not of making tables, but of steps
    times: list[float] = []
    steps = 5
    for step in range(1000):
        if step == 3:
            took = torch.tensor([times[-1]])
            dist.broadcast(took, 0)
            steps = max(8, int(seconds / float(took)))
        if step >= steps:
            break
        before = time.perf_counter()
        values = tables(batches[step % 3]).values()
        values.sum().backward()
        del values
        times.append(time.perf_counter() - before)
    return times[3:]


def _peaks(drawn: Drawn, plan: ShardingPlan, calibration: Calibration, rank: int) -> list[int]:
    """Return the bytes that each rank has most in a step, beside batches and what a process has whatever its tables."""
    # What is freed goes back at once: pages that an allocator keeps are not of the plan.
    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 16)
    small = Drawn(drawn.number, most_rows=16, batch=16)
    features = [small.features(seed) for seed in range(3)]
    _times(small, small.plan(dist.get_world_size(), calibration), features, 0.0)
    batches = [drawn.features(1000 * rank + seed) for seed in range(3)]
    gc.collect()
    before = resident()
    _times(drawn, plan, batches, 0.0)
    used = torch.tensor([resident(peak=True) - before])
    of_ranks = used.new_empty(dist.get_world_size())
    dist.all_gather_into_tensor(of_ranks, used)
    return [int(each) for each in of_ranks]


def _rank(
    rank: int, world_size: int, folder: str, number: int, rates: str, in_memory: bool
) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store{number}{in_memory}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    calibration, drawn = Calibration.from_json(rates), Drawn(number)
    plan, peaks = drawn.plan(world_size, calibration), Path(folder) / "peaks"
    report = plan.report
    assert report is not None
    if in_memory:
        found = _peaks(drawn, plan, calibration, rank)
        if rank == 0:
            peaks.write_text(" ".join(map(str, found)))
    else:
        batches = [drawn.features(1000 * rank + seed) for seed in range(3)]
        took = usual_ms(_times(drawn, plan, batches, SECONDS))
        fullest = max(report.ranks, key=lambda each: each.num_bytes)
        planned = fullest.num_bytes / 2**20
        measured = int(peaks.read_text().split()[fullest.rank]) / 2**20
        kinds = sorted({table.sharding_type for table in report.tables})
        if rank == 0:
            print(
                f"| {number} | {world_size} | {drawn.tables} | {drawn.batch} | {', '.join(kinds)} "
                f"| {report.step_ms:.2f} | {took:.2f} | {report.step_ms / took - 1:+.0%} "
                f"| {planned:.1f} | {measured:.1f} | {planned / measured - 1:+.0%} |",
                flush=True,
            )
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Print a table of models."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rates", type=Path)
    parser.add_argument("--world-size", type=int, default=2)
    parser.add_argument("--models", type=int, nargs=2, default=(0, 20))
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print("| model | ranks | tables | samples | types | planned ms | measured ms | off by ", end="")
    print("| planned MB | measured MB | off by |")
    print("|" + "---|" * 11, flush=True)
    rates = options.rates.read_text()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(*options.models):
            for in_memory in (True, False):
                # Forked, so that each has processes of its own at little cost.
                arguments = (options.world_size, folder, number, rates, in_memory)
                start_processes(_rank, arguments, options.world_size, start_method="fork")


if __name__ == "__main__":
    main()
