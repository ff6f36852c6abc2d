"""In which ways the tables of a model can be placed: those that sharders know and wishes allow."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner._cost import BY_ROWS
from torchrec.distributed.planner._interfaces import Enumerator, SharderData
from torchrec.distributed.planner._modules import CollectionFacts, facts_of, sharded_modules
from torchrec.distributed.planner._options import (
    PartitionByType,
    PlannerError,
    PlannerErrorType,
    ShardingOption,
)
from torchrec.distributed.planner._topology import Topology
from torchrec.distributed.planner._wishes import check_wishes
from torchrec.distributed.planner.constants import DEFAULT_PERF_ESTIMATOR, POOLING_FACTOR
from torchrec.distributed.planner.shard_estimators import (
    EmbeddingPerfEstimator,
    EmbeddingStorageEstimator,
)
from torchrec.distributed.planner.types import ParameterConstraints, Shard, ShardEstimator
from torchrec.distributed.planner.utils import build_sharder_data_map, sharder_name
from torchrec.distributed.sharding_plan import calculate_shard_sizes_and_offsets, default_kernel
from torchrec.distributed.types import ModuleSharder, ShardingType
from torchrec.modules.embedding_tower import EmbeddingTower, EmbeddingTowerCollection

__all__ = [
    "DEFAULT_PERF_ESTIMATOR",
    "GUARDED_COMPUTE_KERNELS",
    "GUARDED_SHARDING_TYPES_FOR_FP_MODULES",
    "POOLING_FACTOR",
    "EmbeddingComputeKernel",
    "EmbeddingEnumerator",
    "EmbeddingTower",
    "EmbeddingTowerCollection",
    "ParameterConstraints",
    "Shard",
    "ShardEstimator",
    "calculate_shard_sizes_and_offsets",
    "get_partition_by_type",
    "sharder_name",
]

# Facts of the API: kernels that only a wish brings in, and types that it does not place weighted features under.
GUARDED_COMPUTE_KERNELS = {EmbeddingComputeKernel.KEY_VALUE}
GUARDED_SHARDING_TYPES_FOR_FP_MODULES = {"grid_shard", "table_row_wise", "row_wise"}

# The share of the memory of a rank beyond which a table is large.
_LARGE = 0.25

_PARTITIONS = {
    ShardingType.TABLE_WISE: PartitionByType.DEVICE,
    ShardingType.ROW_WISE: PartitionByType.UNIFORM,
    ShardingType.COLUMN_WISE: PartitionByType.DEVICE,
    ShardingType.TABLE_ROW_WISE: PartitionByType.HOST,
    ShardingType.TABLE_COLUMN_WISE: PartitionByType.HOST,
    ShardingType.GRID_SHARD: PartitionByType.MULTI_HOST,
    ShardingType.DATA_PARALLEL: PartitionByType.UNIFORM,
}


def get_partition_by_type(sharding_type: str) -> str:
    """Return what the shards of a table are dealt out to, value of a `PartitionByType`.

    Args:
        sharding_type: value of a `ShardingType`.

    Raises:
        ValueError: if there is no such type.

    Example:
        >>> get_partition_by_type("row_wise"), get_partition_by_type("table_wise")
        ('uniform', 'device')
    """
    known = {kind.value: by for kind, by in _PARTITIONS.items()}
    if sharding_type not in known:
        raise ValueError(
            f"`sharding_type` should be one of {', '.join(known)}. Received {sharding_type!r}."
        )
    return known[sharding_type].value


class EmbeddingEnumerator(Enumerator):
    """All ways that sharders know for the tables of a model, as far as wishes allow.

    Of ways that come to the same shards on the same ranks (a column split in one part, the rows of a host that is the
    only one), the first is taken. Copies on every rank (``data_parallel``) are trained by the optimizer around the
    model: a table that the backward pass updates has them only where they are wished for. A table whose rows are
    chosen by a map of ids is divided by rows, each with a map of its own, only where that is wished for, or whole it
    would take more than a quarter of the memory of a rank.

    Args:
        topology: the ranks.
        batch_size: samples a rank.
        constraints: wishes, by name of table.
        estimator: who says what each way takes. Default: an `EmbeddingPerfEstimator` and an
            `EmbeddingStorageEstimator`.
        use_exact_enumerate_order: ways come in the order of the model's tables, with or without it.
    """

    def __init__(
        self,
        topology: Topology,
        batch_size: int,
        constraints: dict[str, ParameterConstraints] | None = None,
        estimator: ShardEstimator | list[ShardEstimator] | None = None,
        use_exact_enumerate_order: bool | None = False,
    ) -> None:
        self._topology = topology
        self._batch_size = batch_size
        self._constraints = constraints or {}
        if estimator is None:
            estimator = [
                EmbeddingPerfEstimator(topology, constraints),
                EmbeddingStorageEstimator(topology, constraints),
            ]
        self._estimators = estimator if isinstance(estimator, list) else [estimator]
        self._sharder_map: dict[str, ModuleSharder[Any]] = {}
        self._search_space: list[ShardingOption] | None = None

    @property
    def sharder_map(self) -> dict[str, ModuleSharder[Any]]:
        """The sharders that `enumerate` was given last, by `ShardingOption.module_type_key`."""
        return self._sharder_map

    @property
    def last_stored_search_space(self) -> list[ShardingOption] | None:
        """What `enumerate` returned last; None: it was not called yet."""
        return self._search_space

    def enumerate(
        self, module: nn.Module, sharders: list[ModuleSharder[Any]]
    ) -> list[ShardingOption]:
        """Return all ways, with what they take, table by table.

        Args:
            module: the model; its tables may be on ``meta``.
            sharders: who will shard it.

        Raises:
            PlannerError: if a table can be placed in none.
        """
        self._sharder_map = {sharder_name(sharder.module_type): sharder for sharder in sharders}
        found: list[ShardingOption] = []
        names: set[str] = set()
        for path, child, sharder in sharded_modules(module, sharders):
            facts = facts_of(child)
            for name, param in sharder.shardable_parameters(child).items():
                names.add(name)
                wishes = self._constraints.get(name) or ParameterConstraints()
                ways = _TableOptions(name, param, (path, child), sharder, wishes, self._topology)
                found += ways.options(self._batch_size, facts)
        _warn_of_unknown(self._constraints, names)
        self.populate_estimates(found)
        self._search_space = found
        return found

    def populate_estimates(self, sharding_options: list[ShardingOption]) -> None:
        """Write into each part of some ways what it takes.

        Args:
            sharding_options: of the model that `enumerate` was given last.
        """
        data: dict[str, SharderData] = build_sharder_data_map(self._sharder_map)
        for estimator in self._estimators:
            estimator.estimate(sharding_options, data)


class _TableOptions:
    """The ways to place one table; the arguments as those of `ShardingOption`."""

    def __init__(
        self,
        name: str,
        param: nn.Parameter,
        module: tuple[str, nn.Module],
        sharder: ModuleSharder[Any],
        wishes: ParameterConstraints,
        topology: Topology,
    ) -> None:
        self.name = name
        self.title = f"Table {name!r} of module {module[0]!r}"
        self._param, self._module, self._sharder = param, module, sharder
        self._wishes, self._topology = wishes, topology
        self._usual_kernel = default_kernel(param, sharder)

    def options(self, batch_size: int, facts: CollectionFacts) -> list[ShardingOption]:
        """Return them.

        Args:
            batch_size: samples a rank.
            facts: of the collection.
        """
        features = facts.features.get(self.name)
        check_wishes(self.title, self.name, self._wishes, self._topology, features)
        found: dict[tuple[object, ...], ShardingOption] = {}
        for kind, kernel in self._allowed(facts.is_managed):
            option = self._option(kind, kernel, batch_size, facts)
            found.setdefault(self._outcome(option), option)
        return list(found.values())

    def _outcome(self, option: ShardingOption) -> tuple[object, ...]:
        """Return what is the same for ways that come to the same."""
        by = PartitionByType(option.partition_by)
        by_rows = option.sharding_type == ShardingType.TABLE_ROW_WISE.value
        if self._topology.world_size == self._topology.local_world_size:  # one host
            if by is PartitionByType.HOST:
                by = PartitionByType.UNIFORM if by_rows else PartitionByType.DEVICE
            elif (
                by is PartitionByType.MULTI_HOST and len(option.shards) == self._topology.world_size
            ):
                by = PartitionByType.UNIFORM
        elif (
            by is PartitionByType.MULTI_HOST
            and len(option.shards) == self._topology.local_world_size
        ):
            by, by_rows = PartitionByType.HOST, True
        if by is PartitionByType.HOST and not by_rows and option.num_shards == 1:
            by = PartitionByType.DEVICE
        is_copy = option.sharding_type == ShardingType.DATA_PARALLEL.value
        shards = tuple((*shard.size, *shard.offset) for shard in option.shards)
        return by, is_copy, by is PartitionByType.HOST and by_rows, shards

    def _allowed(self, is_managed: bool) -> Iterator[tuple[ShardingType, str]]:
        device, wished = self._topology.compute_device, self._wishes.sharding_types
        known = self._sharder.sharding_types(device)
        allowed = [
            (kind, kernel)
            for kind in _PARTITIONS
            if kind.value in known
            and (self._is_usual(kind, is_managed) if wished is None else kind.value in wished)
            for kernel in self._kernels(kind, device)
        ]
        if not allowed:
            raise PlannerError(
                f"{self.title} should have a sharding type that its sharder knows for {device!r}, "
                f"{', '.join(known)}, with a kernel that it has. "
                f"Received sharding_types={wished}, compute_kernels={self._wishes.compute_kernels}.",
                PlannerErrorType.STRICT_CONSTRAINTS,
            )
        yield from allowed

    def _is_usual(self, kind: ShardingType, is_managed: bool) -> bool:
        """Say whether a type is on offer that nobody wished for: those that change nothing but speed."""
        if kind is ShardingType.DATA_PARALLEL:
            # A copy is trained by another optimizer than the one that is fused with the table.
            return self._usual_kernel == "dense"
        if kind not in BY_ROWS or not is_managed:
            return True
        room = min(rank.storage.hbm or rank.storage.ddr for rank in self._topology.devices)
        return self._param.nelement() * self._param.element_size() > _LARGE * room

    def _kernels(self, kind: ShardingType, device: str) -> list[str]:
        """Return the kernel to take, or none if there is none that is wished for."""
        known = self._sharder.compute_kernels(kind.value, device)
        wished = self._wishes.compute_kernels
        allowed = [kernel for kernel in known if wished is None or kernel in wished]
        return [self._usual_kernel] if self._usual_kernel in allowed else allowed[:1]

    def _option(
        self, kind: ShardingType, kernel: str, batch_size: int, facts: CollectionFacts
    ) -> ShardingOption:
        wishes, topology = self._wishes, self._topology
        sizes, offsets = calculate_shard_sizes_and_offsets(
            self._param,
            topology.world_size,
            topology.local_world_size,
            kind.value,
            col_wise_shard_dim=wishes.min_partition,
        )
        features = wishes.feature_names
        if features is None and self.name in facts.features:
            features = list(facts.features[self.name])
        lengths = wishes.pooling_factors
        if len(lengths) == 1 and features:
            lengths = lengths * len(features)
        if features and len(lengths) != len(features):
            raise PlannerError(
                f"{self.title} should have `pooling_factors` of one or each of its features {features}. "
                f"Received {len(lengths)}.",
                PlannerErrorType.INPUT_VALIDATION,
            )
        allowed = set(range(topology.world_size) if wishes.ranks is None else wishes.ranks)
        allowed -= set(wishes.forbidden_ranks or ())
        return ShardingOption(
            name=self.name,
            tensor=self._param,
            module=self._module,
            input_lengths=lengths,
            batch_size=batch_size,
            sharding_type=kind.value,
            partition_by=get_partition_by_type(kind.value),
            compute_kernel=kernel,
            shards=[Shard(size, offset) for size, offset in zip(sizes, offsets, strict=True)],
            cache_params=wishes.cache_params,
            enforce_hbm=wishes.enforce_hbm,
            stochastic_rounding=wishes.stochastic_rounding,
            bounds_check_mode=wishes.bounds_check_mode,
            dependency=wishes.together_with,
            is_pooled=self.name not in facts.sequences,
            feature_names=features,
            output_dtype=wishes.output_dtype,
            key_value_params=wishes.key_value_params,
            num_poolings=wishes.num_poolings,
            allowed_ranks=None if len(allowed) == topology.world_size else frozenset(allowed),
        )


def _warn_of_unknown(constraints: Mapping[str, ParameterConstraints], names: set[str]) -> None:
    unknown = sorted(constraints.keys() - names)
    if unknown:
        warnings.warn(
            f"`constraints` should be for tables of the model, {', '.join(sorted(names))}. "
            f"Received some for {unknown}, which have no effect.",
            stacklevel=4,
        )
