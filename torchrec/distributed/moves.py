"""Tables that move: from the parts that ranks have under one plan to those under another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from torchrec.distributed._private import placement_of
from torchrec.distributed.parts import Part, common, cut, part_at
from torchrec.distributed.placement import Block
from torchrec.distributed.state import ShardedTable
from torchrec.distributed.wire import Wire

__all__ = ["move_parts"]


class _Move(NamedTuple):
    """Rows and columns that one rank has, and another gets; or the same one, elsewhere in its memory."""

    source: int
    target: int
    rows: range
    columns: range


def move_parts(
    source: ShardedTable, target: ShardedTable, blocks: Sequence[Block | None], wire: Wire | None
) -> None:
    """Write what ranks have of a table into the parts that they have of it under another plan; all ranks call this.

    Each number is sent once to each rank that gets it; none holds more than its own parts, and what is sent.

    Args:
        source: the table under the plan that was.
        target: under the plan that is to be, written to.
        blocks: what each rank has of it there.
        wire: the ranks; None: there is one.

    Raises:
        Exception: on all ranks, if one has no memory for what it sends or gets, say.
    """
    moves, ranks = list(_moves(source, blocks)), range(len(blocks))
    sent = [m for rank in ranks for m in moves if (m.source, m.target) == (target.rank, rank)]
    due = [m for rank in ranks for m in moves if (m.source, m.target) == (rank, target.rank)]
    what = f"the move of {target.named}"
    if wire is None:
        _write(target, due, _packed(source, sent, target, None))
        return
    numbers = [[_size(m) for m in sent if m.target == rank] for rank in ranks]
    expected = [[_size(m) for m in due if m.source == rank] for rank in ranks]
    # What may fail on one rank comes before, or after, what all of them do.
    message, received = wire.attempt(
        lambda: (_packed(source, sent, target, wire), _new(target, due)), what
    )
    wire.swap(message, list(map(sum, numbers)), list(map(sum, expected)), received)
    wire.attempt(lambda: _write(target, due, received), what)


def _new(table: ShardedTable, moves: Sequence[_Move]) -> Tensor:
    """Return memory for what moves, on its way."""
    return torch.empty(sum(map(_size, moves)), dtype=table.dtype, device=table.device)


def _packed(
    source: ShardedTable, moves: Sequence[_Move], target: ShardedTable, wire: Wire | None
) -> Tensor:
    """Return what this rank sends, in one piece."""
    size = sum(map(_size, moves))
    like = torch.empty(0, dtype=target.dtype, device=target.device)
    message = _new(target, moves) if wire is None else wire.message(size, like)
    parts = _parts(source)
    for move, there in zip(moves, message.split(list(map(_size, moves))), strict=True):
        found = _found(parts, move)
        there.view_as(found).copy_(found)
    return message


def _write(target: ShardedTable, moves: Sequence[_Move], values: Tensor) -> None:
    """Write what has come where it belongs."""
    parts = _parts(target)
    for move, found in zip(moves, values.split(list(map(_size, moves))), strict=True):
        there = _found(parts, move)
        there.copy_(found.view_as(there))


def _parts(table: ShardedTable) -> list[Part]:
    return [part_at(shard.metadata.shard_offsets, shard.tensor) for shard in table.local_shards()]


def _moves(source: ShardedTable, blocks: Sequence[Block | None]) -> Iterator[_Move]:
    """Yield what goes where, in an order that is the same on all ranks."""
    for known in source.metadata().shards_metadata:
        rank, _ = placement_of(known)
        rows, columns = (
            range(start, start + size)
            for start, size in zip(known.shard_offsets, known.shard_sizes, strict=True)
        )
        for target, block in enumerate(blocks):
            for there in () if block is None else product(block.rows, block.columns):
                both = common(rows, there[0]), common(columns, there[1])
                if rank is not None and all(both):
                    yield _Move(rank, target, *both)


def _size(move: _Move) -> int:
    return len(move.rows) * len(move.columns)


def _found(parts: Sequence[Part], move: _Move) -> Tensor:
    """Return what moves, in the part of this rank that it is in."""
    (part,) = (
        each
        for each in parts
        if common(each.rows, move.rows) == move.rows
        and common(each.columns, move.columns) == move.columns
    )
    return cut(part, move.rows, move.columns)
