"""The search for a plan: the best one where tables are few, else one that is good and no change of one table betters.

Three steps. *Spread*: for a limit of time, tables one by one take the cheapest way whose parts still fit below it; the
least limit for which all fit is found by halving. What tables share is paid for once, so that this is done again
without the ways that have it. *Improve*: tables are placed anew, those of the slowest ranks first, while that helps.
*Prove*: all other plans are looked through, those left out that cannot be better, until there are none or a number of
steps is spent.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from torchrec.distributed.planner._placing import SeatKey, by_compute, by_room, by_time, take
from torchrec.distributed.planner._problem import (
    Candidate,
    Choice,
    Counts,
    Load,
    Problem,
    Score,
    score_of,
)

__all__ = ["Found", "search"]

# Seats tried in the last step: some tenths of a second.
MOST_STEPS = 60_000
# Tables of which that is tried: it goes as deep as there are tables.
_MOST_PROVEN = 64
# Changes of one table in the second.
_MOST_CHANGES = 400
_HALVINGS = 14
# Limits of time that differ by less than such a part are as good as one another, until tables are placed anew.
_NEAR = 256


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        choices: for each table.
        score: how good that is.
        is_best: whether no plan is better.
        is_bound: whether that is so of those alone that have room.
        is_local: whether no change of one table betters it.
        steps: how many seats were tried in the proof.
    """

    choices: tuple[Choice, ...]
    score: Score
    is_best: bool
    is_bound: bool
    is_local: bool
    steps: int


def search(
    problem: Problem, max_steps: int = MOST_STEPS, deadline: float | None = None
) -> Found | None:
    """Find a plan: the least time of the slowest rank, then of all ranks, then the least bytes of the fullest.

    Args:
        problem: the tables and the ranks.
        max_steps: seats tried for the proof that there is no better one; it is the best one where fewer suffice.
        deadline: when to stop, as `time.monotonic` has it. Default: no such time.

    Returns:
        None if no plan was found; there is none, if fewer steps sufficed.
    """
    good, is_local = _good(problem, deadline)
    if len(problem.items) > _MOST_PROVEN:
        max_steps = 0
    proof = _Proof(problem, good, max_steps, deadline)
    best = proof.run()
    if best is None:
        return None
    if best is not good and not proof.is_complete:
        best, is_local = _improve(problem, best, deadline)
    score = score_of(problem, best)
    is_best = proof.is_complete
    return Found(tuple(best), score, is_best, proof.is_bound, is_best or is_local, proof.steps)


def _good(problem: Problem, deadline: float | None) -> tuple[list[Choice] | None, bool]:
    """Return a plan, if one was found, and whether no change of one table betters it, as there was time for that."""
    best: list[Choice] | None = None
    best_is_local = False
    score: Score | None = None
    for other in _restricted(problem):
        below = None
        if score is not None:
            below = score[0] - _shared_ns(other)
            ns, _ = _least_of(other.items)
            if below * problem.world_size <= ns or _is_over(deadline):
                continue
        found = _spread(other, below)
        if found is None:
            continue
        found, is_local = _improve(problem, found, deadline)
        of_found = score_of(problem, found)
        if score is None or of_found < score:
            best, score, best_is_local = found, of_found, is_local
    return best, best_is_local


def _restricted(problem: Problem) -> Iterator[Problem]:
    """Yield the problem, then without the ways that have something that tables share, one kind or two.

    A table keeps its ways if all have that.
    """
    kinds = max(
        (len(counts) for item in problem.items for way in item for _, counts in way.shares_apart),
        default=0,
    )
    yielded: set[tuple[tuple[int, ...], ...]] = set()
    for without in itertools.chain(
        [()], *(itertools.combinations(range(kinds), n) for n in (1, 2))
    ):
        items = tuple(_ways_without(item, without) for item in problem.items)
        which = tuple(tuple(map(id, item)) for item in items)
        if which not in yielded:
            yielded.add(which)
            yield replace(problem, items=items)


def _ways_without(ways: tuple[Candidate, ...], kinds: Sequence[int]) -> tuple[Candidate, ...]:
    found = tuple(
        way
        for way in ways
        if not any(counts[kind] for _, counts in way.shares_apart for kind in kinds)
    )
    return found or ways


def _shared_ns(problem: Problem) -> int:
    """Return what a step takes at least for what tables share."""
    load = Load(problem.room, problem.shared_ns)
    for ways in problem.items:
        load.share(_least_shared(ways))
    return load.shared_ns


def _least_of(items: Iterable[Sequence[Candidate]]) -> tuple[int, int]:
    """Return the least time and bytes that tables take together."""
    ns = num_bytes = 0
    for ways in items:
        ns += min((way.total.all_ns for way in ways), default=0)
        num_bytes += min((way.total.num_bytes for way in ways), default=0)
    return ns, num_bytes


