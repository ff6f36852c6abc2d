"""Measures how long look-ups, updates and exchanges take on this machine, for plans that are true of it.

A collection of some tables is trained on one process, then under `DistributedModelParallel` on several, one thread
each, as `torchrun` starts them. What exchanges take is what such a step takes beside the same look-ups where nothing
is exchanged, made by all processes at the same time: that has in it what packing and waiting cost. How much longer
look-ups and layers take where processes share memory and processors is measured by itself.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from torchrec.distributed._plan import EmbeddingModuleShardingPlan, ShardingPlan
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner._calibration import (
    Calibration,
    ExchangeRate,
)
from torchrec.distributed.planner._lookup_rates import (
    COLUMNS,
    TABLES,
    VECTOR_BYTES,
    LookupRates,
    vector_ns,
)
from torchrec.distributed.planner._training_steps import (
    Clock,
    batch_of,
    pooled,
    sequences,
    step_ms,
    training,
    usual_ms,
)
from torchrec.distributed.sharding_plan import (
    ParameterShardingGenerator,
    column_wise,
    construct_module_sharding_plan,
    get_default_sharders,
    row_wise,
    table_wise,
)
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

__all__ = ["Calibration", "calibrate", "step_ms", "usual_ms"]

# Of the collections that several ranks train: tables, about as many as this, and samples of a rank.
_FEATURES, _DIM, _HEIGHT = 8, 64, 50_000
_SMALL, _MEDIUM, _LARGE, _LONG = 128, 512, 2048, 20
_HIDDEN = 256  # of layers
_MANY = 32  # tables more
_MILLION = 1_000_000  # numbers of a gradient
_ROUNDS = 4  # of which the quickest counts: others may run something for a while


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
        tiny = [training(pooled(n, 8, 16), batch_of(n, 1, 1, 16)) for n in (1, 33)]
        alone, many = (step_ms(step, seconds, clock=clock) for step in tiny)
        part = max((many - alone) / 32, 0.0)
        of_sequences = [
            step_ms(training(sequences(n), batch_of(n, 1, 1, 16)), seconds, clock=clock)
            for n in (1, 33)
        ]
        a_byte = vector_ns(alone, seconds, clock)
        rates = LookupRates(alone, part / 2, seconds / 5, clock)
        for columns in COLUMNS:
            rates.measure(columns)
        dense = _dense_ns(seconds, clock)
    finally:
        torch.set_num_threads(before)
    exchanges = tuple(_exchange_rate(size, seconds, threads, clock) for size in world_sizes)
    return Calibration(
        machine=f"{platform.machine()}, {os.cpu_count()} processors, torch {torch.__version__}",
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        part_ms=part / 2,  # once forward, once backward
        tables=TABLES,
        vector_bytes=VECTOR_BYTES,
        vector_ns_a_byte=a_byte,
        sequence_ms=max((of_sequences[1] - of_sequences[0]) / 32 - part, 0.0),
        step_ms_alone=alone,
        dense_ns_a_byte=dense,
        lookups=tuple(rates.lookups),
        updates=tuple(rates.updates),
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


def _batches(seed: int, features: int, ranks: int = 1) -> list[KeyedJaggedTensor]:
    """Return batches of few samples, of many, and of some with long bags; those of some ranks as one."""
    sizes = (_SMALL, 1), (_LARGE, 1), (_MEDIUM, _LONG)
    return [batch_of(features, ranks * batch, bag, _HEIGHT, seed) for batch, bag in sizes]


def _dense_ns(seconds: float, clock: Clock) -> float:
    weight = nn.Parameter(torch.zeros(_MILLION))
    optimizer = torch.optim.Adagrad([weight], lr=0.01)
    weight.grad = torch.ones_like(weight)

    def step() -> None:
        if weight.grad is not None:
            weight.grad.zero_()
        optimizer.step()

    return step_ms(step, seconds, clock=clock) * 1e6 / (weight.nelement() * 4)


def _exchange_rate(world_size: int, seconds: float, threads: int, clock: Clock) -> ExchangeRate:
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world_size, folder, seconds, threads, clock)
        try:
            spawn(_measure_rank, arguments, nprocs=world_size)
        except Exception as error:
            raise RuntimeError(
                f"A process of {world_size} should have measured. {error}"
            ) from error
        found = json.loads((Path(folder) / "measured").read_text())
    alone, together, narrow, whole, rows, columns = (
        _Steps(*found[name])
        for name in ("together alone", "together", "narrow", "whole", "rows", "columns")
    )
    features = _features(world_size)
    few, many = found["tables"]
    part = max(many - few, 0.0) / _MANY
    # Of a sum, each rank sends each other one its share of the numbers, twice.
    reduced = 2 * 4 * _MILLION / world_size * (world_size - 1)
    # What the exchange of a sample takes, with an id a bag and with many.
    a_sample = _slope(whole.small - together.small, whole.large - together.large)
    step = max(whole.small - together.small - _SMALL * a_sample, 0.0)
    a_long = (whole.long - together.long - step) / _MEDIUM
    an_id = max(a_long - a_sample, 0.0) / ((_LONG - 1) * features)
    # Of its vectors and gradients, all others' share is sent; the length of a bag counts for half an id.
    sent = features * _DIM * 4 * 2 * (world_size - 1) / world_size
    a_byte = max(a_sample - 1.5 * features * an_id, 0.0) / sent
    by_rows = _slope(rows.small - whole.small, rows.large - whole.large)
    # Each id is asked of two ranks, which look up half as many columns each.
    by_columns = _slope(
        (columns.small - narrow.small) - (whole.small - together.small),
        (columns.large - narrow.large) - (whole.large - together.large),
    )
    by_columns = max(by_columns - 1.5 * features * an_id, 0.0)
    layers, alone_layers = found["layers"][0], found["layers alone"][0]
    return ExchangeRate(
        world_size=world_size,
        slowdown=max((together.large + together.long) / (alone.large + alone.long), 1.0),
        step_ms=max(step - features * part, 0.0),
        part_ms=part,
        rows_step_ms=max(
            rows.small - whole.small - _SMALL * by_rows - (world_size - 1) * features * part, 0.0
        ),
        squares_step_ms=max(
            columns.small - whole.small - _SMALL * by_columns - features * part, 0.0
        ),
        ns_a_byte=a_byte * 1e6,
        ns_an_id=an_id * 1e6,
        reduce_ns_a_byte=found["reduced"][0] * 1e6 / reduced,
        layers_slowdown=max(layers / alone_layers, 1.0),
        layers_step_ms=max(found["summed"][1] - found["summed"][0], 0.0),
        rows_ns_a_number=by_rows * 1e6 / (features * _DIM),
        squares_ns_an_id=by_columns * 1e6 / (2 * features),
    )


def _features(world_size: int) -> int:
    """Return how many tables ranks have, each as many."""
    return world_size * max(1, round(_FEATURES / world_size))


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
        steps = _steps(rank, world_size)
        found: dict[str, list[float]] = {}
        for _ in range(_ROUNDS):
            for name in ("together", "layers") if rank == 0 else ():  # while the others wait
                times = [step_ms(step, seconds / _ROUNDS, clock=clock) for step in steps[name]]
                name = f"{name} alone"
                found[name] = list(map(min, found.get(name, times), times))
            for name, of_name in steps.items():
                times = [_rank_ms(step, seconds / _ROUNDS, clock) for step in of_name]
                found[name] = list(map(min, found.get(name, times), times))
        if rank == 0:
            (Path(folder) / "measured").write_text(json.dumps(found))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _steps(rank: int, world_size: int) -> dict[str, list[Callable[[], None]]]:
    """Return what ranks do together, with batches of each size.

    "together": what each looks up where each has as many tables, without any exchange; "narrow": where each has the
    halves of twice as many. "whole", "rows", "columns": each has as many tables, rows or columns.
    """
    features = _features(world_size)
    mine = features // world_size

    def here(tables: int, columns: int) -> list[Callable[[], None]]:
        model = pooled(tables, columns, _HEIGHT)
        return [training(model, batch) for batch in _batches(rank, tables, world_size)]

    def sharded(layout: Callable[[int], ParameterShardingGenerator]) -> list[Callable[[], None]]:
        layouts = {f"t{t}": layout(t) for t in range(features)}
        model = _sharded(pooled(features, _DIM, _HEIGHT, "meta"), layouts)
        return [training(model, batch) for batch in _batches(rank, features)]

    layers, small = _layers(_HIDDEN), _layers(8)
    summed = DistributedDataParallel(_layers(8))
    return {
        "together": here(mine, _DIM),
        "narrow": here(2 * mine, _DIM // 2),
        "whole": sharded(lambda t: table_wise(t % world_size)),
        "rows": sharded(lambda _: row_wise()),
        "columns": sharded(lambda t: column_wise([t % world_size, (t + 1) % world_size])),
        "tables": [_of_tables(count, world_size) for count in (features, features + _MANY)],
        "layers": [_training_layers(layers, _HIDDEN, _MEDIUM)],
        "summed": [_training_layers(each, 8, 8) for each in (small, summed)],
        "reduced": [_reducing()],
    }


def _of_tables(count: int, world_size: int) -> Callable[[], None]:
    """Return the step of a collection of small tables."""
    layouts = {f"t{t}": table_wise(t % world_size) for t in range(count)}
    tables = _sharded(pooled(count, 8, 16, "meta"), layouts)
    return training(tables, batch_of(count, 16, 1, 16))


def _layers(size: int) -> nn.Module:
    return nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 1))


def _training_layers(layers: nn.Module, size: int, batch: int) -> Callable[[], None]:
    optimizer, inputs = torch.optim.Adagrad(layers.parameters()), torch.ones(batch, size)

    def step() -> None:
        optimizer.zero_grad()
        layers(inputs).mean().backward()
        optimizer.step()

    return step


class _Tables(nn.Module):
    """A model that is a collection."""

    def __init__(self, tables: EmbeddingBagCollection) -> None:
        super().__init__()
        self.tables = tables

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        """Return vectors side by side."""
        vectors: Tensor = self.tables(features).values()
        return vectors


def _sharded(
    collection: EmbeddingBagCollection, layouts: dict[str, ParameterShardingGenerator]
) -> nn.Module:
    plan: EmbeddingModuleShardingPlan = construct_module_sharding_plan(
        collection, layouts, device_type="cpu"
    )
    return DistributedModelParallel(
        _Tables(collection),
        plan=ShardingPlan({"tables": plan}),
        sharders=get_default_sharders(),
    )


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
