"""Measures what ranks of this machine take to exchange, for `calibrate`.

What exchanges take is what a step takes beside the same look-ups where nothing is exchanged, made by all processes at
the same time: that has in it what packing and waiting cost. Each rate comes from steps of which it is a large part:
tables are small, so that caches hold them, and narrow where ids are meant, wide where vectors are. How much longer
look-ups and layers take where processes share memory and processors is measured by itself.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from torchrec.distributed._plan import EmbeddingModuleShardingPlan, ShardingPlan
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner._calibration import ExchangeRate
from torchrec.distributed.planner._training_steps import (
    Clock,
    batch_of,
    pooled,
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
from torchrec.process_groups import all_reduce, broadcast
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

__all__ = ["exchange_rate", "rate_of"]

_Steps = list[Callable[[], None]]

_FEATURES = 8  # tables, or about as many
_NARROW, _USUAL, _WIDE = 8, 64, 128  # columns
_CACHED, _SOME, _MANY = 1_000, 10_000, 50_000  # rows
_LONG = 20  # ids of a bag
# Samples of a rank, and ids a bag.
_SMALL, _LARGE, _BAGS = (128, 1), (2048, 1), (512, _LONG)
_FEW, _MEDIUM = 32, 512  # samples, some bags of which are long
_HIDDEN = 256  # of layers
_TABLES_MORE = 32
_TINY, _HUGE = 8, 700  # columns of layers whose gradients are added up
_TIMEOUT = timedelta(seconds=60)  # in which a rank should come that others wait for
_DOING = "measuring exchanges"
_ROUND = 0.06  # seconds of each thing, then of the next; the quickest round counts, as others may run something


def exchange_rate(world_size: int, seconds: float, threads: int, clock: Clock) -> ExchangeRate:
    """Measure processes that exchange.

    Args:
        world_size: how many.
        seconds: how long each thing is done.
        threads: of each process.
        clock: of `time`.

    Raises:
        RuntimeError: if a process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world_size, folder, seconds, threads, clock)
        try:
            spawn(_measure_rank, arguments, nprocs=world_size)
        except Exception as error:
            said = Path(folder) / "why"
            why = said.read_text() if said.exists() else str(error)
            raise RuntimeError(f"A process of {world_size} should have measured. {why}") from error
        return rate_of(json.loads((Path(folder) / "measured").read_text()), world_size)


def rate_of(found: Mapping[str, Sequence[float]], world_size: int) -> ExchangeRate:
    """Return what exchanges take, from milliseconds of steps.

    Args:
        found: names of `_steps` -> of each step.
        world_size: how many ranks took them.
    """
    features, (few, many) = _features(world_size), found["tables"]
    part = max(many - few, 0.0) / _TABLES_MORE
    narrow, wide = _beside(found, "narrow"), _beside(found, "wide")
    an_id, a_byte = _id_and_byte(_more(narrow), _more(wide), world_size)
    ids, num_bytes = _ids(_SMALL, features), _bytes(_SMALL, features * _NARROW, world_size)
    # Bags of every table, which lies on all ranks: each of these is sent its lengths, and sends back its sums.
    few_long, many_long = _long(world_size)
    lengths = features * (many_long[0] - few_long[0]) * world_size / 2
    long_ids = features * (many_long[0] - few_long[0]) * many_long[1]
    sums = world_size * (
        _bytes(many_long, features * _NARROW, world_size)
        - _bytes(few_long, features * _NARROW, world_size)
    )
    sorted_ms = _more(_beside(found, "long sums")) - (long_ids + lengths) * an_id - sums * a_byte
    apart = max(sorted_ms, 0.0) / long_ids
    # A sample's: ids of one a bag, whose lengths need not be sent, and rows.
    rows, whole = found["rows"], found["wide"]
    by_rows = (_more(rows) - _more(whole)) / (_LARGE[0] - _SMALL[0])
    by_rows = max(by_rows - features * (apart - an_id / 2), 0.0)
    # Each id is asked of two ranks, which send as many bytes together.
    columns = [
        took
        - 2 * _ids(shape, features) * an_id
        - _bytes(shape, features * _USUAL, world_size) * a_byte
        for took, shape in zip(_beside(found, "columns"), (_SMALL, _LARGE), strict=True)
    ]
    by_columns = max(_more(columns), 0.0) / (_LARGE[0] - _SMALL[0])
    step = narrow[0] - ids * an_id - num_bytes * a_byte - features * part
    gathered = _more(found["mixed"]) - _more(found["single"]) - _more(found["long"])
    alone, together = found["usual alone"], found["usual"]
    of_layers = _more(found["summed"])
    # For a sum, each rank reads the numbers of all others.
    numbers = _num_parameters(_HUGE) - _num_parameters(_TINY)
    reduced = 4 * numbers * (world_size - 1)
    return ExchangeRate(
        world_size=world_size,
        slowdown=max(sum(together) / sum(alone), 1.0),
        step_ms=max(step, 0.0),
        part_ms=part,
        rows_step_ms=max(
            rows[0]
            - whole[0]
            - _SMALL[0] * (by_rows + features * (apart - an_id / 2))
            - (world_size - 1) * features * part,
            0.0,
        ),
        # Each table has two parts.
        squares_step_ms=max(columns[0] - _SMALL[0] * by_columns - step - 2 * features * part, 0.0),
        ns_a_byte=a_byte * 1e6,
        ns_an_id=an_id * 1e6,
        apart_ns_an_id=apart * 1e6,
        reduce_ns_a_byte=max(_more(found["reduced"]) - of_layers, 0.0) * 1e6 / reduced,
        layers_slowdown=max(found["layers"][0] / found["layers alone"][0], 1.0),
        layers_step_ms=max(of_layers, 0.0),
        rows_ns_a_number=by_rows * 1e6 / (features * _WIDE),
        squares_ns_an_id=by_columns * 1e6 / (2 * features),
        gather_ns_a_number=max(gathered, 0.0) * 1e6 / _gathered_numbers(world_size),
    )