def _least_shared(ways: Sequence[Candidate]) -> list[Counts]:
    """Return what a table has under each way of all that tables share."""
    found: dict[str, list[tuple[int, ...]]] = {}
    for way in ways:
        for group, counts in way.shares:
            found.setdefault(group, []).append(counts)
    return [
        (group, tuple(map(min, zip(*of_group, strict=True))))
        for group, of_group in found.items()
        if len(of_group) == len(ways)
    ]


def _take_all(
    problem: Problem,
    order: Sequence[int],
    candidates: Sequence[Sequence[Candidate]],
    key: SeatKey,
    limit: int | None,
) -> list[Choice] | None:
    load = Load(problem.room, problem.shared_ns)
    chosen: dict[int, Choice] = {}
    for i in order:
        choice = next(
            (
                found
                for candidate in candidates[i]
                if (found := take(load, candidate, key, limit)) is not None
            ),
            None,
        )
        if choice is None:
            return None
        chosen[i] = choice
    return [chosen[i] for i in range(len(problem.items))]


def _spread(problem: Problem, below: int | None) -> list[Choice] | None:
    """Return the best plan that tables placed one by one come to, in several orders; None: no order fits.

    Args:
        problem: the tables and the ranks.
        below: nanoseconds of a rank, from which on plans do not matter; None: all do.
    """
    everyone = range(len(problem.items))
    cheap = [
        sorted(candidates, key=lambda each: (each.total.all_ns, each.total.num_bytes))
        for candidates in problem.items
    ]
    small = [
        sorted(candidates, key=lambda each: (each.largest, each.total.all_ns))
        for candidates in problem.items
    ]
    by_cost = sorted(everyone, key=lambda i: -cheap[i][0].total.all_ns if cheap[i] else 0)
    by_size = sorted(everyone, key=lambda i: -cheap[i][0].total.num_bytes if cheap[i] else 0)
    found: list[list[Choice]] = []
    for order in (by_cost, by_size):
        plan = _least_limit(problem, order, cheap, below)
        if plan is not None:
            found.append(plan)
    if not found:  # memory is short: the most room first, then the smallest parts
        for candidates in (cheap, small):
            plan = _take_all(problem, by_size, candidates, by_room, None)
            if plan is not None:
                found.append(plan)
    return min(found, key=lambda plan: score_of(problem, plan), default=None)


def _least_limit(
    problem: Problem,
    order: Sequence[int],
    candidates: Sequence[Sequence[Candidate]],
    below: int | None,
) -> list[Choice] | None:
    best = _take_all(problem, order, candidates, by_time, below)
    if best is None:
        return None
    low = sum(min(way.total.ns for way in ways) for ways in candidates) // problem.world_size
    high = _slowest(problem, best)
    for _ in range(_HALVINGS):
        if high - low <= low // _NEAR:
            break
        limit = (low + high) // 2
        plan = _take_all(problem, order, candidates, by_time, limit)
        if plan is None:
            low = limit + 1
            continue
        if score_of(problem, plan) < score_of(problem, best):
            best = plan
        high = min(limit, _slowest(problem, plan))
    return best


def _slowest(problem: Problem, choices: Sequence[Choice]) -> int:
    """Return the nanoseconds of the rank that has most to do."""
    load = Load(problem.room)
    for choice in choices:
        load.add_choice(choice)
    return max(load.ns, default=0)


def _improve(
    problem: Problem, choices: list[Choice], deadline: float | None
) -> tuple[list[Choice], bool]:
    """Place tables anew, one at a time, while that gives a better plan; and say whether that came to its end."""
    choices = list(choices)
    load = Load(problem.room, problem.shared_ns)
    for choice in choices:
        load.add_choice(choice)
    for _ in range(_MOST_CHANGES):
        if _is_over(deadline):
            break
        before = load.score
        compute = list(map(int.__sub__, load.ns, load.exchange_ns))
        slowest = {load.exchange_ns.index(max(load.exchange_ns)), compute.index(max(compute))}
        # What all ranks wait for alike, and what tables share, others may have less of.
        first = _tables_of(choices, slowest)
        order = itertools.chain(first, _others(len(choices), first))
        if not any(_replace(problem, choices, load, i, before) for i in order):
            return choices, True
    return choices, False


def _others(tables: int, without: Sequence[int]) -> Iterator[int]:
    left_out = set(without)
    return (i for i in range(tables) if i not in left_out)


def _tables_of(choices: Sequence[Choice], ranks: set[int]) -> list[int]:
    """Return the tables that some ranks have something of, the costliest first."""
    found = [
        i
        for i, choice in enumerate(choices)
        if any(not ranks.isdisjoint(seat) for seat in choice.seats)
    ]
    return sorted(found, key=lambda i: -choices[i].candidate.total.all_ns)


