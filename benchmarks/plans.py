"""Planned against measured: the memory and the time that a step of twenty models was said to take, and took.

    python -m benchmarks.plans rates.json [--world-size 2] [--models 0 20] [--what memory time]

``rates.json`` is a file of ``torchrec plan calibrate``, of the same machine. Each model is planned with it and then
trained under the plan; one line each has what was planned and what was measured, and how far they lie apart.

Memory is the most that a rank has in a step beside batches and what a process has whatever its tables: weights, states
of optimizers, what a step exchanges, vectors and gradients, layers. What lies in memory that ranks share counts once, for
who has written it. The rank of which the plan is furthest off is the one that is printed.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from benchmarks.plan_models import Drawn, Scored
from torchrec import KeyedJaggedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.calibrate import usual_ms
from torchrec.distributed.planner.types import Calibration
from torchrec.distributed.sharding_plan import get_default_sharders
from torchrec.distributed.types import ShardingPlan

SECONDS = 0.25
_WARM_UP = 4  # steps
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h


def plan_of(drawn: Drawn, world_size: int, rates: Calibration) -> ShardingPlan:
    """Return the plan of a model."""
    constraints = {
        f"t{t}": ParameterConstraints(
            pooling_factors=[float(drawn.ids[t])], sharding_types=drawn.types
        )
        for t in range(drawn.tables)
    }
    topology = Topology(world_size, "cpu", rates=rates)
    planner = EmbeddingShardingPlanner(topology, drawn.batch, constraints=constraints)
    return planner.plan(drawn.model("meta"), get_default_sharders())


def shared_by_rank() -> list[int]:
    """Return the bytes of memory shared by ranks that this process has touched, by rank of who writes there.

    All ranks map the memory of all of them one behind the other, and the system gives each the next lower address.
    """
    found = []
    text = Path("/proc/self/smaps").read_text()
    for start, size in re.findall(r"^(\w+)-.*/memfd:rowwise-.*\n(?:.*\n)*?Rss: +(\d+) kB", text, re.M):
        found.append((int(start, 16), 1024 * int(size)))
    return [size for _, size in sorted(found, reverse=True)]


def resident(peak: bool = False) -> int:
    """Return the bytes of memory that this process has, or the most since `forget_peak`, shared memory left out."""
    lines = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines()
    )

    def of(name: str) -> int:
        return 1024 * int(lines[name].split()[0])

    return of("VmHWM" if peak else "VmRSS") - of("RssShmem")


def forget_peak() -> None:
    """Count the most memory from here on."""
    Path("/proc/self/clear_refs").write_text("5")


class Training:
    """A model that is trained under a plan.

    Args:
        drawn: the model.
        plan: of it.
        rank: this one.
    """

    def __init__(self, drawn: Drawn, plan: ShardingPlan, rank: int) -> None:
        scored = drawn.model("meta")
        self._model = DistributedModelParallel(scored, plan=plan)
        self._layers = None
        if scored.layers is not None:
            self._layers = drawn.layer_optimizer(scored.layers)
        self._batches = [drawn.features(1000 * rank + seed) for seed in range(3)]
        self._steps = 0

    def step(self) -> None:
        """Train on one batch."""
        batch = self._batches[self._steps % 3]
        self._steps += 1
        if self._layers is not None:
            self._layers.zero_grad()
        self._model(batch).backward()
        if self._layers is not None:
            self._layers.step()


def peak_of_steps(training: Training, steps: int = 6) -> int:
    """Return the most bytes that this rank has in a step."""
    for _ in range(_WARM_UP):
        training.step()
    forget_peak()
    for _ in range(steps):
        training.step()
    return resident(peak=True)


def own_shared() -> int:
    """Return the bytes that this rank has written into shared memory."""
    return shared_by_rank()[dist.get_rank()] if dist.get_world_size() > 1 else 0


def peaks(drawn: Drawn, plan: ShardingPlan, small_plan: ShardingPlan, rank: int) -> list[int]:
    """Return the bytes that each rank has most in a step, beside batches and what a process has whatever its tables."""
    # What is freed goes back at once: pages that an allocator keeps are not of the plan.
    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 16)
    small = Training(Drawn(drawn.number, most_rows=16, batch=16), small_plan, rank)
    peak_of_steps(small)
    del small
    gc.collect()
    batches = resident()
    mine = [drawn.features(1000 * rank + seed) for seed in range(3)]
    batches = resident() - batches
    del mine
    gc.collect()
    before = resident() + own_shared() + batches
    peak = peak_of_steps(Training(drawn, plan, rank))
    used = torch.tensor([peak + own_shared() - before])
    of_ranks = used.new_empty(dist.get_world_size())
    dist.all_gather_into_tensor(of_ranks, used)
    return [int(each) for each in of_ranks]