def _features(world_size: int) -> int:
    """Return how many tables ranks have, each as many."""
    return world_size * max(1, round(_FEATURES / world_size))


def _beside(found: Mapping[str, Sequence[float]], name: str) -> list[float]:
    """Return what steps take beside their look-ups."""
    return [a - b for a, b in zip(found[name], found[f"{name} here"], strict=True)]


def _long(world_size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return few samples and more, of long bags of which each rank has as many ids."""
    bag = world_size * max(1, _LONG // world_size)
    return (_FEW, bag), (_MEDIUM, bag)


def _more(times: Sequence[float]) -> float:
    """Return what a step of the larger batch takes more."""
    small, large = times
    return large - small


def _ids(shape: tuple[int, int], features: int) -> float:
    """Return the ids of a batch; the length of a bag counts for half of one."""
    batch, bag = shape
    return features * batch * (bag + 0.5)


def _bytes(shape: tuple[int, int], columns: int, world_size: int) -> float:
    """Return the bytes of vectors and gradients of a batch that are sent: all others' share."""
    return shape[0] * columns * 4 * 2 * (world_size - 1) / world_size


def _id_and_byte(narrow: float, wide: float, world_size: int) -> tuple[float, float]:
    """Return milliseconds of an id and of a byte, from two exchanges that have different numbers of each.

    Args:
        narrow: of narrow tables, milliseconds of long bags beside those of few samples.
        wide: of wide ones, of many samples.
        world_size: how many ranks.
    """
    features = _features(world_size)

    def more(shape: tuple[int, int], columns: int) -> tuple[float, float]:
        ids = _ids(shape, features) - _ids(_SMALL, features)
        width = features * columns
        return ids, _bytes(shape, width, world_size) - _bytes(_SMALL, width, world_size)

    (ids, num_bytes), (wide_ids, wide_bytes) = more(_BAGS, _NARROW), more(_LARGE, _WIDE)
    area = ids * wide_bytes - wide_ids * num_bytes
    an_id = (narrow * wide_bytes - wide * num_bytes) / area
    a_byte = (wide * ids - narrow * wide_ids) / area
    return max(an_id, 0.0), max(a_byte, 0.0)


def _gathered_numbers(world_size: int) -> float:
    """Return how many numbers of rows a rank gathers more of the larger batch, where bags are long and of one id."""
    rows = _SOME / world_size
    found = 0.0
    for bag in (1, _LONG):
        few, many = (-rows * math.expm1(-batch * bag / rows) for batch in (_FEW, _MEDIUM))
        found += (many - few) * _WIDE * _features(world_size) / 2
    return found


def _measure_rank(
    rank: int, world_size: int, folder: str, seconds: float, threads: int, clock: Clock
) -> None:
    torch.set_num_threads(threads)
    try:
        _meet_first(rank, world_size, folder)
        steps = _steps(rank, world_size)
        found: dict[str, list[float]] = {}
        rounds = max(1, round(seconds / _ROUND))
        for _ in range(rounds):
            for name in ("usual", "layers") if rank == 0 else ():  # while the others wait
                times = [step_ms(step, seconds / rounds, clock=clock) for step in steps[name]]
                name = f"{name} alone"
                found[name] = list(map(min, found.get(name, times), times))
            for name, of_name in steps.items():
                times = [_rank_ms(step, seconds / rounds, clock) for step in of_name]
                found[name] = list(map(min, found.get(name, times), times))
        if rank == 0:
            (Path(folder) / "measured").write_text(json.dumps(found))
        _meet()
    except Exception as error:
        # The first to fail says why: others fail because it has ended.
        with suppress(FileExistsError), (Path(folder) / "why").open("x") as file:
            file.write(f"{type(error).__name__}: {error}")
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _meet_first(rank: int, world_size: int, folder: str) -> None:
    store = f"file://{folder}/store"
    try:
        dist.init_process_group(
            "gloo", init_method=store, timeout=_TIMEOUT, rank=rank, world_size=world_size
        )
    except RuntimeError as error:
        raise RuntimeError(
            f"All {world_size} processes should meet within {_TIMEOUT.seconds} s. Received at rank {rank}: {error}."
        ) from error


def _steps(rank: int, world_size: int) -> dict[str, _Steps]:
    """Return what ranks do together, with batches of two sizes.

    "here": what each looks up without any exchange, where each has as many tables, or the halves of twice as many.
    "narrow", "wide": each has as many tables; "columns", "rows", "long sums": as many columns or rows. "mixed": of
    rows, some bags have one id and some many; "single" and "long" are these by themselves.
    """
    features = _features(world_size)
    mine, half = features // world_size, features // 2

    def here(tables: int, columns: int, *shapes: tuple[int, int], rows: int = _CACHED) -> _Steps:
        model = pooled(tables, columns, rows)
        given = [batch_of(tables, world_size * batch, bag, rows, rank) for batch, bag in shapes]
        return [training(model, batch) for batch in given]

    def sharded(
        columns: int,
        layout: Callable[[int], ParameterShardingGenerator],
        *batches: KeyedJaggedTensor,
        rows: int = _CACHED,
    ) -> _Steps:
        tables = len(batches[0].keys())
        layouts = {f"t{t}": layout(t) for t in range(tables)}
        model = _sharded(pooled(tables, columns, rows, "meta"), layouts)
        return [training(model, batch) for batch in batches]

    def given(*shapes: tuple[int, int]) -> list[KeyedJaggedTensor]:
        return [batch_of(features, batch, bag, _CACHED, rank) for batch, bag in shapes]

    def mixed(bags: Sequence[int]) -> _Steps:
        batches = [batch_of(len(bags), batch, bags, _SOME, rank) for batch in (_SMALL[0], _BAGS[0])]
        return sharded(_WIDE, by_rows, *batches, rows=_SOME)

    def whole(table: int) -> ParameterShardingGenerator:
        return table_wise(table % world_size)

    def by_rows(_: int) -> ParameterShardingGenerator:
        return row_wise()

    def by_columns(table: int) -> ParameterShardingGenerator:
        return column_wise([table % world_size, (table + 1) % world_size])

    def summed(columns: int) -> _Steps:
        """Without and with gradients that are added up."""
        wrapped = DistributedModelParallel(_layers(columns), plan=ShardingPlan({}))
        both = _layers(columns), wrapped
        return [_training_layers(layers, 1, columns) for layers in both]

    return {
        "usual": here(mine, _USUAL, _LARGE, _BAGS, rows=_MANY),
        "narrow here": here(mine, _NARROW, _SMALL, _BAGS),
        "narrow": sharded(_NARROW, whole, *given(_SMALL, _BAGS)),
        "wide here": here(mine, _WIDE, _SMALL, _LARGE),
        "wide": sharded(_WIDE, whole, *given(_SMALL, _LARGE)),
        "rows": sharded(_WIDE, by_rows, *given(_SMALL, _LARGE)),
        "long sums here": here(
            features, _NARROW, *((batch, bag // world_size) for batch, bag in _long(world_size))
        ),
        "long sums": sharded(_NARROW, by_rows, *given(*_long(world_size))),
        "columns here": here(2 * mine, _USUAL // 2, _SMALL, _LARGE),
        "columns": sharded(_USUAL, by_columns, *given(_SMALL, _LARGE)),
        "mixed": mixed([1] * half + [_LONG] * half),
        "single": mixed([1] * half),
        "long": mixed([_LONG] * half),
        "tables": [_of_tables(count, world_size) for count in (features, features + _TABLES_MORE)],
        "layers": [_training_layers(_layers(_HIDDEN), _LARGE[0], _HIDDEN)],
        "summed": summed(_TINY),
        "reduced": summed(_HUGE),
    }


def _of_tables(count: int, world_size: int) -> Callable[[], None]:
    """Return the step of a collection of small tables."""
    layouts = {f"t{t}": table_wise(t % world_size) for t in range(count)}
    tables = _sharded(pooled(count, 8, 16, "meta"), layouts)
    return training(tables, batch_of(count, 16, 1, 16))


def _layers(size: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 1)
    )


def _num_parameters(columns: int) -> int:
    return sum(each.numel() for each in _layers(columns).parameters())


def _training_layers(layers: nn.Module, samples: int, columns: int) -> Callable[[], None]:
    inputs = torch.ones(samples, columns)

    def step() -> None:
        layers.zero_grad()
        layers(inputs).mean().backward()

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


def _meet() -> None:
    all_reduce(torch.ones(1), _DOING)


def _rank_ms(step: Callable[[], None], seconds: float, clock: Clock) -> float:
    """Return how long a step takes that ranks take together: as many on each, as the first one says."""
    _meet()
    before = time.perf_counter()
    for _ in range(3):
        step()
    steps = torch.tensor([max(5, int(seconds * 3 / (time.perf_counter() - before)))])
    broadcast(steps, 0, _DOING)
    _meet()
    times = []
    for _ in range(int(steps)):
        before = clock()
        step()
        times.append(clock() - before)
    return usual_ms(times)
