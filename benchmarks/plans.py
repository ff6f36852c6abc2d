"""Planned against measured: what a step of twenty models takes, and what it was said to take.

    python -m benchmarks.plans rates.json [--world-size 2] [--models 0 20]

``rates.json`` is a file of ``torchrec plan calibrate``, of the same machine. Each model is planned with it and then
trained under the plan; one line each has both times, and how far they lie apart. Weights, states and what a step
exchanges are compared with what the plan says that a rank has in memory.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.types import Calibration
from torchrec.distributed.sharding_plan import get_default_sharders
from torchrec.types import OptimizerType

SECONDS = 0.4


class Drawn:
    """One of the models: tables, ids a bag, samples, and under which types it may be placed.

    Args:
        number: which; each is another.
    """

    def __init__(self, number: int) -> None:
        draw = random.Random(number)
        self.number = number
        self.tables = draw.choice([4, 8, 16, 26])
        self.columns = [draw.choice([8, 16, 32, 64, 128]) for _ in range(self.tables)]
        self.rows = [int(10 ** draw.uniform(2, 5.3)) for _ in range(self.tables)]
        self.ids = [draw.choice([1, 1, 1, 5, 20]) for _ in range(self.tables)]
        self.batch = draw.choice([256, 512, 1024, 2048])
        self.types = [None, ["table_wise"], ["row_wise"], None][number % 4]

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

    def planner(self, world_size: int, rates: Calibration) -> EmbeddingShardingPlanner:
        """Return who plans it."""
        constraints = {
            f"t{t}": ParameterConstraints(
                pooling_factors=[float(self.ids[t])], sharding_types=self.types
            )
            for t in range(self.tables)
        }
        topology = Topology(world_size, "cpu", rates=rates)
        return EmbeddingShardingPlanner(topology, self.batch, constraints=constraints)


def _rank(rank: int, world_size: int, folder: str, first: int, last: int, rates: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    calibration = Calibration.from_json(rates)
    sharders = get_default_sharders()
    for number in range(first, last):
        drawn = Drawn(number)
        model = drawn.model("meta")
        plan = drawn.planner(world_size, calibration).plan(model, sharders)
        sharded = DistributedModelParallel(model, plan=plan, sharders=sharders)
        tables = sharded.module.get_submodule("tables")
        batches = [drawn.features(1000 * rank + seed) for seed in range(3)]
        times = []
        steps = 5
        for step in range(1000):
            if step == 3:
                took = torch.tensor([times[-1]])
                dist.broadcast(took, 0)
                steps = max(8, int(SECONDS / float(took)))
            if step >= steps:
                break
            before = time.perf_counter()
            tables(batches[step % 3]).values().sum().backward()
            times.append(time.perf_counter() - before)
        if rank == 0 and plan.report is not None:
            measured, planned = statistics.median(times[3:]) * 1e3, plan.report.step_ms
            kinds = sorted({table.sharding_type for table in plan.report.tables})
            print(
                f"| {number} | {world_size} | {drawn.tables} | {drawn.batch} | {', '.join(kinds)} "
                f"| {planned:.2f} | {measured:.2f} | {planned / measured - 1:+.0%} |",
                flush=True,
            )
        del sharded, tables
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Print a table of models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rates", type=Path)
    parser.add_argument("--world-size", type=int, default=2)
    parser.add_argument("--models", type=int, nargs=2, default=(0, 20))
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print("| model | ranks | tables | samples | types | planned ms | measured ms | off by |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        arguments = (options.world_size, folder, *options.models, options.rates.read_text())
        spawn(_rank, arguments, nprocs=options.world_size)


if __name__ == "__main__":
    main()
