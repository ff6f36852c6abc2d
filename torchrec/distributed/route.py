"""Who sends what to whom in a step of one collection: all of it that does not change from step to step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torchrec.distributed.placement import Band, TablePlacement

__all__ = ["Columns", "Lane", "Route", "Slot"]

_MOST_COLUMNS = 64


@dataclass(frozen=True)
class Slot:
    """One feature looked up in one table, in the order of the unsharded output.

    Attributes:
        feature: its name.
        table: number of the table.
        dim: columns of the table.
        mean: whether what is looked up for a bag is averaged.
    """

    feature: str
    table: int
    dim: int
    mean: bool = False


@dataclass(frozen=True)
class Lane:
    """One slot and one band of its table: the ids of one kind that travel together.

    Attributes:
        number: position among all lanes.
        slot: number of the slot.
        band: of the table.
    """

    number: int
    slot: int
    band: Band

    @property
    def name(self) -> str:
        """What stands for it among the features of a rank's own tables."""
        return str(self.number)


@dataclass(frozen=True)
class Piece:
    """Columns of what a rank sends back, and where they belong.

    Attributes:
        rank: that sends them.
        source: the first column, of what it sends.
        target: the first column, of the output.
        width: how many.
        adds: whether ranks before send a part of them as well.
    """

    rank: int
    source: int
    target: int
    width: int
    adds: bool


@dataclass(frozen=True)
class Columns:
    """How pooled outputs are put together, where some slots are pooled by who has their rows.

    Attributes:
        widths: of what each rank sends, in columns.
        pieces: of the output, in order of ranks: those of a column add up.
        width: of the output.
        starts: column of the output where each slot begins that is pooled so, by number.
    """

    widths: list[int]
    pieces: list[Piece]
    width: int
    starts: Mapping[int, int]


class Route:
    """The lanes of a collection and which ranks take part in each.

    Args:
        slots: what is looked up.
        placements: of the tables.
        world_size: W.
    """

    def __init__(
        self, slots: Sequence[Slot], placements: Sequence[TablePlacement], world_size: int
    ) -> None:
        self.slots = list(slots)
        self.placements = list(placements)
        self.world_size = world_size
        self.lanes: list[Lane] = []
        self.lanes_of_slot: list[list[Lane]] = []
        for s, slot in enumerate(slots):
            bands = placements[slot.table].bands
            first = len(self.lanes)
            self.lanes += [Lane(first + b, s, band) for b, band in enumerate(bands)]
            self.lanes_of_slot.append(self.lanes[first:])
        self.lanes_of_rank = [
            [lane for lane in self.lanes if rank in lane.band.ranks] for rank in range(world_size)
        ]
        # Slots whose rows lie in several places: only these can be looked up in two ways.
        self.divided = [s for s, lanes in enumerate(self.lanes_of_slot) if len(lanes) > 1]
        self._columns: dict[tuple[bool, ...], Columns] = {}

    @cached_property
    def bands(self) -> list[int]:
        """The bands as `route_rows` takes them."""
        numbers: list[int] = []
        for lane in self.lanes:
            rows = lane.band.rows
            numbers += [lane.slot, rows.start, rows.stop, lane.band.base]
        return numbers

    def block_columns(self, lane: Lane, rank: int) -> Sequence[range]:
        """Return the columns of the table that a rank holds for a lane."""
        block = self.placements[self.slots[lane.slot].table].block(rank)
        return () if block is None else block.columns

    def width_of(self, lane: Lane, rank: int) -> int:
        """Return how many columns a rank sends back for a lane."""
        return sum(map(len, self.block_columns(lane, rank)))

    def columns_of(self, by_rows: tuple[bool, ...]) -> Columns:
        """Return how the output of the slots is put together that are not looked up by rows."""
        known = self._columns.get(by_rows)
        if known is None:
            if len(self._columns) >= _MOST_COLUMNS:  # slots may be looked up in ever new ways
                self._columns.clear()
            known = self._columns[by_rows] = self._new_columns(by_rows)
        return known

    def _new_columns(self, by_rows: tuple[bool, ...]) -> Columns:
        starts, width = {}, 0
        for s, slot in enumerate(self.slots):
            if not by_rows[s]:
                starts[s] = width
                width += slot.dim
        widths, pieces = [], []
        found = [False] * width  # of each column, whether a rank sends it
        for rank, lanes in enumerate(self.lanes_of_rank):
            at = 0
            for lane in lanes:
                if by_rows[lane.slot]:
                    continue
                for columns in self.block_columns(lane, rank):
                    for offset in range(len(columns)):
                        target = starts[lane.slot] + columns.start + offset
                        pieces.append(Piece(rank, at + offset, target, 1, found[target]))
                        found[target] = True
                    at += len(columns)
            widths.append(at)
        return Columns(widths, _joined(pieces), width, starts)


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Make one piece of neighbours that stay neighbours."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.rank == piece.rank
            and last.source + last.width == piece.source
            and last.target + last.width == piece.target
            and last.adds == piece.adds
        ):
            joined[-1] = replace(last, width=last.width + piece.width)
        else:
            joined.append(piece)
    return joined
