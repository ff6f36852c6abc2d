"""Measures how long look-ups, updates and exchanges take on this machine, for plans that are true of it.

A collection of some tables is trained on one process, then under `DistributedModelParallel` on several, one thread
each, as `torchrun` starts them. What the exchanges take is what such a step takes beside look-ups that all processes
make at the same time, so that it has in it what packing and waiting cost; how much longer look-ups take where they
share memory and processors is measured by itself.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
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
    ParameterShardingGenerator,
    column_wise,
    construct_module_sharding_plan,
    get_default_sharders,
    row_wise,
    table_wise,
)
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.types import OptimizerType

__all__ = ["Calibration", "calibrate", "step_ms", "usual_ms"]

Clock = Callable[[], float]
"""Of `time`: seconds, of which the difference counts."""

_FEATURES, _BATCH = 8, 1024
_COLUMNS, _BAGS, _ROWS = (8, 32, 128), (1, 5, 20), (1_000, 10_000, 100_000)
# Of the collections that several ranks train.
_DIM, _HEIGHT, _SMALL, _MEDIUM, _LARGE, _LONG = 64, 50_000, 128, 512, 2048, 20
_MANY = 40  # tables
_MILLION = 1_000_000  # numbers of a gradient
_ROUNDS = 3  # of which the quickest counts: others may run something for a while


def calibrate(
    world_sizes: Sequence[int] = (2, 4),
    seconds: float = 0.3,
    threads: int = 1,
    processor_time: bool = False,
) -> Calibration:
    """Measure this machine, in about a minute; nothing else should run on it.

    Args:
        world_sizes: how many processes exchange, each in turn; none for look-ups alone. Default 2 and 4.
        seconds: how long each thing is done. Default 0.3.
        threads: of each process. Default 1, as ``torchrun`` gives them.
        processor_time: count the time that processes compute, not that in which they wait for one another or for a
            processor, as where others run something. Plans then lack the latency of messages. Default False.

    Returns:
        the rates, which a `Topology` takes as ``rates``, and which `Calibration.to_json` writes.

    Raises:
        ValueError: if a number of processes is below 2, or ``processor_time`` is asked of several threads.
        RuntimeError: if a process fails.
    """
    if any(world_size < 2 for world_size in world_sizes):
        raise ValueError(
            f"`world_sizes` should be numbers of processes that exchange, 2 or more. Received {list(world_sizes)}."
        )
    if processor_time and threads > 1:
        raise ValueError(
            f"`threads` should be 1 with `processor_time`, which adds up those of all. Received {threads}."
        )
    clock = time.process_time if processor_time else time.perf_counter
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        lookups = tuple(
            rate
            for columns, rows in itertools.product(_COLUMNS, _ROWS)
            for rate in _lookup_rates(columns, rows, seconds / 2, clock)
        )
        tiny = [
            _step_ms(_collection(n, 8, 16), _batch(n, 1, 1, 16), seconds, clock) for n in (1, 33)
        ]
        part = max((tiny[1] - tiny[0]) / 32, 0.0)
        alone = _lookups_ms(seconds, clock)
        dense = _dense_ns(seconds, clock)
    finally:
        torch.set_num_threads(before)
    exchanges = tuple(_exchange_rate(size, seconds, threads, alone, clock) for size in world_sizes)
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
class _Steps:
    """Milliseconds of a step of one collection.

    Attributes:
        small: of few samples, an id a bag.
        large: of many.
        long: of some, and bags of many ids.
    """

    small: float
    large: float
    long: float


def _lookups_ms(seconds: float, clock: Clock) -> _Steps:
    """Measure the steps of the collection where nothing is exchanged."""
    return _Steps(
        *(
            _step_ms(_collection(_FEATURES, _DIM, _HEIGHT), each, seconds, clock)
            for each in _batches(0)
        )
    )


def _batches(seed: int) -> list[KeyedJaggedTensor]:
    """Return batches of few samples, of many, and of some with long bags."""
    sizes = (_SMALL, 1), (_LARGE, 1), (_MEDIUM, _LONG)
    return [_batch(_FEATURES, batch, bag, _HEIGHT, seed) for batch, bag in sizes]


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


def usual_ms(times: Sequence[float]) -> float:
    """Return what a step takes where nothing else runs, in milliseconds: of means of five, the lower quartile.

    Means, as several ranks may share a processor: most steps of one of them are then not interrupted.

    Args:
        times: seconds of steps one behind the other, at least one.
    """
    size = min(5, len(times))
    means = sorted(
        statistics.fmean(times[i : i + size]) for i in range(0, len(times) - size + 1, size)
    )
    return means[len(means) // 4] * 1e3


def step_ms(
    step: Callable[[], object],
    seconds: float,
    most: int = 400,
    clock: Clock = time.perf_counter,
) -> float:
    """Return how long a step takes on this process, in milliseconds; it was taken twice before.

    Args:
        step: takes one.
        seconds: how long to take them.
        most: how many at most. Default 400.
        clock: of `time`. Default: what passes.
    """
    step()
    step()
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 10 or (time.perf_counter() - start < seconds and len(times) < most):
        before = clock()
        step()
        times.append(clock() - before)
    return usual_ms(times)


def _step_ms(model: nn.Module, batch: KeyedJaggedTensor, seconds: float, clock: Clock) -> float:
    return step_ms(_training(model, batch), seconds, clock=clock)


def _loss(model: nn.Module, batch: KeyedJaggedTensor) -> Tensor:
    values: Tensor = model(batch).values()
    return values.sum()


def _lookup_rates(columns: int, rows: int, seconds: float, clock: Clock) -> Iterator[LookupRate]:
    """Measure eight tables, with bags of several lengths."""
    model = _collection(_FEATURES, columns, rows)
    for bag in _BAGS:
        yield _lookup_rate(model, columns, bag, rows, seconds, clock)


def _lookup_rate(
    model: nn.Module, columns: int, bag: int, rows: int, seconds: float, clock: Clock
) -> LookupRate:
    """Measure several batches in turn, so that rows come from where they lie."""
    batches = itertools.cycle([_batch(_FEATURES, _BATCH, bag, rows, seed) for seed in range(4)])

    def both() -> None:
        _loss(model, next(batches)).backward()

    def forward() -> None:
        with torch.no_grad():
            model(next(batches)).values()

    ids = _FEATURES * _BATCH * bag
    of_forward = step_ms(forward, seconds / 2, clock=clock)
    of_both = step_ms(both, seconds, clock=clock)
    return LookupRate(
        columns=columns,
        ids_a_bag=float(bag),
        rows=rows,
        forward_ns=of_forward * 1e6 / ids,
        backward_ns=max(of_both - of_forward, 1e-6) * 1e6 / ids,
    )


def _dense_ns(seconds: float, clock: Clock) -> float:
    weight = nn.Parameter(torch.zeros(_MILLION))
    optimizer = torch.optim.Adagrad([weight], lr=0.01)
    weight.grad = torch.ones_like(weight)

    def step() -> None:
        if weight.grad is not None:
            weight.grad.zero_()
        optimizer.step()

    return step_ms(step, seconds, clock=clock) * 1e6 / (weight.nelement() * 4)


def _exchange_rate(
    world_size: int, seconds: float, threads: int, alone: _Steps, clock: Clock
) -> ExchangeRate:
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world_size, folder, seconds, threads, clock)
        try:
            spawn(_measure_rank, arguments, nprocs=world_size)
        except Exception as error:
            raise RuntimeError(
                f"A process of {world_size} should have measured. {error}"
            ) from error
        found = json.loads((Path(folder) / "measured").read_text())
    together, narrow, whole, rows, columns = (
        _Steps(*found[name]) for name in ("together", "narrow", "whole", "rows", "columns")
    )
    few, many = found["tables"]
    table = max(many - few, 0.0) / (_MANY - _FEATURES)
    # Of a sum, each rank sends each other one its share of the numbers, twice.
    reduced = 2 * 4 * _MILLION / world_size * (world_size - 1)
    # What the exchange of a sample takes, with an id a bag and with many.
    a_sample = _slope(whole.small - together.small, whole.large - together.large)
    step = max(whole.small - together.small - _SMALL * a_sample, 0.0)
    a_long = (whole.long - together.long - step) / _MEDIUM
    an_id = max(a_long - a_sample, 0.0) / ((_LONG - 1) * _FEATURES)
    # Of its vectors and gradients, all others' share is sent; the length of a bag counts for half an id.
    sent = _FEATURES * _DIM * 4 * 2 * (world_size - 1) / world_size
    a_byte = max(a_sample - 1.5 * _FEATURES * an_id, 0.0) / sent
    by_rows = _slope(rows.small - whole.small, rows.large - whole.large)
    # Each id is looked up by two ranks, half as many columns each.
    halves = 2 * _slope(narrow.small, narrow.large) - _slope(together.small, together.large)
    by_columns = _slope(columns.small - whole.small, columns.large - whole.large)
    by_columns = max(by_columns - max(halves, 0.0), 0.0)
    return ExchangeRate(
        world_size=world_size,
        slowdown=max((together.large + together.long) / (alone.large + alone.long), 1.0),
        step_ms=max(step - _FEATURES * table, 0.0),
        table_ms=table,
        rows_step_ms=max(rows.small - whole.small - _SMALL * by_rows, 0.0),
        squares_step_ms=max(columns.small - whole.small - _SMALL * by_columns, 0.0),
        ns_a_byte=a_byte * 1e6,
        ns_an_id=an_id * 1e6,
        reduce_ns_a_byte=found["reduced"][0] * 1e6 / reduced,
        rows_ns_a_number=by_rows * 1e6 / (_FEATURES * _DIM),
        squares_ns_an_id=by_columns * 1e6 / (_FEATURES * world_size),
    )


def _slope(small: float, large: float) -> float:
    """Return what a sample more takes."""
    return max(large - small, 0.0) / (_LARGE - _SMALL)


def _measure_rank(
    rank: int, world_size: int, folder: str, seconds: float, threads: int, clock: Clock
) -> None:
    torch.set_num_threads(threads)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    try:
        steps = {
            name: [_training(model, batch) for batch in _batches(rank)]
            for name, model in _collections(world_size).items()
        }
        steps["tables"] = [_of_tables(count, world_size) for count in (_FEATURES, _MANY)]
        steps["reduced"] = [_reducing()]
        found: dict[str, list[float]] = {}
        for _ in range(_ROUNDS):
            for name, of_name in steps.items():
                times = [_rank_ms(step, seconds / _ROUNDS, clock) for step in of_name]
                found[name] = list(map(min, found.get(name, times), times))
        if rank == 0:
            (Path(folder) / "measured").write_text(json.dumps(found))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _collections(world_size: int) -> dict[str, nn.Module]:
    """Return the collection on each rank, also half as wide; and each rank with as many tables, rows or columns."""

    def sharded(layout: Callable[[int], ParameterShardingGenerator]) -> nn.Module:
        layouts = {f"t{t}": layout(t) for t in range(_FEATURES)}
        return _sharded(_collection(_FEATURES, _DIM, _HEIGHT, "meta"), layouts)

    return {
        "together": _collection(_FEATURES, _DIM, _HEIGHT),
        "narrow": _collection(_FEATURES, _DIM // 2, _HEIGHT),
        "whole": sharded(lambda t: table_wise(t % world_size)),
        "rows": sharded(lambda _: row_wise()),
        "columns": sharded(lambda t: column_wise([t % world_size, (t + 1) % world_size])),
    }


def _of_tables(count: int, world_size: int) -> Callable[[], None]:
    """Return the step of a collection of small tables."""
    layouts = {f"t{t}": table_wise(t % world_size) for t in range(count)}
    tables = _sharded(_collection(count, 8, 16, "meta"), layouts)
    return _training(tables, _batch(count, 16, 1, 16))


def _sharded(
    collection: EmbeddingBagCollection, layouts: dict[str, ParameterShardingGenerator]
) -> nn.Module:
    model = nn.ModuleDict({"tables": collection})
    plan: EmbeddingModuleShardingPlan = construct_module_sharding_plan(
        collection, layouts, device_type="cpu"
    )
    sharded = DistributedModelParallel(
        model, plan=ShardingPlan({"tables": plan}), sharders=get_default_sharders()
    )
    return sharded.module.get_submodule("tables")


def _training(model: nn.Module, batch: KeyedJaggedTensor) -> Callable[[], None]:
    return lambda: _loss(model, batch).backward()


def _rank_ms(step: Callable[[], None], seconds: float, clock: Clock) -> float:
    """Return how long a step takes that ranks take together: as many on each, as the first one says."""
    dist.barrier()
    before = time.perf_counter()
    for _ in range(3):
        step()
    steps = torch.tensor([max(5, int(seconds * 3 / (time.perf_counter() - before)))])
    dist.broadcast(steps, 0)
    dist.barrier()
    times = []
    for _ in range(int(steps)):
        before = clock()
        step()
        times.append(clock() - before)
    return usual_ms(times)


def _reducing() -> Callable[[], None]:
    """Return the step that adds up gradients of a million numbers."""
    gradient = torch.ones(_MILLION)

    def step() -> None:
        dist.all_reduce(gradient)
        gradient.fill_(1.0)

    return step
