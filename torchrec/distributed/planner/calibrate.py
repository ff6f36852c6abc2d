"""Measures how long look-ups, updates and exchanges take on this machine, for plans that are true of it.

A collection of some tables is trained on one process, then under `DistributedModelParallel` on several, one thread
each, as `torchrun` starts them. What the exchanges take is what such a step takes beside its look-ups, so that it has
in it what packing, waiting and sharing the processor cost.
"""

from __future__ import annotations

import itertools
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from torchrec.distributed._plan import EmbeddingModuleShardingPlan, ShardingPlan
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner._calibration import Calibration, ExchangeRate, LookupRate
from torchrec.distributed.sharding_plan import (
    construct_module_sharding_plan,
    get_default_sharders,
    row_wise,
    table_wise,
)
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.types import OptimizerType

__all__ = ["Calibration", "calibrate"]

_FEATURES, _BATCH = 8, 1024
_COLUMNS, _BAGS, _ROWS = (8, 32, 128), (1, 20), (1_000, 100_000)
# Of the collections that several ranks train.
_DIM, _HEIGHT, _SMALL, _LARGE = 64, 100_000, 128, 2048


def calibrate(
    world_sizes: Sequence[int] = (2, 4), seconds: float = 0.3, threads: int = 1
) -> Calibration:
    """Measure this machine, in about a minute; nothing else should run on it.

    Args:
        world_sizes: how many processes exchange, each in turn; none for look-ups alone. Default 2 and 4.
        seconds: how long each thing is done. Default 0.3.
        threads: of each process. Default 1, as ``torchrun`` gives them.

    Returns:
        the rates, which a `Topology` takes as ``rates``, and which `Calibration.to_json` writes.

    Raises:
        ValueError: if a number of processes is below 2.
        RuntimeError: if a process fails.
    """
    if any(world_size < 2 for world_size in world_sizes):
        raise ValueError(
            f"`world_sizes` should be numbers of processes that exchange, 2 or more. Received {list(world_sizes)}."
        )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        lookups = tuple(
            _lookup_rate(columns, bag, rows, seconds)
            for columns, bag, rows in itertools.product(_COLUMNS, _BAGS, _ROWS)
        )
        tiny = [_step_ms(_collection(n, 8, 16), _batch(n, 1, 1, 16), seconds) for n in (1, 33)]
        part = max((tiny[1] - tiny[0]) / 32, 0.0)
        small, large = (
            _step_ms(
                _collection(_FEATURES, _DIM, _HEIGHT), _batch(_FEATURES, batch, 1, _HEIGHT), seconds
            )
            for batch in (_SMALL, _LARGE)
        )
        dense = _dense_ns(seconds)
    finally:
        torch.set_num_threads(before)
    alone = _Alone(small, large)
    exchanges = tuple(_exchange_rate(size, seconds, threads, alone) for size in world_sizes)
    return Calibration(
        machine=f"{platform.machine()}, {os.cpu_count()} processors, torch {torch.__version__}",
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        part_ms=part / 2,  # once forward, once backward
        step_ms_alone=tiny[0],
        dense_ns_a_byte=dense,
        lookups=lookups,
        exchanges=exchanges,
    )


@dataclass(frozen=True)
class _Alone:
    """Milliseconds of a step on one process, of few samples and of many."""

    small: float
    large: float


def _collection(
    tables: int, columns: int, rows: int, device: str = "cpu"
) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(
        [
            EmbeddingBagConfig(
                rows,
                columns,
                f"t{t}",
                feature_names=[f"f{t}"],
                optimizer=OptimizerType.ROWWISE_ADAGRAD,
                lr=0.01,
            )
            for t in range(tables)
        ],
        device=torch.device(device),
    )


def _batch(features: int, batch: int, bag: int, rows: int, seed: int = 0) -> KeyedJaggedTensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(rows, (features * batch * bag,), generator=generator)
    lengths = torch.full((features * batch,), bag)
    return KeyedJaggedTensor([f"f{f}" for f in range(features)], values, lengths=lengths)


def _median_ms(step: Callable[[], None], seconds: float, most: int = 400) -> float:
    """Return how long a step takes; it was taken twice before."""
    step()
    step()
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - start < seconds and len(times) < most):
        before = time.perf_counter()
        step()
        times.append(time.perf_counter() - before)
    return statistics.median(times) * 1e3


def _step_ms(model: nn.Module, batch: KeyedJaggedTensor, seconds: float) -> float:
    def step() -> None:
        _loss(model, batch).backward()

    return _median_ms(step, seconds)


def _loss(model: nn.Module, batch: KeyedJaggedTensor) -> Tensor:
    values: Tensor = model(batch).values()
    return values.sum()


