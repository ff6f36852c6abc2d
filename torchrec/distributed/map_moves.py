"""Ids that belong to other parts of a map, once its rows are divided otherwise: they move, and their rows with them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from torchrec.distributed.map_layout import MapPart
from torchrec.distributed.map_state import SavedMap
from torchrec.distributed.parts import part_at
from torchrec.distributed.state import ShardedTable
from torchrec.distributed.wire import Wire
from torchrec.modules.collision.divided_state import Strays, chosen, joined, take_in
from torchrec.modules.mc_modules import MCHManagedCollisionModule

__all__ = ["RowMoves", "settle", "with_rows_moved"]

T = TypeVar("T")
_CHUNK = 1 << 22  # bytes of rows that are sent at a time


@dataclass(frozen=True)
class RowMoves:
    """What became of ids whose rows are on other ranks than before.

    Attributes:
        old_rows: of the table, int64 ``(N,)``, distinct.
        new_rows: where the ids that held them are now.
        dropped: how many ids have lost their rows, as there was no free one where they belong.
        left: rows that an id held, and that all ids without a row of their own share now.
    """

    old_rows: Tensor
    new_rows: Tensor
    dropped: int
    left: Tensor

    def __bool__(self) -> bool:
        return bool(len(self.old_rows) or self.dropped or len(self.left))

    def __str__(self) -> str:
        return f"{len(self.old_rows)} ids moved, {self.dropped} dropped"


def settle(
    maps: Sequence[SavedMap],
    strays: Mapping[int, Strays],
    modules: Mapping[int, MCHManagedCollisionModule],
    wire: Wire | None,
) -> list[RowMoves]:
    """Give the ids of parts that belong to others to these; all ranks call this.

    Args:
        maps: that are divided.
        strays: of the parts of this rank, by number of the part.
        modules: the parts of this rank, by number.
        wire: the ranks; None: there is one.

    Returns:
        For each map, what became of them.
    """
    every = _gathered(wire, strays)
    arrived: dict[int, tuple[Tensor, Tensor]] = {}
    for saved in maps:
        found = [every[part.number] for part in saved.layout.parts if part.number in every]
        if not found:
            continue
        strays_of_map = joined(found)
        entries, waiting = saved.owners(strays_of_map)
        for p, part in enumerate(saved.layout.parts):
            if part.number in modules:
                mine = chosen(strays_of_map, entries == p, waiting == p)
                arrived[part.number] = _take_in(modules[part.number], part, mine)
    everywhere = _gathered(wire, arrived)
    return [_moves(saved, every, everywhere) for saved in maps]


def _gathered(wire: Wire | None, mine: Mapping[int, T]) -> dict[int, T]:
    """Return what all ranks know, each of its own parts."""
    of_ranks: list[Mapping[int, T]] = (
        [mine] if wire is None else wire.tell(mine, "maps that are loaded")
    )
    return {number: known for each in of_ranks for number, known in each.items()}


def _take_in(
    module: MCHManagedCollisionModule, part: MapPart, strays: Strays
) -> tuple[Tensor, Tensor]:
    """Return the rows that strays had which have one now, and these."""
    if not len(strays.rows) and not any(len(value) for value in strays.waiting.values()):
        return strays.rows, strays.rows
    metadata = {name.rpartition(".")[2]: value for name, value in strays.entries.items()}
    state, kept, rows = take_in(module.state_dict(), strays, module.ranking(metadata))
    module.load_state_dict(state)
    return strays.rows[kept], rows + part.rows.start


def _moves(
    saved: SavedMap,
    every: Mapping[int, Strays],
    everywhere: Mapping[int, tuple[Tensor, Tensor]],
) -> RowMoves:
    none = torch.zeros(0, dtype=torch.int64)
    numbers = [part.number for part in saved.layout.parts]
    strays = [every[number] for number in numbers if number in every]
    pairs = [everywhere[number] for number in numbers if number in everywhere]
    old, new = (torch.cat([none, *(pair[i] for pair in pairs)]) for i in range(2))
    dropped = sum(len(each.rows) for each in strays) - len(old)
    moves = RowMoves(old, new, dropped, torch.cat([none, *(each.left for each in strays)]))
    if dropped:
        warnings.warn(
            f"The map of table '{saved.layout.tables[0]}' is divided otherwise now: {moves}, as there was no "
            "free row where they belong.",
            stacklevel=2,
        )
    return moves


def with_rows_moved(value: Tensor, moves: RowMoves, wire: Wire | None) -> Tensor:
    """Return a table, or its state, with rows where they are now; all ranks call this.

    Args:
        value: a `ShardedTable`, of which this rank's parts are written to; or all of it, which stays as it is.
        moves: which rows.
        wire: the ranks; None: there is one.
    """
    if not isinstance(value, ShardedTable):
        moved = value.clone()
        moved[moves.new_rows] = value[moves.old_rows]
        return moved
    parts = [part_at(shard.metadata.shard_offsets, shard.tensor) for shard in value.local_shards()]
    columns = value.shape[1] if value.dim() > 1 else 1
    size = max(1, _CHUNK // max(1, columns * value.dtype.itemsize))
    writes: list[tuple[Tensor, Tensor, Tensor]] = []
    for old, new in zip(moves.old_rows.split(size), moves.new_rows.split(size), strict=True):
        whole = torch.zeros((len(old), columns), dtype=value.dtype)
        for rows, of, tensor in parts:
            here = _among(old, rows)
            whole[here, of.start : of.stop] = tensor[old[here] - rows.start]
        # Bytes that nobody has are 0, and ranks that have copies have the same ones.
        if wire is not None:
            wire.reduce(whole.view(torch.uint8), "rows of loaded maps", dist.ReduceOp.MAX)
        for rows, of, tensor in parts:
            there = _among(new, rows)
            writes.append((tensor, new[there] - rows.start, whole[there, of.start : of.stop]))
    # Only now: a row that an id has left may be the one that another comes to.
    for tensor, places, values in writes:
        tensor.index_copy_(0, places, values)
    return value


def _among(rows: Tensor, some: range) -> Tensor:
    return ((rows >= some.start) & (rows < some.stop)).nonzero()[:, 0]
