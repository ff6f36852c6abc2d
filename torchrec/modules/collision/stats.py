"""What a map from ids to rows has been doing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass


@dataclass
class Counters:
    """Numbers that a map adds to; see `ManagedCollisionStats`."""

    ids: int = 0
    hits: int = 0
    inserted: int = 0
    evicted: int = 0
    admitted: int = 0
    rejected: int = 0


@dataclass(frozen=True)
class ManagedCollisionStats:
    """How full a map is, and what it has done since it was last asked.

    Attributes:
        rows: rows that ids can hold.
        occupied: rows that are held now.
        ids: ids that were looked up, each time that they came.
        hits: those of them that had a row of their own.
        inserted: distinct ids that were given a row.
        evicted: distinct ids that lost theirs.
        admitted: distinct ids without a row that the admission filter let compete for one.
        rejected: distinct ids that it did not.

    Example:
        >>> print(ManagedCollisionStats(100, 80, 1000, 900, 30, 10, 45, 5))
        80 of 100 rows held, 90.0 % of 1000 ids had one, 30 inserted, 10 evicted, 5 rejected
    """

    rows: int
    occupied: int
    ids: int
    hits: int
    inserted: int
    evicted: int
    admitted: int
    rejected: int

    @staticmethod
    def of_parts(parts: Iterable[ManagedCollisionStats]) -> ManagedCollisionStats:
        """Return the numbers of several maps as those of one."""
        return ManagedCollisionStats(*map(sum, zip(*map(astuple, parts), strict=True)))

    @property
    def occupancy(self) -> float:
        """Share of the rows that are held."""
        return self.occupied / self.rows

    @property
    def hit_rate(self) -> float:
        """Share of the ids looked up that had a row of their own; NaN without any."""
        return self.hits / self.ids if self.ids else float("nan")

    @property
    def collided(self) -> int:
        """Ids looked up that shared a row: the unknown one, or one of the residual zone."""
        return self.ids - self.hits

    def __str__(self) -> str:
        return (
            f"{self.occupied} of {self.rows} rows held, {100 * self.hit_rate:.1f} % of {self.ids} "
            f"ids had one, {self.inserted} inserted, {self.evicted} evicted, "
            f"{self.rejected} rejected"
        )
