"""One table onto ranks: each of its units to the seat that is best so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torchrec.distributed.planner._problem import Candidate, Choice, Load, Unit

__all__ = ["SeatKey", "by_room", "by_time", "least_missing", "take"]

# What is placed so far, a unit, a seat for it -> less is better.
SeatKey = Callable[[Load, Unit, Sequence[int]], tuple[int, int]]


def by_time(load: Load, unit: Unit, seat: Sequence[int]) -> tuple[int, int]:
    """Of seats, the one whose slowest rank has least to do is the best; of these, the one with most room."""
    if len(seat) == 1:
        return load.ns[seat[0]] + unit.parts[0].ns, load.num_bytes(seat[0])
    pairs = list(zip(unit.parts, seat, strict=True))
    return (
        max(load.ns[rank] + part.ns for part, rank in pairs),
        max(load.num_bytes(rank) for _, rank in pairs),
    )


def by_room(load: Load, unit: Unit, seat: Sequence[int]) -> tuple[int, int]:
    """The seat with most room is the best; of these, the one whose slowest rank has least to do."""
    rooms = (load.room[rank].num_bytes - load.num_bytes(rank) for rank in seat)
    return -min(rooms), max(load.ns[rank] for rank in seat)


def take(load: Load, candidate: Candidate, key: SeatKey, limit: int | None = None) -> Choice | None:
    """Place a table in one way, each unit on the seat that is best by ``key``; None, and nothing changed: no room.

    Args:
        load: what is placed so far.
        candidate: to place the table.
        key: which of several seats is best.
        limit: nanoseconds that no rank may exceed. Default: none.
    """
    taken: list[tuple[int, ...]] = []
    for unit in candidate.units:
        seats = _free(load, unit, limit)
        if not seats:
            for other, seat in zip(candidate.units, taken, strict=False):
                load.add(other, seat, -1)
            return None
        seat = seats[0] if len(seats) == 1 else min(seats, key=lambda s: key(load, unit, s))
        load.add(unit, seat)
        taken.append(seat)
    return Choice(candidate, tuple(taken))


def _free(load: Load, unit: Unit, limit: int | None) -> Sequence[tuple[int, ...]]:
    """Return the seats of a unit with room for it, and time below the limit."""
    if len(unit.parts) > 1:
        return [seat for seat in unit.seats if load.fits(unit, seat, limit)]
    part = unit.parts[0]  # most units are one part that may go to any rank: this has to be quick
    return [
        seat
        for seat in unit.seats
        if (limit is None or load.ns[seat[0]] + part.ns <= limit) and load.fits(unit, seat)
    ]


def least_missing(load: Load, candidate: Candidate) -> tuple[int, int]:
    """Return how many bytes are missing for a way that does not fit, and on which rank: where least are.

    Args:
        load: what each rank has.
        candidate: to place a table.
    """
    worst = (0, 0)
    taken: list[tuple[Unit, tuple[int, ...]]] = []
    for unit in candidate.units:
        # Of each seat, the rank that lacks most.
        lacks = [
            max(
                (
                    max(
                        load.ddr[rank] + part.ddr - load.room[rank].ddr,
                        load.hbm[rank] + part.hbm - load.room[rank].hbm,
                    ),
                    rank,
                )
                for part, rank in zip(unit.parts, seat, strict=True)
            )
            for seat in unit.seats
        ]
        least = min(range(len(lacks)), key=lambda s: lacks[s])
        worst = max(worst, lacks[least])
        load.add(unit, unit.seats[least])
        taken.append((unit, unit.seats[least]))
    for unit, seat in taken:
        load.add(unit, seat, -1)
    return worst
