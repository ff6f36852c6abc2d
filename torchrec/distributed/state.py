"""What a sharded table looks like from outside: a tensor of which this rank has some parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
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
    ShardedTensor,
    ShardedTensorMetadata,
    ShardMetadata,
    keeps_sizes,
    placement_of,
    shell_of,
)
from torchrec.distributed._private import TensorProperties as ShardedProperties
from torchrec.distributed.column_states import mean_of_columns, repeated, whole_on_holders
from torchrec.distributed.parts import block_parts, fill_parts, part_at
from torchrec.distributed.placement import Block, TablePlacement
from torchrec.distributed.wire import Wire
from torchrec.process_groups.lost_ranks import lost_ranks_named

__all__ = ["ShardedTable", "sharded_table", "step_elsewhere"]


class ShardedTable(Tensor):
    """A table, or its state, of which this rank has some parts, or none: what ``state_dict()`` shows of it.

    It has the size of the whole, and no memory but that of the parts, which are the very weights. It
    saves and loads through `torch.distributed.checkpoint`, under whatever plan the checkpoint is read;
    copies of it have copies of the parts.

    Args:
        name: of what it is, for errors.
        parts: of this rank.
        metadata: where the parts of all ranks are.
        like: has its type and device.
        wire: the ranks; None: there is nobody to ask for other parts.
    """

    _name: str
    _parts: list[Shard]
    _metadata: ShardedTensorMetadata
    _wire: Wire | None

    @staticmethod
    def __new__(
        cls,
        name: str,
        parts: list[Shard],
        metadata: ShardedTensorMetadata,
        like: Tensor,
        wire: Wire | None,
    ) -> ShardedTable:
        """Return the whole that some parts are of."""
        table = shell_of(cls, like, metadata.size)
        table._name, table._parts, table._metadata, table._wire = name, parts, metadata, wire
        return table

    @property
    def rank(self) -> int:
        """Which of the ranks that share the table this one is."""
        return 0 if self._wire is None else self._wire.rank

    def local_shards(self) -> list[Shard]:
        """Return the parts of this rank, each with its offsets and sizes."""
        return self._parts

    def metadata(self) -> ShardedTensorMetadata:
        """Return where all parts are, those of other ranks too; of one that several have, the first rank."""
        return self._metadata

    def sharding_spec(self) -> EnumerableShardingSpec:
        """Return where all parts are, as plans have it."""
        return EnumerableShardingSpec(self._metadata.shards_metadata)

    def copy_(self, src: Tensor, non_blocking: bool = False) -> ShardedTable:
        """Write this rank's parts of a tensor of the same size.

        Args:
            src: the whole, or a sharded one of which this rank has all that it needs.
            non_blocking: without effect.
        """
        targets = [part_at(shard.metadata.shard_offsets, shard.tensor) for shard in self._parts]
        with torch.no_grad():
            fill_parts(self._name, targets, src, tuple(self.shape))
        return self

    @property
    def named(self) -> str:
        """What it is called within a sentence."""
        return self._name[:1].lower() + self._name[1:]

    def gather(  # type: ignore[override]
        self, dst: int = 0, out: Tensor | None = None
    ) -> None:
        """Bring the whole to one rank; all ranks call this.

        Args:
            dst: which rank.
            out: there, written to, of the size of the whole; elsewhere None.
        """
        rank = self.rank
        if rank == dst and (out is None or out.shape != self.shape):
            raise ValueError(
                f"`out` should be a tensor of the shape {tuple(self.shape)} on rank {dst}. "
                f"Received {None if out is None else tuple(out.shape)}."
            )
        if self._wire is None:
            if out is not None:
                out.copy_(self)
            return
        self._wire.begin(f"`gather()` of {self.named}").numbers()
        with lost_ranks_named(self._wire.group) as group:
            for known in self._shards_with_memory():
                there = placement_of(known)[0]
                mine = self._tensor_at(known) if rank == there else None
                if rank == dst and out is not None:
                    part = mine
                    if part is None:
                        part = torch.empty(known.shard_sizes, dtype=self.dtype)
                        dist.recv(part, group=group, group_src=there)
                    _region(out, known).copy_(part)
                elif mine is not None:
                    dist.send(mine.contiguous(), group=group, group_dst=dst)

    def full_tensor(self) -> Tensor:
        """Return the whole, on every rank; all ranks call this."""
        whole = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        if self._wire is None:
            return whole.copy_(self)
        for known in self._shards_with_memory():
            there, part = placement_of(known)[0], whole.new_empty(known.shard_sizes)
            if self._wire.rank == there:
                part = self._tensor_at(known).contiguous()
            self._wire.broadcast(part, there, f"`full_tensor()` of {self.named}")
            _region(whole, known).copy_(part)
        return whole

    def split_by_columns(self, count: int) -> ShardedTable:
        """Return one number a row as the API keeps it where columns are split, to be read from a checkpoint.

        Args:
            count: of the parts of columns.

        Returns:
            ``(E * count,)``, with memory of its own, of which `mean_of_columns` is the way back.
        """
        rows = self.shape[0]
        parts = [
            Shard(shard.tensor.squeeze(1).clone(), known)
            for shard in self._parts
            for known in repeated([shard.metadata], rows, count)
        ]
        known = repeated(self._metadata.shards_metadata, rows, count)
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        return ShardedTable(
            self._name, parts, _whole(known, (rows * count,), self), like, self._wire
        )

    def mean_of_columns(self, value: Tensor) -> ShardedTable:
        """Return one number a row, of numbers that the API keeps for each part of the columns.

        Args:
            value: ``(E * count,)``: all of it, or as `split_by_columns` returns it; or a `ShardedTensor`: then all
                ranks that have some of it call this.
        """
        if isinstance(value, ShardedTensor) and self._wire is not None:
            value = whole_on_holders(value, self._wire)
        parts = []
        for shard in self._parts:
            first, size = shard.metadata.shard_offsets[0], shard.metadata.shard_sizes[0]
            rows = range(first, first + size)
            mean = mean_of_columns(self._name, rows, self.shape[0], value)
            parts.append(Shard(mean, shard.metadata))
        like = torch.empty(0, dtype=value.dtype, device=self.device)
        return ShardedTable(self._name, parts, self._metadata, like, self._wire)

    def shared_number(self, value: Tensor) -> Tensor:
        """Return a number that the ranks with parts have alike, a step count say, on all; all ranks call this.

        Args:
            value: the number; without effect on a rank that has no part.
        """
        if self._wire is None:
            return value.clone()
        holder = placement_of(self._shards_with_memory()[0])[0]
        number = torch.zeros((), dtype=value.dtype)
        if self._wire.rank == holder:
            number.copy_(value)
        return self._wire.broadcast(number, holder, f"a number of {self.named}")

    def _shards_with_memory(self) -> list[ShardMetadata]:
        """Return the parts that there are; a plan for more ranks than rows has empty ones, which nobody has."""
        return [known for known in self._metadata.shards_metadata if all(known.shard_sizes)]

    def _tensor_at(self, known: ShardMetadata) -> Tensor:
        return self.__get_tensor_shard__(MetadataIndex("", torch.Size(known.shard_offsets)))

    def _map(self, function: Callable[[Tensor], Tensor]) -> ShardedTable:
        """Return the whole of which this rank has other parts instead."""
        like = function(torch.empty(0, dtype=self.dtype, device=self.device))

        def moved(known: ShardMetadata) -> ShardMetadata:
            place = f"rank:{placement_of(known)[0]}/{like.device}"
            return ShardMetadata(known.shard_offsets, known.shard_sizes, place)

        parts = [Shard(function(shard.tensor), moved(shard.metadata)) for shard in self._parts]
        shards = [moved(known) for known in self._metadata.shards_metadata]
        whole = _whole(shards, tuple(self.shape), like)
        return ShardedTable(self._name, parts, whole, like, self._wire)

    def _as_vector(self) -> ShardedTable:
        """Return one number a row as a vector, in the same memory."""

        def without_columns(known: ShardMetadata) -> ShardMetadata:
            return ShardMetadata(known.shard_offsets[:1], known.shard_sizes[:1], known.placement)

        parts = [Shard(s.tensor.squeeze(1), without_columns(s.metadata)) for s in self._parts]
        shards = [without_columns(known) for known in self._metadata.shards_metadata]
        whole = _whole(shards, tuple(self.shape[:1]), self)
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        return ShardedTable(self._name, parts, whole, like, self._wire)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do with each part what keeps sizes; refuse to compute with a whole that is not here."""
        kwargs = kwargs or {}
        if func is torch.ops.aten.detach.default:
            return args[0]
        if keeps_sizes(func):
            return args[0]._map(partial(func, **kwargs))
        if func is torch.ops.aten.lerp_.Scalar and _have_same_parts(args[0], args[1]):
            for mine, other in zip(args[0]._parts, args[1]._parts, strict=True):
                mine.tensor.lerp_(other.tensor, args[2])
            return args[0]
        if func is torch.ops.aten.new_empty.default and tuple(args[1]) == tuple(args[0].shape):
            return args[0]._map(partial(torch.empty_like, **kwargs))
        if func is torch.ops.aten.squeeze.dim and args[0].shape[1:] == (1,) and args[1] in (1, -1):
            return args[0]._as_vector()
        if func is torch.ops.aten.copy_.default and isinstance(args[1], ShardedTable):
            whole, source = args[0], args[1]
            fill_parts(source._name, [part_at((0,) * whole.dim(), whole)], source, whole.shape)
            return whole
        raise TypeError(
            f"{func.__name__} should be given the parts of a sharded table, `local_shards()`: the whole "
            "is on no rank. Received the whole."
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> ShardedTable:
        """Return one with copies of the parts."""
        copied = self._map(torch.clone)
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, proto: object) -> Any:
        """Leave out the ranks, which are others where it is read."""
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        return ShardedTable, (self._name, self._parts, self._metadata, like, None)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Return the size of the whole, and what is here."""
        parts = [(s.metadata.shard_offsets, s.metadata.shard_sizes) for s in self._parts]
        return f"ShardedTable(size={tuple(self.shape)}, local shards (offsets, sizes)={parts})"

    # What torch.distributed.checkpoint asks of a tensor that is not of its own kinds.

    def __create_write_items__(self, fqn: str, _: object) -> list[WriteItem]:
        # Of a part that several ranks have, which are all alike, one writes: the one in the metadata.
        written = {
            (tuple(known.shard_offsets), placement_of(known)[0])
            for known in self._metadata.shards_metadata
        }
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
            if (tuple(chunk.offsets), placement_of(shard.metadata)[0]) in written
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
        raise ValueError(f"{self._name} should have a part at {index.offset} on this rank.")


def _have_same_parts(one: ShardedTable, other: object) -> bool:
    """Return whether two tables have the same rows and columns on this rank."""
    if not isinstance(other, ShardedTable):
        return False
    places = [
        [
            (shard.metadata.shard_offsets, shard.metadata.shard_sizes)
            for shard in each.local_shards()
        ]
        for each in (one, other)
    ]
    return one.shape == other.shape and places[0] == places[1]


def _region(whole: Tensor, known: ShardMetadata) -> Tensor:
    for axis, (offset, size) in enumerate(zip(known.shard_offsets, known.shard_sizes, strict=True)):
        whole = whole.narrow(axis, offset, size)
    return whole


def sharded_table(
    name: str,
    tensor: Tensor,
    shape: tuple[int, int],
    placement: TablePlacement,
    rank: int,
    wire: Wire | None,
    is_per_row: bool = False,
) -> ShardedTable:
    """Return the whole of which a rank's block is a part; the memory is shared, and nothing is sent.

    Args:
        name: of what it is, for errors.
        tensor: the block, ``(rows, columns)``; of a rank that has none, empty.
        shape: of the whole.
        placement: of the table.
        rank: which.
        wire: the ranks; None: there is one.
        is_per_row: whether it is a state of one number a row, ``(rows, 1)``, of which all ranks have
            copies that have columns of the row.
    """
    block, tensor = placement.block(rank), tensor.detach()
    if is_per_row:
        # The first of the ranks that have a row's number writes it.
        known = [
            _metadata_of(band.ranks[0], band.rows, range(1), tensor) for band in placement.bands
        ]
        block = None if block is None else Block(block.rows, (range(1),))
    else:
        known = [_metadata_of(s.rank, s.rows, s.columns, tensor) for s in placement.shards]
    mine = [
        Shard(part.tensor, _metadata_of(rank, part.rows, part.columns, tensor))
        for part in (() if block is None else block_parts(block, tensor))
    ]
    return ShardedTable(name, mine, _whole(known, shape, tensor), tensor, wire)


def step_elsewhere(name: str, step: Tensor, wire: Wire | None) -> ShardedTable:
    """Return the step count of a table that this rank has nothing of: it is known on other ranks.

    Args:
        name: of what it is, for errors.
        step: has its type.
        wire: the ranks.
    """
    return ShardedTable(name, [], _whole([], (), step), step, wire)


def _metadata_of(rank: int, rows: range, columns: range, tensor: Tensor) -> ShardMetadata:
    return ShardMetadata(
        [rows.start, columns.start], [len(rows), len(columns)], f"rank:{rank}/{tensor.device}"
    )


def _whole(
    shards: list[ShardMetadata], shape: tuple[int, ...], tensor: Tensor
) -> ShardedTensorMetadata:
    return ShardedTensorMetadata(
        shards_metadata=shards,
        size=torch.Size(shape),
        tensor_properties=ShardedProperties(dtype=tensor.dtype),
    )
