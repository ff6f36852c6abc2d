"""Plans made by hand: a sharding type for each table of a collection.

``row_wise()``, ``table_wise(rank=1)`` and their like return functions that know the layout, and are asked for the plan
of a table once its shape and the ranks are known: `construct_module_sharding_plan` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torchrec.distributed import layout
from torchrec.distributed._default_sharders import collection_sharders
from torchrec.distributed._plan_json import plan_digest, plan_from_json, plan_to_json
from torchrec.distributed.comm import get_local_size
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.layout import Shard, placement
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    ModuleSharder,
    ParameterSharding,
    QuantizedCommCodecs,
    ShardingType,
)
from torchrec.optim.optimizers import in_backward_optimizer_filter

__all__ = [
    "ParameterShardingGenerator",
    "apply_to_all",
    "calculate_shard_sizes_and_offsets",
    "column_wise",
    "construct_module_sharding_plan",
    "data_parallel",
    "default_kernel",
    "get_default_sharders",
    "get_module_to_default_sharders",
    "grid_shard",
    "placement",
    "plan_digest",
    "plan_from_json",
    "plan_to_json",
    "row_wise",
    "table_column_wise",
    "table_row_wise",
    "table_wise",
]

# Parameter, ranks a host, ranks, type of device, sharder -> the plan of one table.
ParameterShardingGenerator = Callable[
    [nn.Parameter, int, int, str, ModuleSharder[Any]], ParameterSharding
]
# Columns of a shard, at least, where nobody says how many.
_MIN_COLUMNS = 128
_QUANT = EmbeddingComputeKernel.QUANT.value


def construct_module_sharding_plan(
    module: nn.Module,
    per_param_sharding: Mapping[str, ParameterShardingGenerator],
    sharder: ModuleSharder[Any] | None = None,
    local_size: int | None = None,
    world_size: int | None = None,
    device_type: str | None = None,
) -> EmbeddingModuleShardingPlan:
    """Plan one collection by hand.

    Args:
        module: the collection.
        per_param_sharding: for each of its tables, by name, what `row_wise` and its like return.
        sharder: who will shard it. Default: the default one for a module of its type.
        local_size: ranks a host has. Default: as `torchrec.distributed.comm.get_local_size` says.
        world_size: how many ranks there are. Default: those of the process group; 1 without one.
        device_type: what they compute on. Default: ``"cuda"`` if there is such a device, or else ``"cpu"``.

    Raises:
        ValueError: if a table is left out or unknown, or a layout does not fit table or ranks.
    """
    sharder = _default_sharder(module) if sharder is None else sharder
    params = sharder.shardable_parameters(module)
    _check_names(per_param_sharding, params, module)
    if world_size is None:
        world_size = dist.get_world_size() if dist.is_initialized() else 1
    if local_size is None:
        local_size = get_local_size(world_size)
    if device_type is None:
        device_type = "cuda" if torch.cuda.is_available() else "cpu"
    plan = EmbeddingModuleShardingPlan()
    for name, param in params.items():
        try:
            plan[name] = per_param_sharding[name](
                param, local_size, world_size, device_type, sharder
            )
        except ValueError as error:
            raise ValueError(f"Table {name!r} of {type(module).__name__}: {error}") from error
        layout.shards_of(name, _shape(param), plan[name], world_size, type(module).__name__)
    return plan


def apply_to_all(
    module: nn.Module,
    parameter_sharding_generator: ParameterShardingGenerator,
    sharder: ModuleSharder[Any] | None = None,
) -> dict[str, ParameterShardingGenerator]:
    """Give every table of a collection the same layout.

    Args:
        module: the collection.
        parameter_sharding_generator: what `row_wise` and its like return.
        sharder: who will shard it. Default: the default one for a module of its type.

    Returns:
        what `construct_module_sharding_plan` takes.
    """
    sharder = _default_sharder(module) if sharder is None else sharder
    return dict.fromkeys(sharder.shardable_parameters(module), parameter_sharding_generator)


def data_parallel() -> ParameterShardingGenerator:
    """Put a copy of a table on every rank, which an ordinary optimizer trains."""

    def generate(
        param: nn.Parameter,
        local_size: int,
        world_size: int,
        device_type: str,
        sharder: ModuleSharder[Any],
    ) -> ParameterSharding:
        return ParameterSharding(ShardingType.DATA_PARALLEL.value, "dense", list(range(world_size)))

    return generate


def table_wise(
    rank: int, device: str | None = None, compute_kernel: str | None = None
) -> ParameterShardingGenerator:
    """Put a table on one rank.

    Args:
        rank: which.
        device: type of the device there. Default: that of all.
        compute_kernel: ``"fused"`` or ``"dense"``. Default: fused where the backward pass updates the table.
    """
    return _generator(
        ShardingType.TABLE_WISE,
        lambda shape, local_size, world_size: layout.table_wise(shape, rank),
        compute_kernel,
        device,
    )


def row_wise(
    sizes_placement: tuple[list[int], str | list[str]] | None = None,
    compute_kernel: str | None = None,
    num_buckets: int | None = None,
) -> ParameterShardingGenerator:
    """Put some rows of a table on every rank.

    Args:
        sizes_placement: rows of the ranks from 0, and the type of their device, one for all or one for each. The last
            ranks have what is left. Default: as many rows each, rounded up.
        compute_kernel: ``"fused"`` or ``"dense"``. Default: fused where the backward pass updates the table.
        num_buckets: of how many buckets, of as many rows each, a rank should have whole ones only.
    """
    if sizes_placement is not None and num_buckets is not None:
        raise ValueError(
            "`row_wise` should have `sizes_placement` or `num_buckets`. Received both."
        )

    def shards(shape: tuple[int, int], local_size: int, world_size: int) -> list[Shard]:
        if sizes_placement is not None:
            return layout.row_wise(shape, range(len(sizes_placement[0])), sizes_placement[0])
        sizes = None if num_buckets is None else _buckets(shape[0], num_buckets, world_size)
        return layout.row_wise(shape, range(world_size), sizes)

    devices = None if sizes_placement is None else sizes_placement[1]
    return _generator(ShardingType.ROW_WISE, shards, compute_kernel, devices)


def column_wise(
    ranks: list[int] | None = None,
    size_per_rank: list[int] | None = None,
    compute_kernel: str | None = None,
    device_types: list[str] | None = None,
) -> ParameterShardingGenerator:
    """Put some columns of a table on each of some ranks.

    Args:
        ranks: one for each shard; a rank may have several. Default: from 0, one for each of ``size_per_rank``.
        size_per_rank: columns of each shard; the last ones have what is left. Default: as many each.
        compute_kernel: ``"fused"`` or ``"dense"``. Default: fused where the backward pass updates the table.
        device_types: type of the device of each shard. Default: that of all.
    """
    if not ranks and not size_per_rank:
        raise ValueError("`column_wise` should have `ranks` or `size_per_rank`. Received neither.")
    if ranks and size_per_rank and len(ranks) != len(size_per_rank):
        raise ValueError(
            f"`size_per_rank` should have one size for each of {len(ranks)} `ranks`. Received {size_per_rank}."
        )

    def shards(shape: tuple[int, int], local_size: int, world_size: int) -> list[Shard]:
        return layout.column_wise(shape, ranks or range(len(size_per_rank or ())), size_per_rank)

    return _generator(ShardingType.COLUMN_WISE, shards, compute_kernel, device_types)


def table_row_wise(host_index: int) -> ParameterShardingGenerator:
    """Put some rows of a table on each rank of one host.

    Args:
        host_index: which host, from 0.
    """
    return _generator(
        ShardingType.TABLE_ROW_WISE,
        lambda shape, local_size, world_size: layout.table_row_wise(
            shape, _host(host_index, local_size, world_size)
        ),
    )


def table_column_wise(
    host_index: int, size_per_rank: list[int] | None = None
) -> ParameterShardingGenerator:
    """Put some columns of a table on each rank of one host.

    Args:
        host_index: which host, from 0.
        size_per_rank: columns of each shard. Default: as many each, one shard a rank.
    """
    return _generator(
        ShardingType.TABLE_COLUMN_WISE,
        lambda shape, local_size, world_size: layout.table_column_wise(
            shape, _host(host_index, local_size, world_size), size_per_rank
        ),
    )


def grid_shard(host_indexes: list[int]) -> ParameterShardingGenerator:
    """Put some columns of a table on each of some hosts, and of these some rows on each of its ranks.

    Args:
        host_indexes: which hosts, from 0.
    """
    return _generator(
        ShardingType.GRID_SHARD,
        lambda shape, local_size, world_size: layout.grid_shard(
            shape, [_host(host, local_size, world_size) for host in host_indexes]
        ),
    )


def calculate_shard_sizes_and_offsets(
    tensor: Tensor,
    world_size: int,
    local_world_size: int,
    sharding_type: str,
    col_wise_shard_dim: int | None = None,
    device_memory_sizes: list[int] | None = None,
    num_buckets: int | None = None,
) -> tuple[list[list[int]], list[list[int]]]:
    """Cut a table up without saying which rank has which part.

    Args:
        tensor: the table.
        world_size: how many ranks there are.
        local_world_size: ranks a host has.
        sharding_type: value of a `ShardingType`.
        col_wise_shard_dim: columns of a shard at least; the next number that divides the columns is taken.
            Default 128.
        device_memory_sizes: rows of the ranks are as these to each other. Default: as many each.
        num_buckets: of how many buckets of rows a rank should have whole ones only.

    Returns:
        rows and columns of each shard, and where it begins.

    Example:
        >>> calculate_shard_sizes_and_offsets(torch.empty(10, 64), 2, 2, "row_wise")
        ([[5, 64], [5, 64]], [[0, 0], [5, 0]])
    """
    shards = _cut(
        _shape(tensor),
        ShardingType(sharding_type),
        range(world_size),
        range(local_world_size),
        _MIN_COLUMNS if col_wise_shard_dim is None else col_wise_shard_dim,
        _row_sizes(tensor.shape[0], world_size, device_memory_sizes, num_buckets),
    )
    return [list(shard.sizes) for shard in shards], [list(shard.offsets) for shard in shards]


def _cut(
    shape: tuple[int, int],
    sharding_type: ShardingType,
    world: range,
    host: range,
    min_columns: int,
    row_sizes: list[int] | None,
) -> list[Shard]:
    columns = _column_sizes(shape[1], min_columns)
    parts = range(len(columns))  # no rank has been chosen yet
    if sharding_type is ShardingType.TABLE_WISE:
        return layout.table_wise(shape, 0)
    if sharding_type is ShardingType.DATA_PARALLEL:
        return layout.data_parallel(shape, len(world))
    if sharding_type is ShardingType.ROW_WISE:
        return layout.row_wise(shape, world, row_sizes)
    if sharding_type is ShardingType.TABLE_ROW_WISE:
        return layout.table_row_wise(shape, host)
    if sharding_type is ShardingType.GRID_SHARD:
        return layout.grid_shard(shape, [host for _ in parts], columns)
    return layout.column_wise(shape, parts, columns)


def _generator(
    sharding_type: ShardingType,
    shards: Callable[[tuple[int, int], int, int], list[Shard]],
    compute_kernel: str | None = None,
    devices: str | Sequence[str] | None = None,
) -> ParameterShardingGenerator:
    def generate(
        param: nn.Parameter,
        local_size: int,
        world_size: int,
        device_type: str,
        sharder: ModuleSharder[Any],
    ) -> ParameterSharding:
        found = shards(_shape(param), local_size, world_size)
        return ParameterSharding(
            sharding_type.value,
            compute_kernel or default_kernel(param, sharder),
            [shard.rank for shard in found],
            layout.spec_of(found, devices or device_type, local_size),
        )

    return generate


def default_kernel(param: nn.Parameter, sharder: ModuleSharder[Any]) -> str:
    """Return ``"fused"`` if the backward pass updates a table, or the sharder has it do so; else ``"dense"``.

    Of quantised tables it is ``"quant"``.

    Args:
        param: the table.
        sharder: who will shard it; its ``fused_params``, where it has some, are what updates are made with.
    """
    if _QUANT in sharder.compute_kernels(ShardingType.TABLE_WISE.value, "cpu"):
        return _QUANT
    marked = any(True for _ in in_backward_optimizer_filter(iter([("", param)]), include=True))
    return "fused" if marked or getattr(sharder, "fused_params", None) else "dense"


def get_default_sharders(
    qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None, exact: bool = False
) -> list[ModuleSharder[Any]]:
    """Return a sharder for every type of collection.

    `torch.nn.EmbeddingBag`, towers and pools are sharded where their sharders are given.

    Args:
        qcomm_codecs_registry: of each, see `BaseEmbeddingSharder`. Default: vectors travel as they are.
        exact: likewise. Default False.
    """
    return [*collection_sharders(None, qcomm_codecs_registry, exact)]


def get_module_to_default_sharders() -> dict[type[nn.Module], ModuleSharder[Any]]:
    """Return the sharder of each type of module that can be sharded."""
    return {sharder.module_type: sharder for sharder in get_default_sharders()}


def _default_sharder(module: nn.Module) -> ModuleSharder[Any]:
    found = get_module_to_default_sharders()
    if type(module) not in found:
        raise ValueError(
            f"`sharder` should be given for a {type(module).__name__}. "
            f"There are default ones for {', '.join(kind.__name__ for kind in found)}."
        )
    return found[type(module)]


def _check_names(
    given: Mapping[str, object], tables: Mapping[str, object], module: nn.Module
) -> None:
    missing, unknown = sorted(tables.keys() - given.keys()), sorted(given.keys() - tables.keys())
    if missing or unknown:
        raise ValueError(
            f"A plan of {type(module).__name__} should have its tables, {', '.join(tables)}. "
            f"Received none of {missing}, and {unknown}, which it has not."
        )


def _host(index: int, local_size: int, world_size: int) -> range:
    hosts = -(-world_size // local_size)
    if not 0 <= index < hosts:
        raise ValueError(
            f"`host_index` should be from 0 to {hosts - 1}: {world_size} ranks, {local_size} a host. "
            f"Received {index}."
        )
    return range(index * local_size, min((index + 1) * local_size, world_size))


def _row_sizes(
    rows: int, world_size: int, memories: list[int] | None, num_buckets: int | None
) -> list[int] | None:
    if num_buckets is not None:
        return _buckets(rows, num_buckets, world_size)
    if memories is None:
        return None
    if len(memories) != world_size or sum(memories) <= 0:
        raise ValueError(
            f"`device_memory_sizes` should have one size for each of {world_size} ranks. Received {memories}."
        )
    sizes = [rows * memory // sum(memories) for memory in memories]
    sizes[-1] += rows - sum(sizes)
    return sizes


def _buckets(rows: int, num_buckets: int, world_size: int) -> list[int]:
    """Deal buckets out: the first ranks have one more where they do not divide."""
    if num_buckets < 1 or rows % num_buckets:
        raise ValueError(f"`num_buckets` should divide {rows} rows. Received {num_buckets}.")
    each, more = divmod(num_buckets, world_size)
    return [(each + (rank < more)) * (rows // num_buckets) for rank in range(world_size)]


def _column_sizes(columns: int, at_least: int) -> list[int]:
    """Return equal parts of columns, the narrowest that are ``at_least`` so wide."""
    for width in range(max(1, min(at_least, columns)), columns + 1):
        if columns % width == 0:
            return [width] * (columns // width)
    return [columns]


def _shape(table: Tensor) -> tuple[int, int]:
    if table.dim() != 2:
        raise ValueError(
            f"A table should be rows and columns. Received shape {tuple(table.shape)}."
        )
    return table.shape[0], table.shape[1]
