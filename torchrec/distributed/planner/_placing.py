"""One table onto ranks: each of its units to the seat that is best so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torchrec.distributed.planner._problem import Candidate, Choice, Load, Unit

__all__ = ["SeatKey", "by_compute", "by_room", "by_time", "least_missing", "take"]

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


def by_compute(load: Load, unit: Unit, seat: Sequence[int]) -> tuple[int, int]:
    """Of seats, the one whose slowest rank has least to compute is the best; of these, the one with most room."""
    return (
        max(
            load.ns[rank] - load.exchange_ns[rank] + part.ns - part.exchange_ns
            for part, rank in zip(unit.parts, seat, strict=True)
        ),
        max(map(load.num_bytes, seat)),
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
        seat = _best_seat(load, unit, key, limit)
        if seat is None:
            for other, other_seat in zip(candidate.units, taken, strict=False):
                load.add(other, other_seat, -1)
            return None
        load.add(unit, seat)
        taken.append(seat)
    choice = Choice(candidate, tuple(taken))
    load.share(choice.shares)
    return choice


def _best_seat(load: Load, unit: Unit, key: SeatKey, limit: int | None) -> tuple[int, ...] | None:
    """Return the best seat of a unit with room for it, and time below the limit; None: there is none."""
    if len(unit.seats) == 1:
        return unit.seats[0] if load.fits(unit, unit.seats[0], limit) else None
    found: tuple[int, ...] | None = None
    least: tuple[int, int] | None = None
    for seat in unit.seats:
        value = key(load, unit, seat)
        # Few seats are better than all before them: whether there is room is asked of these alone.
        if (least is None or value < least) and load.fits(unit, seat, limit):
            found, least = seat, value
    return found


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