def _replace(problem: Problem, choices: list[Choice], load: Load, i: int, before: Score) -> bool:
    """Place one table in the way that is best while the others stay; False, and nothing changed: as it was."""
    old = choices[i]
    load.add_choice(old, -1)
    best, best_score = old, before
    for candidate in problem.items[i]:
        if _least_with(load, candidate) >= best_score:
            continue
        for key in (by_time, by_compute):
            choice = take(load, candidate, key)
            if choice is None:
                continue
            score = load.score
            load.add_choice(choice, -1)
            if score < best_score:
                best, best_score = choice, score
    load.add_choice(best)
    choices[i] = best
    return best_score < before


def _least_with(load: Load, candidate: Candidate) -> Score:
    """Return what a plan comes to at least with one more table in a way, wherever its parts are."""
    alike, total = candidate.total.alike_ns, candidate.total
    load.alike_ns += alike
    load.share(candidate.shares)
    step, all_ns, _ = load.score
    load.share(candidate.shares, -1)
    load.alike_ns -= alike
    return step, all_ns + total.ns, 0


def _is_over(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() > deadline


class _Proof:
    """Looks through all plans that could be better than one that is known.

    Args:
        problem: the tables and the ranks.
        best: the plan that is known; None: none.
        max_steps: how many seats to try.
        deadline: when to stop.
    """

    def __init__(
        self, problem: Problem, best: list[Choice] | None, max_steps: int, deadline: float | None
    ) -> None:
        self._problem = problem
        self._best = best
        self._score = None if best is None else score_of(problem, best)
        self._left, self._deadline = max_steps, deadline
        self.steps = 0
        self.is_bound = False  # whether a better plan may have been left out for lack of room
        # Large tables first: where they go decides most.
        self._order = sorted(
            range(len(problem.items)),
            key=lambda i: (-min((each.total.all_ns for each in problem.items[i]), default=0), i),
        )
        self._rest = self._least_rest()
        self._load = Load(problem.room, problem.shared_ns)
        # Of what tables share, each counts with the least that it may have until it is placed.
        self._shares = [_least_shared(ways) for ways in problem.items]
        for shares in self._shares:
            self._load.share(shares)
        self._chosen: dict[int, Choice] = {}

    @property
    def is_complete(self) -> bool:
        """Whether all were looked through."""
        return self.steps < self._left

    def run(self) -> list[Choice] | None:
        """Return the best plan."""
        if self._left:
            self._table(0)
        return self._best

    def _least_rest(self) -> list[tuple[int, int]]:
        """For each place in the order, the least time and bytes of all tables from there on."""
        each = [_least_of([self._problem.items[i]]) for i in reversed(self._order)]
        rest = itertools.accumulate(each, lambda a, b: (a[0] + b[0], a[1] + b[1]), initial=(0, 0))
        return list(rest)[::-1]

    def _is_worth(self, at: int) -> bool:
        """Say whether what is placed so far can become better than the best plan known."""
        if self._score is None:
            return True
        ns, num_bytes = self._rest[at]
        slowest, total, fullest = self._load.score
        world = self._problem.world_size
        held = sum(self._load.hbm) + sum(self._load.ddr)
        least = (
            max(slowest, -(-(total + ns) // world) + self._load.shared_ns),
            total + ns,
            max(fullest, -(-(held + num_bytes) // world)),
        )
        return least < self._score

    def _table(self, at: int) -> None:
        if at == len(self._order):
            score = self._load.score
            if self._score is None or score < self._score:
                self._score = score
                self._best = [self._chosen[i] for i in range(len(self._order))]
            return
        i = self._order[at]
        for candidate in sorted(self._problem.items[i], key=lambda each: each.total.all_ns):
            for seats in self._seats(candidate, 0, 0, at + 1):
                choice = self._chosen[i] = Choice(candidate, seats)
                self._load.share(self._shares[i], -1)
                self._load.share(choice.shares)
                if self._is_worth(at + 1):
                    self._table(at + 1)
                self._load.share(choice.shares, -1)
                self._load.share(self._shares[i])
            if not self.is_complete:
                return

    def _seats(
        self, candidate: Candidate, number: int, first: int, at: int
    ) -> Iterator[tuple[tuple[int, ...], ...]]:
        """Yield seats of the units from ``number`` on, which are taken while the caller looks on."""
        if number == len(candidate.units):
            yield ()
            return
        unit = candidate.units[number]
        is_alike = candidate.units[number + 1 : number + 2] == (unit,)
        for s in range(first, len(unit.seats)):
            seat = unit.seats[s]
            if self.steps >= self._left or (self.steps % 256 == 0 and _is_over(self._deadline)):
                self._left = self.steps
                return
            self.steps += 1
            fits = self._load.fits(unit, seat)
            self._load.add(unit, seat)
            if self._is_worth(at):
                if fits:
                    # Units that are alike can change seats: one order of them is enough.
                    for others in self._seats(candidate, number + 1, s if is_alike else 0, at):
                        yield (seat, *others)
                else:
                    self.is_bound = True
            self._load.add(unit, seat, -1)
