"""What there is to say of a plan: per rank what it has and takes, per table what else there was."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from torchrec.distributed._plan_report import (
    Alternative,
    LayerReport,
    PlanReport,
    RankMemory,
    RankReport,
    TableReport,
)
from torchrec.distributed.planner._dense import DensePart, Layers
from torchrec.distributed.planner._messages import messages_ms, messages_ns, shares_of
from torchrec.distributed.planner._options import ShardingOption
from torchrec.distributed.planner._placing import by_compute, by_time, least_missing, take
from torchrec.distributed.planner._problem import Candidate, Choice, Load, Unit
from torchrec.distributed.planner._rates import rates_of
from torchrec.distributed.planner._search_space import candidates_of, own_unit, part_of
from torchrec.distributed.planner._solutions import Solution
from torchrec.distributed.planner._step_memory import rank_memory
from torchrec.distributed.planner._tables import by_table
from torchrec.distributed.planner._topology import Perf, Storage, Topology

__all__ = ["digest_of", "report_of"]

# Of more tables than this, other ways are looked at for the costliest only.
_MOST_TABLES = 200


def digest_of(context: str, space: Sequence[ShardingOption], left: Topology) -> str:
    """Return 64 hexadecimal digits of what a plan is made from.

    Args:
        context: of the planner, its `hash_planner_context_inputs_str`.
        space: all ways of all tables, with what each takes: which optimizer a table has, say, shows there.
        left: the ranks, with the memory that is left for tables.
    """
    ways = [
        (
            way.fqn,
            tuple(way.tensor.shape),
            str(way.tensor.dtype),
            way.sharding_type,
            way.compute_kernel,
            tuple(way.feature_names or ()),
            len(way.shards),
            repr(way.total_storage),
            way.own_bytes,
            way.total_perf,
        )
        for way in space
    ]
    rooms = [repr(device.storage) for device in left.devices]
    return hashlib.sha256(repr((context, sorted(ways), rooms)).encode()).hexdigest()


def report_of(
    options: Sequence[ShardingOption],
    solution: Solution,
    space: Sequence[ShardingOption],
    left: Topology,
    topology: Topology,
    batch_size: int,
    made_from: str,
    layers: Layers,
) -> PlanReport:
    """Return what there is to say of a plan.

    Args:
        options: a way for each table, with ranks.
        solution: how that was found.
        space: all ways of all tables.
        left: the ranks, with the memory that is left for tables.
        topology: the ranks, with all memory.
        batch_size: samples a rank.
        made_from: digest of what it was made from.
        layers: of the model.
    """
    choices = {(o.path, o.name): _choice(o, topology) for o in options}
    room = [part_of(device.storage) for device in left.devices]
    load = Load(room, messages_ns(options, topology))
    for choice in choices.values():
        load.add_choice(choice)
    candidates = {(of_table[0].path, of_table[0].name): of_table for of_table in by_table(space)}
    costliest = sorted(options, key=lambda option: -option.total_perf)[:_MOST_TABLES]
    looked_at = {(option.path, option.name) for option in costliest}
    tables = []
    for option in options:
        table = option.path, option.name
        others = None
        if table in looked_at:
            others = _others(option, choices[table], candidates.get(table, []), load, left)
        tables.append(_table(option, others))
    memory = rank_memory(options, topology, layers)
    return PlanReport(
        device=topology.compute_device,
        batch_size=batch_size,
        fixed_ms=messages_ms(options, topology),
        optimality=solution.optimality,
        is_measured=topology.rates is not None,
        made_from=made_from,
        ranks=tuple(
            _rank(rank, options, left, topology, each, layers.lasting_bytes)
            for rank, each in enumerate(memory)
        ),
        tables=tuple(tables),
        layers=None if layers.measured is None else _layers(layers.measured, layers, topology),
    )


def _rank(
    rank: int,
    options: Sequence[ShardingOption],
    left: Topology,
    topology: Topology,
    memory: RankMemory,
    dense_bytes: int,
) -> RankReport:
    perf, tables, alike = Perf(0, 0, 0, 0), 0, 0.0
    for option in options:
        shards = [shard for shard in option.shards if shard.rank == rank]
        tables += bool(shards)
        alike += sum(shard.perf.alike for shard in option.shards if shard.perf)
        for shard in shards:
            perf += shard.perf or Perf(0, 0, 0, 0)
    there, usable = topology.devices[rank].storage, left.devices[rank].storage
    on_host = topology.compute_device == "cpu"
    return RankReport(
        rank=rank,
        compute_ms=perf.compute,
        exchange_ms=perf.comms + alike / topology.world_size,
        memory=memory,
        capacity=usable.ddr if on_host else usable.hbm,
        reserved=(there.ddr - usable.ddr) if on_host else (there.hbm - usable.hbm),
        tables=tables,
        dense_bytes=dense_bytes,
    )


def _layers(dense: DensePart, layers: Layers, topology: Topology) -> LayerReport:
    return LayerReport(
        ms=_dense_ms(dense, topology),
        parameter_bytes=dense.parameter_bytes,
        training_bytes=dense.training_bytes,
        product_bytes=dense.product_bytes,
        sum_bytes=layers.sum_bytes(topology.world_size),
        step_bytes=dense.step_bytes,
    )


def _dense_ms(dense: DensePart, topology: Topology) -> float:
    """Return what layers take where all ranks train theirs, and add the gradients up."""
    return rates_of(topology).layers_ms(
        dense.step_ms, dense.gradient_bytes, topology.world_size, topology.local_world_size
    )


def _table(option: ShardingOption, others: tuple[Alternative, ...] | None) -> TableReport:
    wishes = []
    if option.dependency is not None:
        wishes.append(f"with {option.dependency!r}")
    if option.allowed_ranks is not None:
        wishes.append(f"only on ranks {', '.join(map(str, sorted(option.allowed_ranks)))}")
    parts = [part_of(shard.storage or Storage(0, 0), shard.perf) for shard in option.shards]
    return TableReport(
        module=option.path,
        table=option.name,
        rows=option.tensor.shape[0],
        columns=option.tensor.shape[1],
        sharding_type=option.sharding_type,
        compute_kernel=option.compute_kernel,
        ranks=tuple(-1 if shard.rank is None else shard.rank for shard in option.shards),
        part_bytes=tuple(part.num_bytes for part in parts),
        part_ms=tuple(
            shard.perf.total - shard.perf.alike if shard.perf else 0.0 for shard in option.shards
        ),
        alike_ms=sum(shard.perf.alike for shard in option.shards if shard.perf),
        wish=", ".join(wishes),
        others=others,
    )


def _others(
    option: ShardingOption,
    choice: Choice,
    candidates: Sequence[ShardingOption],
    load: Load,
    topology: Topology,
) -> tuple[Alternative, ...]:
    """Return what each other way of a table would come to, the others staying where they are."""
    found: dict[str, Alternative] = {}
    load.add_choice(choice, -1)
    for other in candidates if option.dependency is None else ():
        if other.sharding_type == option.sharding_type:
            continue
        for candidate in candidates_of(other, topology):
            alternative = _alternative(other, candidate, load)
            known = found.get(other.sharding_type)
            if known is None or _order(alternative) < _order(known):
                found[other.sharding_type] = alternative
    load.add_choice(choice)
    return tuple(sorted(found.values(), key=_order))


def _alternative(option: ShardingOption, candidate: Candidate, load: Load) -> Alternative:
    steps = []
    for key in (by_time, by_compute):  # as the search does
        placed = take(load, candidate, key)
        if placed is not None:
            steps.append(load.score[0])
            load.add_choice(placed, -1)
    if not steps:
        missing, rank = least_missing(load, candidate)
        return Alternative(option.sharding_type, None, missing, rank)
    return Alternative(option.sharding_type, min(steps) / 1e6)


def _order(other: Alternative) -> tuple[bool, float]:
    return other.ms is None, other.missing if other.ms is None else other.ms


def _choice(option: ShardingOption, topology: Topology) -> Choice:
    parts = tuple(part_of(shard.storage or Storage(0, 0), shard.perf) for shard in option.shards)
    seat = tuple(shard.rank or 0 for shard in option.shards)
    shares = (shares_of(option, topology.world_size),)
    units = (Unit(parts, (seat,)), *own_unit(option.own_bytes, topology))
    return Choice(Candidate(units, 0, shares, shares), tuple(unit.seats[0] for unit in units))