def _lookup_rate(columns: int, bag: int, rows: int, seconds: float) -> LookupRate:
    """Measure eight tables: several batches in turn, so that rows come from where they lie."""
    model = _collection(_FEATURES, columns, rows)
    batches = itertools.cycle([_batch(_FEATURES, _BATCH, bag, rows, seed) for seed in range(4)])

    def both() -> None:
        _loss(model, next(batches)).backward()

    def forward() -> None:
        with torch.no_grad():
            model(next(batches)).values()

    ids = _FEATURES * _BATCH * bag
    of_forward, of_both = _median_ms(forward, seconds / 2), _median_ms(both, seconds)
    return LookupRate(
        columns=columns,
        ids_a_bag=float(bag),
        rows=rows,
        forward_ns=of_forward * 1e6 / ids,
        backward_ns=max(of_both - of_forward, 1e-6) * 1e6 / ids,
    )


def _dense_ns(seconds: float) -> float:
    weight = nn.Parameter(torch.zeros(1_000_000))
    optimizer = torch.optim.Adagrad([weight], lr=0.01)
    weight.grad = torch.ones_like(weight)

    def step() -> None:
        if weight.grad is not None:
            weight.grad.zero_()
        optimizer.step()

    return _median_ms(step, seconds) * 1e6 / (weight.nelement() * 4)


def _exchange_rate(world_size: int, seconds: float, threads: int, alone: _Alone) -> ExchangeRate:
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world_size, folder, seconds, threads)
        try:
            spawn(_measure_rank, arguments, nprocs=world_size)
        except Exception as error:
            raise RuntimeError(
                f"A process of {world_size} should have measured. {error}"
            ) from error
        text = (Path(folder) / "measured").read_text()
    small, large, rows_small, rows_large, reduced = map(float, text.split())
    # A rank looks up as much as it would alone; of its vectors and gradients, all others' share is sent.
    sent = _FEATURES * _DIM * 4 * 2 + _FEATURES * 12
    others = (world_size - 1) / world_size
    a_byte = max((large - small) - (alone.large - alone.small), 0.0) / (
        (_LARGE - _SMALL) * sent * others
    )
    rows = (rows_small - small) / _SMALL, (rows_large - large) / _LARGE
    by_rows = max(_LARGE * rows[1] - _SMALL * rows[0], 0.0) / (_LARGE - _SMALL)
    return ExchangeRate(
        world_size=world_size,
        step_ms=max(small - alone.small - _SMALL * sent * others * a_byte, 0.0),
        ns_a_byte=a_byte * 1e6,
        reduce_ns_a_byte=reduced,
        rows_step_ms=max(_SMALL * (rows[0] - by_rows), 0.0),
        rows_ns_a_number=by_rows * 1e6 / (_FEATURES * _DIM),
    )


def _measure_rank(rank: int, world_size: int, folder: str, seconds: float, threads: int) -> None:
    torch.set_num_threads(threads)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    try:
        found = [
            _sharded_ms(batch, by_rows, seconds)
            for by_rows in (False, True)
            for batch in (_SMALL, _LARGE)
        ]
        found.append(_reduce_ns(seconds))
        if rank == 0:
            (Path(folder) / "measured").write_text(" ".join(map(str, found)))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _sharded_ms(batch: int, by_rows: bool, seconds: float) -> float:
    """Return the milliseconds of a step of the collection, each rank with as many tables, or with some rows of all."""
    world_size = dist.get_world_size()
    model = nn.ModuleDict({"tables": _collection(_FEATURES, _DIM, _HEIGHT, "meta")})
    layouts = {
        f"t{t}": row_wise() if by_rows else table_wise(t % world_size) for t in range(_FEATURES)
    }
    plan: EmbeddingModuleShardingPlan = construct_module_sharding_plan(
        model["tables"], layouts, device_type="cpu"
    )
    sharded = DistributedModelParallel(
        model, plan=ShardingPlan({"tables": plan}), sharders=get_default_sharders()
    )
    features = _batch(_FEATURES, batch, 1, _HEIGHT, dist.get_rank())
    tables = sharded.module.get_submodule("tables")

    def step() -> None:
        _loss(tables, features).backward()

    return _rank_median(step, seconds)


def _rank_median(step: Callable[[], None], seconds: float) -> float:
    """Return how long a step takes that ranks take together: as many on each, as the first one says."""
    before = time.perf_counter()
    for _ in range(3):
        step()
    steps = torch.tensor([max(5, int(seconds * 3 / (time.perf_counter() - before)))])
    dist.broadcast(steps, 0)
    times = []
    for _ in range(int(steps)):
        before = time.perf_counter()
        step()
        times.append(time.perf_counter() - before)
    return statistics.median(times) * 1e3


def _reduce_ns(seconds: float) -> float:
    """Return the nanoseconds that adding up takes for each byte that a rank sends to each other one."""
    gradient, world_size = torch.ones(1_000_000), dist.get_world_size()

    def step() -> None:
        dist.all_reduce(gradient)
        gradient.fill_(1.0)

    sent = 2 * gradient.nelement() * 4 / world_size * (world_size - 1)
    return _rank_median(step, seconds) * 1e6 / sent
