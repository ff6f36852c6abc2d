"""Placing tables, in plain numbers: what each way to place one costs, and where its parts may go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

__all__ = [
    "Candidate",
    "Choice",
    "Counts",
    "Load",
    "Part",
    "Problem",
    "Score",
    "SharedNs",
    "Unit",
    "nothing_shared",
    "score_of",
]

# Nanoseconds of a step, nanoseconds of all ranks, bytes of the fullest rank: less is better, in this order. A step
# takes as long as the rank that computes longest and the one that exchanges longest: all wait for them in between; the
# share of each of what takes all ranks alike; and what tables share.
# Whole numbers, so that sums do not depend on the order in which they are added up.
Score = tuple[int, int, int]

# What a way has of each kind of thing that takes time once, however many tables have it; and of which tables together.
Counts = tuple[str, tuple[int, ...]]
# Tables that are counted together, what all of them have -> nanoseconds; where there is more, never less.
SharedNs = Callable[[str, tuple[int, ...]], int]


def nothing_shared(group: str, counts: tuple[int, ...]) -> int:
    """Return 0: tables share nothing."""
    return 0


@dataclass(frozen=True)
class Part:
    """A part of a table.

    Attributes:
        ns: nanoseconds a step, of the rank that has it.
        hbm: bytes in the memory of the accelerator.
        ddr: in that of the host.
        ssd: on its disk.
        exchange_ns: those of ``ns`` in which it is exchanged.
        alike_ns: more of all ranks together, which take each an equal share.
    """

    ns: int
    hbm: int
    ddr: int
    ssd: int = 0
    exchange_ns: int = 0
    alike_ns: int = 0

    def __add__(self, other: Part) -> Part:
        return Part(
            self.ns + other.ns,
            self.hbm + other.hbm,
            self.ddr + other.ddr,
            self.ssd + other.ssd,
            self.exchange_ns + other.exchange_ns,
            self.alike_ns + other.alike_ns,
        )

    @property
    def all_ns(self) -> int:
        """Nanoseconds of all ranks."""
        return self.ns + self.alike_ns

    @property
    def num_bytes(self) -> int:
        """In both memories; what is on disk does not count."""
        return self.hbm + self.ddr


@dataclass(frozen=True)
class Unit:
    """Parts that go together, and the ranks that they can go to.

    Attributes:
        parts: of a table.
        seats: each a rank for each of the parts; one seat is to be taken.
        is_own: whether these are no parts of a table, but what each rank has for its own batch.
    """

    parts: tuple[Part, ...]
    seats: tuple[tuple[int, ...], ...]
    is_own: bool = False


@dataclass(frozen=True)
class Candidate:
    """One way to place a table, or several that go together.

    Attributes:
        units: each takes a seat of its own.
        label: which it is, for whoever asks.
        shares: what it has that tables share, if all units are on one seat.
        shares_apart: the same if they are not; no less of anything.
    """

    units: tuple[Unit, ...]
    label: int = 0
    shares: tuple[Counts, ...] = ()
    shares_apart: tuple[Counts, ...] = ()

    @cached_property
    def total(self) -> Part:
        """All parts together."""
        parts = [part for unit in self.units for part in unit.parts]
        return Part(
            sum(part.ns for part in parts),
            sum(part.hbm for part in parts),
            sum(part.ddr for part in parts),
            sum(part.ssd for part in parts),
            sum(part.exchange_ns for part in parts),
            sum(part.alike_ns for part in parts),
        )

    @cached_property
    def largest(self) -> int:
        """The bytes of the largest part."""
        return max((part.num_bytes for unit in self.units for part in unit.parts), default=0)


@dataclass(frozen=True)
class Choice:
    """What was chosen for a table: a way, and for each of its units a seat."""

    candidate: Candidate
    seats: tuple[tuple[int, ...], ...]

    @property
    def table_seats(self) -> list[tuple[int, ...]]:
        """The seats of parts of the table."""
        pairs = zip(self.candidate.units, self.seats, strict=True)
        return [seat for unit, seat in pairs if not unit.is_own]

    @property
    def shares(self) -> tuple[Counts, ...]:
        """What it has that tables share."""
        is_apart = len(set(self.table_seats)) > 1
        return self.candidate.shares_apart if is_apart else self.candidate.shares


@dataclass(frozen=True)
class Problem:
    """What is to be placed where.

    Attributes:
        items: for each table its ways.
        room: bytes of each rank, as a part that takes no time.
        shared_ns: what a step takes for what tables share. Default: nothing.
    """

    items: tuple[tuple[Candidate, ...], ...]
    room: tuple[Part, ...]
    shared_ns: SharedNs = nothing_shared

    @property
    def world_size(self) -> int:
        """How many ranks there are."""
        return len(self.room)


class Load:
    """What each rank has so far.

    Args:
        room: bytes of each rank.
        shared_ns: what a step takes for what tables share. Default: nothing.
    """

    def __init__(self, room: Sequence[Part], shared_ns: SharedNs = nothing_shared) -> None:
        self.room = room
        self._of_shared = shared_ns
        self._shared: dict[str, tuple[int, ...]] = {}
        self.shared_ns = 0
        self.ns = [0] * len(room)
        self.exchange_ns = [0] * len(room)
        self.alike_ns = 0
        self.hbm = [0] * len(room)
        self.ddr = [0] * len(room)
        self.ssd = [0] * len(room)

    def fits(self, unit: Unit, seat: Sequence[int], limit: int | None = None) -> bool:
        """Say whether there is room for a unit, and time below a limit."""
        for part, rank in zip(unit.parts, seat, strict=True):
            room = self.room[rank]
            if (
                self.ddr[rank] + part.ddr > room.ddr
                or self.hbm[rank] + part.hbm > room.hbm
                or self.ssd[rank] + part.ssd > room.ssd
                or (limit is not None and self.ns[rank] + part.ns > limit)
            ):
                return False
        return True

    def add(self, unit: Unit, seat: Sequence[int], sign: int = 1) -> None:
        """Take a unit, or give it back with ``sign=-1``."""
        for part, rank in zip(unit.parts, seat, strict=True):
            self.ns[rank] += sign * part.ns
            self.exchange_ns[rank] += sign * part.exchange_ns
            self.alike_ns += sign * part.alike_ns
            self.hbm[rank] += sign * part.hbm
            self.ddr[rank] += sign * part.ddr
            self.ssd[rank] += sign * part.ssd

    def add_choice(self, choice: Choice, sign: int = 1) -> None:
        """Take all units of a choice, or give them back."""
        for unit, seat in zip(choice.candidate.units, choice.seats, strict=True):
            self.add(unit, seat, sign)
        self.share(choice.shares, sign)

    def share(self, shares: Iterable[Counts], sign: int = 1) -> None:
        """Count what tables share, or no longer with ``sign=-1``."""
        for group, counts in shares:
            before = self._shared.get(group)
            after = tuple(
                a + sign * b for a, b in zip(before or (0,) * len(counts), counts, strict=True)
            )
            self._shared[group] = after
            self.shared_ns += self._of_shared(group, after)
            if before is not None:
                self.shared_ns -= self._of_shared(group, before)

    def num_bytes(self, rank: int) -> int:
        """Return the bytes that a rank has."""
        return self.hbm[rank] + self.ddr[rank]

    @property
    def score(self) -> Score:
        """How good this is."""
        most = max(map(self.num_bytes, range(len(self.ns))), default=0)
        exchange = max(self.exchange_ns, default=0)
        compute = max(map(int.__sub__, self.ns, self.exchange_ns), default=0)
        alike = -(-self.alike_ns // max(len(self.ns), 1))
        step = compute + exchange + alike + self.shared_ns
        return step, sum(self.ns) + self.alike_ns, most


def score_of(problem: Problem, choices: Sequence[Choice]) -> Score:
    """Return how good it is to place the tables so."""
    load = Load(problem.room, problem.shared_ns)
    for choice in choices:
        load.add_choice(choice)
    return load.score
