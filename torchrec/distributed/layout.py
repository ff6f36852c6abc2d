"""Where the parts of a table are: seven ways to cut one up, and what a plan says, read and checked.

A table is a list of shards, each some rows and columns on one rank. Whatever else there is to know of a sharding type
(where ids go, how outputs are put together, what is saved) reads the list.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from torchrec.distributed._plan import ParameterSharding
from torchrec.distributed._private import (
    EnumerableShardingSpec,
    ShardMetadata,
    placement_of,
)
from torchrec.modules.embedding_configs import ShardingType
from torchrec.types import BoundsCheckMode

_KERNELS = ("dense", "fused")


@dataclass(frozen=True)
class Shard:
    """Some rows and columns of a table, on one rank.

    Example:
        >>> shard = Shard(rank=1, rows=range(5, 10), columns=range(0, 64))
        >>> shard.offsets, shard.sizes
        ((5, 0), (5, 64))
    """

    rank: int
    rows: range
    columns: range

    @property
    def offsets(self) -> tuple[int, int]:
        """Row and column of the table where it begins."""
        return self.rows.start, self.columns.start

    @property
    def sizes(self) -> tuple[int, int]:
        """How many rows and columns it has."""
        return len(self.rows), len(self.columns)


def table_wise(shape: tuple[int, int], rank: int) -> list[Shard]:
    """Put a whole table on one rank."""
    return [_whole(shape, rank)]


def data_parallel(shape: tuple[int, int], world_size: int) -> list[Shard]:
    """Put a whole table on every rank: these shards are replicas, which overlap."""
    return [_whole(shape, rank) for rank in range(world_size)]


def row_wise(
    shape: tuple[int, int], ranks: Sequence[int], sizes: Sequence[int] | None = None
) -> list[Shard]:
    """Put some rows on each of some ranks.

    Args:
        shape: rows and columns of the table.
        ranks: one for each shard.
        sizes: rows of each shard; the last ones have what is left. Default: as many each, rounded up, so that the
            last ones may have fewer, or none.

    Raises:
        ValueError: if not all rows have room.

    Example:
        >>> [shard.rows for shard in row_wise((10, 4), ranks=[0, 1, 2])]
        [range(0, 4), range(4, 8), range(8, 10)]
    """
    rows, columns = shape
    sizes = [_ceil(rows, len(ranks))] * len(ranks) if sizes is None else sizes
    return [
        Shard(rank, part, range(columns))
        for rank, part in zip(ranks, _parts(rows, sizes, "rows"), strict=True)
    ]


def column_wise(
    shape: tuple[int, int], ranks: Sequence[int], sizes: Sequence[int] | None = None
) -> list[Shard]:
    """Put some columns on each of some ranks.

    Args:
        shape: rows and columns of the table.
        ranks: one for each shard; a rank may have several.
        sizes: columns of each shard; the last ones have what is left. Default: as many each.

    Raises:
        ValueError: if the columns do not divide, or not all have room.

    Example:
        >>> [shard.columns for shard in column_wise((10, 6), ranks=[0, 1, 0])]
        [range(0, 2), range(2, 4), range(4, 6)]
    """
    rows, columns = shape
    if sizes is None:
        if columns % len(ranks):
            raise ValueError(
                f"Columns should divide evenly into {len(ranks)} shards, on ranks {list(ranks)}. "
                f"Received {columns} columns."
            )
        sizes = [columns // len(ranks)] * len(ranks)
    return [
        Shard(rank, range(rows), part)
        for rank, part in zip(ranks, _parts(columns, sizes, "columns"), strict=True)
    ]


def table_row_wise(shape: tuple[int, int], host: range) -> list[Shard]:
    """Put some rows on each rank of one host.

    Args:
        shape: rows and columns of the table.
        host: the ranks of the host.
    """
    return row_wise(shape, host)


def table_column_wise(
    shape: tuple[int, int], host: range, sizes: Sequence[int] | None = None
) -> list[Shard]:
    """Put some columns on ranks of one host.

    Args:
        shape: rows and columns of the table.
        host: the ranks of the host; where there are more shards, it goes round them again.
        sizes: columns of each shard. Default: as many each, one a rank.
    """
    if sizes is None:
        return column_wise(shape, host)
    return column_wise(shape, [host[i % len(host)] for i in range(len(sizes))], sizes)


def grid_shard(
    shape: tuple[int, int], hosts: Sequence[range], sizes: Sequence[int] | None = None
) -> list[Shard]:
    """Put some columns on each of some hosts, and of these some rows on each of its ranks.

    Args:
        shape: rows and columns of the table.
        hosts: the ranks of each host.
        sizes: columns of each host. Default: as many each.

    Example:
        >>> [shard.offsets for shard in grid_shard((4, 6), hosts=[range(0, 2), range(2, 4)])]
        [(0, 0), (2, 0), (0, 3), (2, 3)]
    """
    return [
        Shard(shard.rank, shard.rows, part.columns)
        for host, part in zip(hosts, column_wise(shape, range(len(hosts)), sizes), strict=True)
        for shard in row_wise(shape, host)
    ]


def placement(compute_device: str, rank: int, local_size: int) -> str:
    """Write where a shard is, as plans have it.

    Args:
        compute_device: type of the device, ``"cpu"`` or ``"cuda"`` say.
        rank: who has it, among all ranks.
        local_size: how many ranks a host has: the device of a rank is the one of its number there.

    Example:
        >>> placement("cpu", rank=3, local_size=2), placement("cuda", rank=3, local_size=2)
        ('rank:3/cpu', 'rank:3/cuda:1')
    """
    numbered = compute_device in ("cuda", "mtia")
    return f"rank:{rank}/{compute_device}" + (f":{rank % local_size}" if numbered else "")


def spec_of(
    shards: Sequence[Shard], device_type: str | Sequence[str] = "cpu", local_size: int = 1
) -> EnumerableShardingSpec:
    """Write shards as plans have them.

    Args:
        shards: of one table.
        device_type: what their ranks compute on; or one for each shard. Default ``"cpu"``.
        local_size: how many ranks a host has. Default 1.

    Example:
        >>> spec_of(table_wise((10, 4), rank=1)).shards
        [ShardMetadata(shard_offsets=[0, 0], shard_sizes=[10, 4], placement=rank:1/cpu)]
    """
    types = [device_type] * len(shards) if isinstance(device_type, str) else device_type
    if len(types) != len(shards):
        raise ValueError(
            f"There should be one type of device for each of {len(shards)} shards. Received {list(types)}."
        )
    return EnumerableShardingSpec(
        [
            ShardMetadata(list(s.offsets), list(s.sizes), placement(kind, s.rank, local_size))
            for s, kind in zip(shards, types, strict=True)
        ]
    )


def shards_of(
    table: str,
    shape: tuple[int, int],
    sharding: ParameterSharding,
    world_size: int,
    module: str = "",
) -> list[Shard]:
    """Read where a plan puts the parts of a table, and check it.

    Args:
        table: its name, for errors.
        shape: its rows and columns.
        sharding: what the plan says of it.
        world_size: how many ranks there are.
        module: path of its collection, for errors.

    Returns:
        the shards, in the order of the plan, empty ones too. For ``data_parallel``: one of the whole table a rank.

    Raises:
        ValueError: if a shard is on a rank that is not there or outside the table, if shards overlap, or if they leave
            something out.
    """
    name = f"Table {table!r}" + (f" of module {module!r}" if module else "")
    known = [member.value for member in ShardingType]
    if sharding.sharding_type not in known:
        raise ValueError(
            f"{name} should have a sharding type of {', '.join(known)}. Received {sharding.sharding_type!r}."
        )
    if sharding.sharding_type == ShardingType.DATA_PARALLEL.value:
        return data_parallel(shape, world_size)
    spec = sharding.sharding_spec
    if not isinstance(spec, EnumerableShardingSpec):
        raise ValueError(
            f"{name}, {sharding.sharding_type}, should have an EnumerableShardingSpec. Received {spec!r}."
        )
    shards = [_read_shard(name, shape, metadata, world_size) for metadata in spec.shards]
    if sharding.ranks is not None and sharding.ranks != [shard.rank for shard in shards]:
        raise ValueError(
            f"{name} should have its shards on ranks {sharding.ranks}, as its `ranks` say. "
            f"Received shards on ranks {[shard.rank for shard in shards]}."
        )
    _check_cover(name, shape, shards)
    return shards


def checked_sharding(
    tables: Sequence[str], sharding: Mapping[str, ParameterSharding], named: str, path: str
) -> dict[str, ParameterSharding]:
    """Return where the tables of a collection go, once that has been checked.

    Args:
        tables: their names.
        sharding: of each, by name.
        named: what errors call the collection.
        path: of its module in its model.

    Raises:
        ValueError: for a table that is missing, unknown, or cannot go there.
    """
    missing = [name for name in tables if name not in sharding]
    unknown = [name for name in sharding if name not in tables]
    if missing or unknown:
        what = f"no table '{missing[0]}'" if missing else f"a table '{unknown[0]}'"
        raise ValueError(
            f"{named} should have its tables {list(tables)} in the plan. Received {what}."
        )
    for name in tables:
        check_supported(name, sharding[name], path)
    return dict(sharding)


def check_supported(table: str, sharding: ParameterSharding, module: str = "") -> None:
    """Refuse what a plan may ask for a table and what there is no code for.

    Args:
        table: its name, for errors.
        sharding: what the plan says of it.
        module: path of its collection, for errors.

    Raises:
        ValueError: for a kernel, a cache, a storage or a type of output that is not there.
    """
    name = f"Table {table!r}" + (f" of module {module!r}" if module else "")
    if sharding.compute_kernel not in _KERNELS:
        raise ValueError(
            f"{name} should have a `compute_kernel` of {' or '.join(_KERNELS)}. "
            f"Received {sharding.compute_kernel!r}."
        )
    if sharding.bounds_check_mode not in (None, BoundsCheckMode.FATAL, BoundsCheckMode.V2_FATAL):
        raise ValueError(
            f"{name} should say by its `id_policy` what becomes of an id outside it. "
            f"Received bounds_check_mode={sharding.bounds_check_mode!r}."
        )
    for option in (
        "cache_params",
        "enforce_hbm",
        "stochastic_rounding",
        "output_dtype",
        "key_value_params",
    ):
        value = getattr(sharding, option)
        if value is not None and value is not False:
            raise ValueError(
                f"{name} should not have `{option}`: there is no such table here. Received {value!r}."
            )


def _read_shard(
    name: str, shape: tuple[int, int], metadata: ShardMetadata, world_size: int
) -> Shard:
    rank, _ = placement_of(metadata)
    offsets, sizes = metadata.shard_offsets, metadata.shard_sizes
    if rank is None or not 0 <= rank < world_size:
        raise ValueError(
            f"{name} should have its shards on ranks 0 to {world_size - 1}. "
            f"Received one with placement {metadata.placement}."
        )
    inside = len(offsets) == len(sizes) == 2 and all(
        offset >= 0 and size >= 0 and offset + size <= limit
        for offset, size, limit in zip(offsets, sizes, shape, strict=True)
    )
    if not inside:
        raise ValueError(
            f"{name} should have its shards inside its {shape[0]} rows and {shape[1]} columns. "
            f"Received, for rank {rank}, offsets {list(offsets)} and sizes {list(sizes)}."
        )
    rows, columns = (range(a, a + n) for a, n in zip(offsets, sizes, strict=True))
    return Shard(rank, rows, columns)


def _check_cover(name: str, shape: tuple[int, int], shards: Sequence[Shard]) -> None:
    """Check that each row and column belongs to one shard.

    The edges of all shards cut the table into cells, each of which is in a shard whole or not at all.
    """
    row_edges = _edges(shape[0], [shard.rows for shard in shards])
    column_edges = _edges(shape[1], [shard.columns for shard in shards])
    owners: dict[tuple[int, int], Shard] = {}
    for shard in shards:
        for cell in product(_cells(row_edges, shard.rows), _cells(column_edges, shard.columns)):
            other = owners.setdefault(cell, shard)
            if other is not shard:
                raise ValueError(
                    f"{name} should have shards that do not overlap. Received {_described(other)} and "
                    f"{_described(shard)}."
                )
    for i, j in product(range(len(row_edges) - 1), range(len(column_edges) - 1)):
        if (i, j) not in owners:
            raise ValueError(
                f"{name} should have shards of all its {shape[0]} rows and {shape[1]} columns. Received none of "
                f"rows {row_edges[i]} to {row_edges[i + 1] - 1}, "
                f"columns {column_edges[j]} to {column_edges[j + 1] - 1}."
            )


def _described(shard: Shard) -> str:
    rows, columns = shard.rows, shard.columns
    return (
        f"rows {rows.start} to {rows.stop - 1}, columns {columns.start} to {columns.stop - 1} "
        f"on rank {shard.rank}"
    )


def _edges(size: int, parts: Sequence[range]) -> list[int]:
    return sorted({0, size, *(edge for part in parts if part for edge in (part.start, part.stop))})


def _cells(edges: Sequence[int], part: range) -> range:
    if not part:
        return range(0)
    return range(bisect_left(edges, part.start), bisect_left(edges, part.stop))


def _whole(shape: tuple[int, int], rank: int) -> Shard:
    return Shard(rank, range(shape[0]), range(shape[1]))


def _parts(total: int, sizes: Sequence[int], what: str) -> list[range]:
    if sum(sizes) < total:
        raise ValueError(
            f"`sizes` should have room for {total} {what}. Received {list(sizes)}, {sum(sizes)} in all."
        )
    parts, start = [], 0
    for size in sizes:
        stop = min(start + size, total)
        parts.append(range(start, stop))
        start = stop
    return parts


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
