"""In which ways the tables of a model can be placed: those that sharders know and constraints allow."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from torch import nn

from torchrec.distributed.planner._options import (
    ParameterConstraints,
    PartitionByType,
    PlannerError,
    PlannerErrorType,
    Shard,
    ShardingOption,
    sharder_name,
)
from torchrec.distributed.planner._storage import Traffic, storage_of
from torchrec.distributed.planner._topology import Storage, Topology
from torchrec.distributed.planner.constants import NUM_POOLINGS
from torchrec.distributed.sharding_plan import calculate_shard_sizes_and_offsets, default_kernel
from torchrec.distributed.types import ModuleSharder, ShardingType

# Whole tables need the fewest messages; of a large one, rows spread memory and work evenly.
_SMALL = (
    ShardingType.TABLE_WISE,
    ShardingType.ROW_WISE,
    ShardingType.COLUMN_WISE,
    ShardingType.TABLE_ROW_WISE,
    ShardingType.TABLE_COLUMN_WISE,
    ShardingType.GRID_SHARD,
    ShardingType.DATA_PARALLEL,
)
_LARGE = (ShardingType.ROW_WISE, ShardingType.COLUMN_WISE, ShardingType.GRID_SHARD, *_SMALL)
# A table is large beyond this share of the memory of a rank.
_SHARE = 0.25

_PARTITIONS = {
    ShardingType.TABLE_WISE: PartitionByType.DEVICE,
    ShardingType.COLUMN_WISE: PartitionByType.DEVICE,
    ShardingType.ROW_WISE: PartitionByType.UNIFORM,
    ShardingType.DATA_PARALLEL: PartitionByType.UNIFORM,
    ShardingType.TABLE_ROW_WISE: PartitionByType.HOST,
    ShardingType.TABLE_COLUMN_WISE: PartitionByType.HOST,
    ShardingType.GRID_SHARD: PartitionByType.MULTI_HOST,
}


def sharded_modules(
    model: nn.Module, sharders: Sequence[ModuleSharder[Any]]
) -> Iterator[tuple[str, nn.Module, ModuleSharder[Any]]]:
    """Yield the modules of a model that have a sharder, with their paths; nothing from inside of one.

    Args:
        model: the model.
        sharders: at most one for each type of module.
    """
    by_type = {sharder_name(sharder.module_type): sharder for sharder in sharders}
    taken: list[str] = []
    for path, module in model.named_modules():
        sharder = by_type.get(sharder_name(type(module)))
        inside = any(path.startswith(f"{other}.") or not other for other in taken)
        if sharder is not None and not inside:
            taken.append(path)
            yield path, module, sharder


def candidates_of(
    model: nn.Module,
    sharders: Sequence[ModuleSharder[Any]],
    topology: Topology,
    batch_size: int,
    constraints: Mapping[str, ParameterConstraints],
) -> list[Candidates]:
    """Return, for each table of a model, in which ways it can be placed.

    Args:
        model: the model.
        sharders: who will shard it.
        topology: the ranks, with the memory that is left for tables.
        batch_size: samples a rank.
        constraints: wishes, by name of table.

    Raises:
        PlannerError: if a table can be placed in none.
    """
    found = [
        Candidates(
            name, param, (path, module), sharder, topology, batch_size, constraints.get(name)
        )
        for path, module, sharder in sharded_modules(model, sharders)
        for name, param in sharder.shardable_parameters(module).items()
    ]
    names = {table.name for table in found}
    unknown = sorted(constraints.keys() - names)
    if unknown:
        warnings.warn(
            f"`constraints` should be for tables of the model, {', '.join(sorted(names))}. "
            f"Received some for {unknown}, which have no effect.",
            stacklevel=3,
        )
    return found


class Candidates:
    """The ways to place one table, the better ones first.

    They are made as they are looked at: of a thousand ranks, most ways have a thousand parts, and the first is taken.

    Args:
        name: of the table.
        param: the table.
        module: its collection, with the path of that.
        sharder: who will shard it.
        topology: the ranks, with the memory that is left for tables.
        batch_size: samples a rank.
        constraints: what is wished for it.

    Raises:
        PlannerError: if there is none.
    """

    def __init__(
        self,
        name: str,
        param: nn.Parameter,
        module: tuple[str, nn.Module],
        sharder: ModuleSharder[Any],
        topology: Topology,
        batch_size: int,
        constraints: ParameterConstraints | None,
    ) -> None:
        self.name = name
        self.title = f"Table {name!r} of module {module[0]!r}"
        self._param = param
        self._module = module
        self._sharder = sharder
        self._topology = topology
        self._batch_size = batch_size
        self._wishes = constraints or ParameterConstraints()
        self._check(topology)
        self._kinds = self._allowed(topology)

    @property
    def num_bytes(self) -> int:
        """Of the whole table."""
        return self._param.nelement() * self._param.element_size()

    def __iter__(self) -> Iterator[ShardingOption]:
        return (self._option(kind, kernel) for kind, kernel in self._kinds)

    def _allowed(self, topology: Topology) -> list[tuple[ShardingType, str]]:
        device = topology.compute_device
        known = self._sharder.sharding_types(device)
        wished = self._wishes.sharding_types
        limit = _SHARE * min(rank.storage.hbm or rank.storage.ddr for rank in topology.devices)
        order = dict.fromkeys(_LARGE if self.num_bytes > limit else _SMALL)
        allowed = [
            (kind, kernel)
            for kind in order
            if kind.value in known and (wished is None or kind.value in wished)
            for kernel in self._kernels(kind, device)
        ]
        if not allowed:
            raise PlannerError(
                f"{self.title} should have a sharding type that its sharder knows for {device!r}, "
                f"{', '.join(known)}, with a kernel that it has. "
                f"Received sharding_types={wished}, compute_kernels={self._wishes.compute_kernels}.",
                PlannerErrorType.STRICT_CONSTRAINTS,
            )
        return allowed

    def _check(self, topology: Topology) -> None:
        if self._wishes.use_virtual_table:
            raise PlannerError(
                f"{self.title} should not have `use_virtual_table`: there are no virtual tables.",
                PlannerErrorType.INPUT_VALIDATION,
            )
        if self._wishes.device_group not in (None, topology.compute_device):
            raise PlannerError(
                f"{self.title} should be for devices of type {topology.compute_device!r}, as the topology is. "
                f"Received device_group={self._wishes.device_group!r}.",
                PlannerErrorType.INPUT_VALIDATION,
            )

    def _kernels(self, kind: ShardingType, device: str) -> list[str]:
        """Return the kernel to take, or none if there is none that is wished for."""
        known = self._sharder.compute_kernels(kind.value, device)
        wished = self._wishes.compute_kernels
        allowed = [kernel for kernel in known if wished is None or kernel in wished]
        usual = default_kernel(self._param, self._sharder)
        return [usual] if usual in allowed else allowed[:1]

    def _option(self, kind: ShardingType, kernel: str) -> ShardingOption:
        wishes, topology = self._wishes, self._topology
        sizes, offsets = calculate_shard_sizes_and_offsets(
            self._param,
            topology.world_size,
            topology.local_world_size,
            kind.value,
            col_wise_shard_dim=wishes.min_partition,
        )
        option = ShardingOption(
            name=self.name,
            tensor=self._param,
            module=self._module,
            input_lengths=wishes.pooling_factors,
            batch_size=self._batch_size,
            sharding_type=kind.value,
            partition_by=_PARTITIONS[kind].value,
            compute_kernel=kernel,
            shards=[Shard(size, offset) for size, offset in zip(sizes, offsets, strict=True)],
            cache_params=wishes.cache_params,
            enforce_hbm=wishes.enforce_hbm,
            stochastic_rounding=wishes.stochastic_rounding,
            bounds_check_mode=wishes.bounds_check_mode,
            feature_names=wishes.feature_names,
            output_dtype=wishes.output_dtype,
            key_value_params=wishes.key_value_params,
            num_poolings=wishes.num_poolings,
        )
        traffic = self._traffic(option)

        @cache
        def storage(rows: int, columns: int) -> Storage:
            return storage_of(
                self._param,
                [rows, columns],
                kind,
                kernel,
                self._sharder,
                topology.compute_device,
                topology.world_size,
                traffic,
            )

        for shard in option.shards:
            shard.storage = storage(*shard.size)
        return option

    def _traffic(self, option: ShardingOption) -> Traffic:
        features = option.num_inputs
        batch_sizes = self._wishes.batch_sizes or [option.batch_size] * features
        poolings = self._wishes.num_poolings or [NUM_POOLINGS] * features
        if not len(batch_sizes) == len(poolings) == features:
            raise PlannerError(
                f"{self.title} should have `pooling_factors`, `num_poolings` and `batch_sizes` for as many features. "
                f"Received {features}, {len(poolings)} and {len(batch_sizes)}.",
                PlannerErrorType.INPUT_VALIDATION,
            )
        return Traffic.of(
            batch_sizes,
            option.input_lengths,
            poolings,
            option.is_pooled,
            self._wishes.is_weighted,
            option.output_dtype,
        )
