"""Plans of sharding: which ranks hold which part of each table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from torch import nn

from torchrec.distributed._kinds import CacheParams, KeyValueParams, ShardingStrategy
from torchrec.distributed._plan_report import PlanReport
from torchrec.distributed._private import EnumerableShardingSpec, ShardingSpec
from torchrec.types import BoundsCheckMode, DataType


@dataclass
class ParameterSharding:
    """Where the parts of one table are.

    Attributes:
        sharding_type: value of a `ShardingType`, ``"row_wise"`` say.
        compute_kernel: ``"fused"`` where the backward pass updates the table, ``"dense"`` where an optimizer does.
        ranks: who holds something of it, in the order of the shards; a rank comes as often as it has shards.
        sharding_spec: each shard with its offsets, sizes and placement; None where every rank holds the whole table.
        cache_params: not supported: refused where a model is sharded. So are the next five.
        enforce_hbm: keep the table in the memory of the accelerator.
        stochastic_rounding: round updates at random where weights have fewer bits than 32.
        bounds_check_mode: what becomes of an id outside the table; the ``id_policy`` of a table says that here, and
            ``BoundsCheckMode.FATAL`` is what it is without one.
        output_dtype: type of what a look-up gives.
        key_value_params: how the table is kept in a key-value store.
    """

    sharding_type: str
    compute_kernel: str
    ranks: list[int] | None = None
    sharding_spec: ShardingSpec | None = None
    cache_params: CacheParams | None = None
    enforce_hbm: bool | None = None
    stochastic_rounding: bool | None = None
    bounds_check_mode: BoundsCheckMode | None = None
    output_dtype: DataType | None = None
    key_value_params: KeyValueParams | None = None


class ModuleShardingPlan:
    """Where the parts of one module are; what that is, says its sharder."""


class EmbeddingModuleShardingPlan(ModuleShardingPlan, dict[str, ParameterSharding]):
    """Where the tables of one collection are, by name. Printed, it is a table of them and one of their shards, if any.

    Example:
        >>> sharding = ParameterSharding("data_parallel", "dense", [0, 1])
        >>> print(EmbeddingModuleShardingPlan(user=sharding))  # doctest: +NORMALIZE_WHITESPACE
        <BLANKLINE>
        <BLANKLINE>
        param | sharding type | compute kernel | ranks
        ----- | ------------- | -------------- | ------
        user  | data_parallel | dense          | [0, 1]
        <BLANKLINE>
        <BLANKLINE>
        <BLANKLINE>
    """

    def __str__(self) -> str:
        tables = [
            (name, sharding.sharding_type, sharding.compute_kernel, sharding.ranks)
            for name, sharding in self.items()
        ]
        shards = [
            (name, shard.shard_offsets, shard.shard_sizes, shard.placement)
            for name, sharding in self.items()
            if isinstance(sharding.sharding_spec, EnumerableShardingSpec)
            for shard in sharding.sharding_spec.shards
        ]
        return (
            "\n\n"
            + _aligned(["param", "sharding type", "compute kernel", "ranks"], tables)
            + "\n\n"
            + _aligned(["param", "shard offsets", "shard sizes", "placement"], shards)
        )


def _aligned(headers: list[str], rows: Iterable[Sequence[object]]) -> str:
    """Write lines with columns of one width each, under headers in their middle; of nothing, two empty ones."""
    cells = [[str(cell) for cell in row] for row in rows]
    if not cells:
        return "\n"
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    lines = [
        [header.center(width) for header, width in zip(headers, widths, strict=True)],
        ["-" * width for width in widths],
        *([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in cells),
    ]
    return "\n".join(map(" | ".join, lines))


class ObjectPoolShardingType(Enum):
    """Which rank has which rows of a pool."""

    ROW_WISE = "row_wise"
    REPLICATED_ROW_WISE = "replicated_row_wise"


@dataclass
class ObjectPoolShardingPlan(ModuleShardingPlan):
    """Where the rows of a pool are.

    Attributes:
        sharding_type: as many rows on each rank, the last ones fewer; replicated, on each rank of a host, and so on
            every host.
        inference: not supported: refused where a pool is sharded.
        memory_capacity_per_rank: likewise.
    """

    sharding_type: ObjectPoolShardingType
    inference: bool = False
    memory_capacity_per_rank: list[int] | None = None


@dataclass
class ShardingPlan:
    """Where the tables of a whole model are.

    Attributes:
        plan: path of a module, as ``named_modules()`` has it -> where its tables are.
        report: what the planner that made it has to say of it. Default: it was made by hand. Plans are equal whatever
            their reports.
        world_size: for how many ranks a planner made it. Default: that is not known. Plans are equal whatever it is.
    """

    plan: dict[str, ModuleShardingPlan]
    report: PlanReport | None = field(default=None, compare=False, repr=False)
    world_size: int | None = field(default=None, compare=False, repr=False)

    def explain(self) -> str:
        """Return what each rank has and takes, and why each table is where it is, as text.

        Raises:
            ValueError: if the plan was not made by a planner.
        """
        if self.report is None:
            raise ValueError(
                "A plan should be made by a planner to be explained. Received one that was made by hand, or read "
                "from a file."
            )
        return self.report.text()

    def get_plan_for_module(self, module_path: str) -> ModuleShardingPlan | None:
        """Return where the tables of one module are; None: the plan has no such module."""
        return self.plan.get(module_path)

    def __str__(self) -> str:
        return "\n\n".join(f"module: {path}{plan}" for path, plan in self.plan.items())


@dataclass
class DMPCollectionConfig:
    """How the tables in some modules are grouped, where others are grouped otherwise.

    Attributes:
        module: type of the modules.
        plan: where their tables go, by the ranks of a group.
        sharding_group_size: how many ranks a group has.
        node_group_size: how many of them are on one host; None: all that the host has.
        use_inter_host_allreduce: let the ranks of a group be neighbours, and copies be on other hosts.
        sharding_strategy: how the copies are kept alike.
    """

    module: type[nn.Module]
    plan: ShardingPlan
    sharding_group_size: int
    node_group_size: int | None = None
    use_inter_host_allreduce: bool = False
    sharding_strategy: ShardingStrategy = ShardingStrategy.DEFAULT
