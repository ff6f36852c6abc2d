"""Where the rows of tables are, as an exchange sees it: bands of rows, and the block that a rank has of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torchrec.distributed.layout import Shard

__all__ = ["Band", "Block", "TablePlacement"]


@dataclass(frozen=True)
class Band:
    """Rows of a table that the same ranks hold.

    Attributes:
        rows: of the table.
        base: of the first of them in the blocks of these ranks.
        ranks: in order; several where columns are split.
    """

    rows: range
    base: int
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """What one rank holds of a table: some rows times some columns, each range behind the other.

    Attributes:
        rows: ranges of rows of the table.
        columns: ranges of columns of the table.
    """

    rows: tuple[range, ...]
    columns: tuple[range, ...]

    @property
    def num_rows(self) -> int:
        """Rows of the block."""
        return sum(map(len, self.rows))

    @property
    def num_columns(self) -> int:
        """Columns of the block."""
        return sum(map(len, self.columns))

    def row_of(self, rows: range) -> int:
        """Return where one of its ranges of rows begins in the block."""
        return sum(len(before) for before in self.rows[: self.rows.index(rows)])

    def column_of(self, columns: range) -> int:
        """Return where one of its ranges of columns begins in the block."""
        return sum(len(before) for before in self.columns[: self.columns.index(columns)])


class TablePlacement:
    """The shards of one table, by rank and by rows.

    Args:
        table: its name, for errors.
        shards: which tile it, some of them empty perhaps; see `torchrec.distributed.layout`.

    Raises:
        ValueError: if the shards of a rank are not some rows times some columns, or those of two ranks
            overlap in some of their rows.

    Example:
        >>> left, right = range(2), range(2, 4)
        >>> placement = TablePlacement("t", [Shard(0, range(5), left), Shard(1, range(5), right)])
        >>> placement.bands, placement.block(1)
        ([Band(rows=range(0, 5), base=0, ranks=(0, 1))], Block(rows=(range(0, 5),), columns=(range(2, 4),)))
    """

    def __init__(self, table: str, shards: Sequence[Shard]) -> None:
        self.shards = list(shards)
        shards = [shard for shard in shards if shard.rows and shard.columns]
        self._blocks = {
            rank: _block(table, rank, [shard for shard in shards if shard.rank == rank])
            for rank in sorted({shard.rank for shard in shards})
        }
        self.bands = []
        for rows in sorted({shard.rows for shard in shards}, key=lambda rows: rows.start):
            holders = [rank for rank, block in self._blocks.items() if rows in block.rows]
            bases = {self._blocks[rank].row_of(rows) for rank in holders}
            if len(bases) > 1:
                raise ValueError(
                    f"Ranks that hold the same rows of table '{table}' should hold the same other rows. "
                    f"Received {[self._blocks[rank] for rank in holders]} for the ranks {holders}."
                )
            self.bands.append(Band(rows, bases.pop(), tuple(holders)))
        for before, band in pairwise(self.bands):
            if band.rows.start < before.rows.stop:
                raise ValueError(
                    f"Ranks that hold some of the same rows of table '{table}' should hold the same ranges of "
                    f"rows. Received {before.rows} on the ranks {list(before.ranks)} and {band.rows} on the "
                    f"ranks {list(band.ranks)}."
                )

    def block(self, rank: int) -> Block | None:
        """Return what a rank holds; None: nothing."""
        return self._blocks.get(rank)

    def partners(self, rank: int) -> tuple[int, ...]:
        """Return the ranks that hold the rows that a rank holds, itself among them; none if it holds nothing."""
        block = self._blocks.get(rank)
        if block is None:
            return ()
        return tuple(r for r, other in self._blocks.items() if other.rows == block.rows)

    @property
    def splits_columns(self) -> bool:
        """Whether the columns of a row lie on several ranks."""
        return any(len(band.ranks) > 1 for band in self.bands)


def _block(table: str, rank: int, shards: Sequence[Shard]) -> Block:
    rows = tuple(sorted({shard.rows for shard in shards}, key=lambda r: r.start))
    columns = tuple(sorted({shard.columns for shard in shards}, key=lambda c: c.start))
    found = {(shard.rows, shard.columns) for shard in shards}
    if found != {(r, c) for r in rows for c in columns}:
        raise ValueError(
            f"The shards of table '{table}' on rank {rank} should be some rows times some columns. "
            f"Received {list(shards)}."
        )
    return Block(rows, columns)
