"""What a sharded table looks like from outside: a tensor of which this rank has some parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from torchrec.distributed._private import (
    EnumerableShardingSpec,
    Shard,
    ShardedTensorMetadata,
    ShardMetadata,
    shell_of,
)
from torchrec.distributed._private import TensorProperties as ShardedProperties
from torchrec.distributed.placement import Block, TablePlacement

__all__ = ["ShardedTable", "load_block", "sharded_table"]


def _part(block: Block, tensor: Tensor, rows: range, columns: range) -> Tensor:
    """Return the part of a block that one shard of it is."""
    row, column = block.row_of(rows), block.column_of(columns)
    return tensor[row : row + len(rows), column : column + len(columns)]


class ShardedTable(Tensor):
    """A table of which this rank has some parts, or none: what ``state_dict()`` shows of it.

    It has the size of the whole, and no memory but that of the parts, which are the very weights. It
    saves and loads through `torch.distributed.checkpoint`, under whatever plan the checkpoint is read.
    """

    _parts: list[Shard]
    _metadata: ShardedTensorMetadata

    @staticmethod
    def __new__(
        cls, parts: list[Shard], metadata: ShardedTensorMetadata, like: Tensor
    ) -> ShardedTable:
        """Return the whole that some parts are of; ``like`` has its type and device."""
        table = shell_of(cls, like, metadata.size)
        table._parts, table._metadata = parts, metadata
        return table

    def local_shards(self) -> list[Shard]:
        """Return the parts of this rank, each with its offsets and sizes."""
        return self._parts

    def metadata(self) -> ShardedTensorMetadata:
        """Return where all parts are, those of other ranks too."""
        return self._metadata

    def sharding_spec(self) -> EnumerableShardingSpec:
        """Return where all parts are, as plans have it."""
        return EnumerableShardingSpec(self._metadata.shards_metadata)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Refuse to compute with a whole that is not here."""
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise TypeError(
            f"{func.__name__} should be given the parts of a sharded table, `local_shards()`: the whole "
            "is on no rank. Received the whole."
        )

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Return the size of the whole, and what is here."""
        parts = [(s.metadata.shard_offsets, s.metadata.shard_sizes) for s in self._parts]
        return f"ShardedTable(size={tuple(self.shape)}, local shards (offsets, sizes)={parts})"

    # What torch.distributed.checkpoint asks of a tensor that is not of its own kinds.

    def __create_write_items__(self, fqn: str, _: object) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=chunk,
                    properties=TensorProperties.create_from_tensor(shard.tensor),
                    size=torch.Size(self.shape),
                ),
            )
            for shard, chunk in zip(self._parts, self.__create_chunk_list__(), strict=True)
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [
            ChunkStorageMetadata(
                torch.Size(shard.metadata.shard_offsets), torch.Size(shard.metadata.shard_sizes)
            )
            for shard in self._parts
        ]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        for shard in self._parts:
            if torch.Size(shard.metadata.shard_offsets) == index.offset:
                return shard.tensor
        raise ValueError(f"A sharded table should have a part at {index.offset} on this rank.")


def sharded_table(
    tensor: Tensor,
    shape: tuple[int, int],
    placement: TablePlacement,
    rank: int,
) -> ShardedTable:
    """Return the whole of which a rank's block is a part; the memory is shared, and nothing is sent.

    Args:
        tensor: the block, ``(rows, columns)``; of a rank that has none, empty.
        shape: of the whole.
        placement: of the table.
        rank: which.
    """
    block = placement.block(rank)
    metadata = [
        ShardMetadata(
            [shard.rows.start, shard.columns.start],
            [len(shard.rows), len(shard.columns)],
            f"rank:{shard.rank}/{tensor.device}",
        )
        for shard in placement.shards
    ]
    tensor = tensor.detach()
    mine = [
        Shard(_part(block, tensor, shard.rows, shard.columns), known)
        for shard, known in zip(placement.shards, metadata, strict=True)
        if shard.rank == rank and block is not None and shard.rows and shard.columns
    ]
    whole = ShardedTensorMetadata(
        shards_metadata=metadata,
        size=torch.Size(shape),
        tensor_properties=ShardedProperties(dtype=tensor.dtype),
    )
    return ShardedTable(mine, whole, tensor)


def load_block(
    name: str, block: Block, tensor: Tensor, value: object, whole: tuple[int, int]
) -> None:
    """Write a saved table into a rank's block of it.

    Args:
        name: of the table, for errors.
        block: the rows and columns of the block.
        tensor: the block, written to.
        value: the table, as a tensor of the whole, or as parts of it that are at hand.
        whole: rows and columns of the table.

    Raises:
        ValueError: if the shape is another, or the parts at hand do not have all of the block.
    """
    if not isinstance(value, Tensor) or tuple(value.shape) != whole:
        found = tuple(value.shape) if isinstance(value, Tensor) else value
        raise ValueError(f"Table '{name}' should have the shape {whole}. Received {found!r}.")
    parts: Sequence[tuple[range, range, Tensor]]
    local_shards = getattr(value, "local_shards", None)  # torch's ShardedTensor has them as well
    if local_shards is not None:
        parts = [
            (*_ranges(shard.metadata.shard_offsets, shard.metadata.shard_sizes), shard.tensor)
            for shard in local_shards()
        ]
    else:
        parts = [(range(whole[0]), range(whole[1]), value)]
    missing = block.num_rows * block.num_columns
    for rows in block.rows:
        for columns in block.columns:
            target = _part(block, tensor, rows, columns)
            for have_rows, have_columns, source in parts:
                r, c = _common(rows, have_rows), _common(columns, have_columns)
                if r and c:
                    there = target[r.start - rows.start : r.stop - rows.start]
                    here = source[r.start - have_rows.start : r.stop - have_rows.start]
                    there[:, c.start - columns.start : c.stop - columns.start] = here[
                        :, c.start - have_columns.start : c.stop - have_columns.start
                    ]
                    missing -= len(r) * len(c)
    if missing:
        raise ValueError(
            f"Table '{name}' should have all rows and columns of this rank's part in what is loaded: "
            "to load what was saved under another plan, use torch.distributed.checkpoint. "
            f"Received {missing} weights too few."
        )


def _ranges(offsets: Sequence[int], sizes: Sequence[int]) -> tuple[range, range]:
    rows, columns = (range(a, a + n) for a, n in zip(offsets, sizes, strict=True))
    return rows, columns


def _common(one: range, other: range) -> range:
    return range(max(one.start, other.start), min(one.stop, other.stop))
