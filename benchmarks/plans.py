"""Planned against measured: the memory and the time that a step of twenty models was said to take, and took.

    python -m benchmarks.plans rates.json [--world-size 2] [--models 0 20] [--what memory time processor]
        [--passes 3]

``rates.json`` is a file of ``torchrec plan calibrate``, of the same machine. Each model is planned with it and then
trained under the plan; one line each has what was planned and what was measured, and how far they lie apart.

Memory is the most that a rank has in a step beside batches and what a process has whatever its tables: weights,
states of optimizers, what a step exchanges, vectors and gradients, layers. What lies in memory that ranks share counts
once, for who has written it. The rank of which the plan is furthest off is the one that is printed. Time is that of the
slowest rank; ``processor`` is the time that it computes, for rates of ``calibrate(processor_time=True)``. Some machines
are now and then slower for a minute: with several passes, the quickest of them counts.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import start_processes

from benchmarks.plan_models import Drawn
from torchrec import KeyedJaggedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.calibrate import usual_ms
from torchrec.distributed.planner.dense import DensePart, measure_dense
from torchrec.distributed.planner.storage_reservations import HeuristicalStorageReservation
from torchrec.distributed.planner.types import Calibration
from torchrec.distributed.sharding_plan import (
    get_default_sharders,
    plan_from_json,
    plan_to_json,
)
from torchrec.distributed.types import ShardingPlan
from torchrec.heap import expect_tensors

SECONDS = 0.25
ROUNDS = 3  # of which the quickest counts, as where rates are measured: others may run something
# What passes, and what the ranks compute, as on a machine on which others run something.
CLOCKS = {"time": time.perf_counter, "processor": time.process_time}
# Steps, after which messages have all the memory that they ever need: each takes another place once it finds its own
# not read yet, and has it from then on. Memory that 1024 exchanges have not needed goes back.
_WARM_UP = 200
_GIVES_BACK = {-3: 1 << 16, -1: 1 << 17}  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h: bytes


def plan_of(
    drawn: Drawn, world_size: int, rates: Calibration, dense: DensePart | None
) -> ShardingPlan:
    """Return the plan of a model."""
    constraints = {
        f"t{t}": ParameterConstraints(
            pooling_factors=[float(drawn.ids[t])], sharding_types=drawn.types
        )
        for t in range(drawn.tables)
    }
    topology = Topology(world_size, "cpu", rates=rates)
    planner = EmbeddingShardingPlanner(
        topology,
        drawn.batch,
        constraints=constraints,
        storage_reservation=HeuristicalStorageReservation(0.15, dense_tensor_estimate=dense),
    )
    return planner.plan(drawn.model("meta"), get_default_sharders())


def own_shared() -> int:
    """Return the bytes that this rank has written into memory that ranks share: exchanges, sums of gradients.

    For each of these all ranks map the memory of all of them one behind the other, and the system gives each the next
    lower address.
    """
    found = []
    text = Path("/proc/self/smaps").read_text()
    for start, size in re.findall(
        r"^(\w+)-.*/memfd:rowwise-.*\n(?:.*\n)*?Rss: +(\d+) kB", text, re.M
    ):
        found.append((int(start, 16), 1024 * int(size)))
    by_rank = [size for _, size in sorted(found, reverse=True)]
    return sum(by_rank[dist.get_rank() :: dist.get_world_size()])


def resident(peak: bool = False) -> int:
    """Return the bytes of memory that this process has, or the most since `forget_peak`, shared memory left out."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())

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
        batches: on which it is trained in turn.
    """

    def __init__(
        self, drawn: Drawn, plan: ShardingPlan, batches: Sequence[KeyedJaggedTensor]
    ) -> None:
        scored = drawn.model("meta")
        self._model = DistributedModelParallel(scored, plan=plan)
        self._layers = None
        if scored.layers is not None:
            self._layers = drawn.layer_optimizer(scored.layers)
        self._batches = batches
        self._steps = 0

    def step(self) -> None:
        """Train on one batch."""
        batch = self._batches[self._steps % len(self._batches)]
        self._steps += 1
        if self._layers is not None:
            self._layers.zero_grad()
        self._model(batch).backward()
        if self._layers is not None:
            self._layers.step()


def batches_of(drawn: Drawn, rank: int) -> list[KeyedJaggedTensor]:
    """Return batches of a rank."""
    return [drawn.features(1000 * rank + seed) for seed in range(3)]


def peak_of_steps(training: Training, steps: int = 6) -> int:
    """Return the most bytes that this rank has in a step."""
    for _ in range(_WARM_UP):
        training.step()
    forget_peak()
    for _ in range(steps):
        training.step()
    return resident(peak=True)


def peaks(drawn: Drawn, plan: ShardingPlan, small_plan: ShardingPlan, rank: int) -> list[int]:
    """Return the bytes that each rank has most in a step, beside batches and what a process has whatever its tables."""
    # What is freed goes back at once: pages that an allocator keeps are not of the plan.
    expect_tensors()  # which kernels ask for, once: what is said here comes later
    for option, num_bytes in _GIVES_BACK.items():
        ctypes.CDLL(None).mallopt(option, num_bytes)
    small = Drawn(drawn.number, most_rows=16, batch=16)
    peak_of_steps(Training(small, small_plan, batches_of(small, rank)))
    batches = batches_of(drawn, rank)
    gc.collect()
    before = resident() + own_shared()
    peak = peak_of_steps(Training(drawn, plan, batches))
    used = torch.tensor([peak + own_shared() - before])
    of_ranks = used.new_empty(dist.get_world_size())
    dist.all_gather(list(of_ranks.split(1)), used)
    return [int(each) for each in of_ranks]


def layers_of(drawn: Drawn, processor_time: bool) -> DensePart | None:
    """Measure the layers of a model, if it has some."""
    if not drawn.has_layers:
        return None
    batch = drawn.features(0)

    def training(model: nn.Module) -> Callable[[], None]:
        optimizer = drawn.layer_optimizer(model.get_submodule("layers"))

        def step() -> None:
            optimizer.zero_grad()
            model(batch).backward()
            optimizer.step()

        return step

    return measure_dense(drawn.model("meta"), training, processor_time=processor_time)


def _times(training: Training, seconds: float, clock: Callable[[], float]) -> list[float]:
    """Return the seconds of each step, as many on each rank as the first one says."""
    times: list[float] = []
    steps = 5
    for step in range(2000):
        if step == 5:
            took = torch.tensor([min(times[3:])])
            dist.broadcast(took, 0)
            steps = max(15, int(seconds / float(took)))
        if step >= steps:
            break
        before = clock()
        training.step()
        times.append(clock() - before)
    return times[5:]


def _rank(
    rank: int, world_size: int, folder: str, number: int, texts: list[str], measures: str
) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/{measures}{number}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    drawn = Drawn(number)
    plan, small_plan = map(plan_from_json, texts)
    found: list[float]
    if measures == "memory":
        found = [float(each) for each in peaks(drawn, plan, small_plan, rank)]
    else:
        clock = CLOCKS[measures]
        model = Training(drawn, plan, batches_of(drawn, rank))
        took = min(usual_ms(_times(model, SECONDS, clock)) for _ in range(ROUNDS))
        of_ranks = torch.zeros(world_size, dtype=torch.float64)
        dist.all_gather(list(of_ranks.split(1)), torch.tensor([took], dtype=torch.float64))
        found = of_ranks.tolist()
    if rank == 0:
        (Path(folder) / measures).write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def _plan(
    _: int, world_size: int, folder: str, number: int, rates: str, processor_time: bool
) -> None:
    """Write the plan of a model, the plan of the same model with small tables, and what the first one says."""
    torch.set_num_threads(1)
    drawn, calibration = Drawn(number), Calibration.from_json(rates)
    dense = layers_of(drawn, processor_time)
    plan = plan_of(drawn, world_size, calibration, dense)
    small = plan_of(Drawn(number, most_rows=16, batch=16), world_size, calibration, dense)
    assert plan.report is not None
    found = Planned(
        texts=[plan_to_json(plan), plan_to_json(small)],
        num_bytes=[rank.num_bytes + rank.dense_bytes for rank in plan.report.ranks],
        step_ms=plan.report.step_ms,
        types=sorted({table.sharding_type for table in plan.report.tables}),
    )
    (Path(folder) / "plan").write_text(json.dumps(asdict(found)))


@dataclass(frozen=True)
class Planned:
    """What is planned for a model.

    Attributes:
        texts: its plan, and that of the same model with small tables.
        num_bytes: of each rank.
        step_ms: of a step.
        types: under which its tables are.
    """

    texts: list[str]
    num_bytes: list[int]
    step_ms: float
    types: list[str]


def planned(number: int, world_size: int, rates: str, what: Sequence[str], folder: str) -> Planned:
    """Plan a model, in a process of its own, as planning leaves memory behind."""
    arguments = (world_size, folder, number, rates, "processor" in what)
    start_processes(_plan, arguments, 1, start_method="fork")
    return Planned(**json.loads((Path(folder) / "plan").read_text()))


def measured(number: int, world_size: int, plan: Planned, name: str, folder: str) -> list[float]:
    """Return what each rank has, or takes, under a plan, in processes that are forked, at little cost."""
    start_processes(
        _rank, (world_size, folder, number, plan.texts, name), world_size, start_method="fork"
    )
    (Path(folder) / f"{name}{number}").unlink(missing_ok=True)  # where they met: they may again
    found: list[float] = json.loads((Path(folder) / name).read_text())
    return found


def cells_of(
    number: int, world_size: int, plan: Planned, found: Mapping[str, Sequence[Sequence[float]]]
) -> list[str]:
    """Return what was planned for a model, what was measured, and how far these lie apart.

    Args:
        number: of the model.
        world_size: how many ranks.
        plan: of it.
        found: what was measured -> of each rank, of each pass.
    """
    drawn = Drawn(number)
    cells = [str(number), str(world_size), drawn.words, str(drawn.batch), ", ".join(plan.types)]
    if "memory" in found:
        most = found["memory"][0]
        off = [a / b - 1 for a, b in zip(plan.num_bytes, most, strict=True)]
        worst = max(range(world_size), key=lambda rank: abs(off[rank]))
        cells += [f"{each[worst] / 2**20:.1f}" for each in (plan.num_bytes, most)]
        cells.append(f"{off[worst]:+.0%}")
    for name in CLOCKS:
        if name in found:
            took = min(map(max, found[name]))
            cells += [f"{plan.step_ms:.2f}", f"{took:.2f}", f"{plan.step_ms / took - 1:+.0%}"]
    return cells


def main() -> None:
    """Print a table of models."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rates", type=Path)
    parser.add_argument("--world-size", type=int, default=2)
    parser.add_argument("--models", type=int, nargs=2, default=(0, 20))
    parser.add_argument(
        "--what", nargs="+", choices=("memory", *CLOCKS), default=["memory", "time"]
    )
    parser.add_argument(
        "--passes", type=int, default=1, help="over all models; of times, the quickest"
    )
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    titles = ["model", "ranks", "tables", "samples", "types"]
    if "memory" in options.what:
        titles += ["planned MiB", "measured MiB", "off by"]
    titles += ["planned ms", "measured ms", "off by"] * sum(name in CLOCKS for name in options.what)
    print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles), flush=True)
    rates, world_size = options.rates.read_text(), options.world_size
    plans: dict[int, Planned] = {}
    found: dict[int, dict[str, list[list[float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn, number in product(range(options.passes), range(*options.models)):
            if turn == 0:
                plans[number] = planned(number, world_size, rates, options.what, folder)
                found[number] = {name: [] for name in options.what}
            plan, of_model = plans[number], found[number]
            for name in options.what if turn == 0 else set(options.what) & set(CLOCKS):
                of_model[name].append(measured(number, world_size, plan, name, folder))
            if turn == options.passes - 1:
                print(f"| {' | '.join(cells_of(number, world_size, plan, of_model))} |", flush=True)


if __name__ == "__main__":
    main()
