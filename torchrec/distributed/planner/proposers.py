"""Who proposes a way for each table, to be dealt out and rated, again and again.

`EmbeddingShardingPlanner` has a search of its own, and asks these only where it is given some.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from torchrec.distributed.planner._interfaces import Enumerator, Proposer
from torchrec.distributed.planner._offload import EmbeddingOffloadScaleupProposer
from torchrec.distributed.planner._options import ShardingOption
from torchrec.distributed.planner._tables import by_table
from torchrec.distributed.planner._topology import Storage, Topology

__all__ = [
    "MAX_PROPOSALS",
    "DynamicProgrammingProposer",
    "EmbeddingOffloadScaleupProposer",
    "GreedyProposer",
    "GridSearchProposer",
    "UniformProposer",
]

MAX_PROPOSALS = 10000


class GreedyProposer(Proposer):
    """The quickest way of each table first; then, again and again, the next one of the table that takes most memory.

    Args:
        use_depth: whether the slowest part of a table counts, as where parts work side by side; else all parts do.
        threshold: after how many proposals in a row that are no better to stop. Default: never.
    """

    def __init__(self, use_depth: bool = True, threshold: int | None = None) -> None:
        self._use_depth, self._threshold = use_depth, threshold
        self._tables: list[list[ShardingOption]] = []
        self._at: list[int] = []
        self._is_over = True
        self._best, self._without_gain = math.inf, 0

    def load(
        self, search_space: list[ShardingOption], enumerator: Enumerator | None = None
    ) -> None:
        """Begin anew; the arguments as those of `Proposer.load`."""
        self._tables = [
            sorted(options, key=lambda option: _time_of(option, self._use_depth))
            for options in by_table(search_space)
        ]
        self._at = [0] * len(self._tables)
        self._is_over = not self._tables
        self._best, self._without_gain = math.inf, 0

    def propose(self) -> list[ShardingOption] | None:
        """Return a way for each table; None: there is nothing more to propose."""
        if self._is_over:
            return None
        return [options[at] for options, at in zip(self._tables, self._at, strict=True)]

    def feedback(
        self,
        partitionable: bool,
        plan: list[ShardingOption] | None = None,
        perf_rating: float | None = None,
        storage_constraint: Topology | None = None,
    ) -> None:
        """Go on to the next proposal; the arguments as those of `Proposer.feedback`."""
        if self._is_over:
            return
        if self._threshold is not None and perf_rating is not None:
            is_better = perf_rating < self._best
            self._best = min(self._best, perf_rating)
            self._without_gain = 0 if is_better else self._without_gain + 1
            if self._without_gain > self._threshold:
                self._is_over = True
                return
        left = [i for i, at in enumerate(self._at) if at + 1 < len(self._tables[i])]
        if not left:
            self._is_over = True
            return
        largest = max(left, key=lambda i: _largest(self._tables[i][self._at[i]]))
        self._at[largest] += 1


class UniformProposer(Proposer):
    """All tables under one sharding type, each type in turn; one that a table does not have is left out.

    Args:
        use_depth: whether of two ways of a type the one with the quicker slowest part is taken; else the one whose
            parts take less in all.
    """

    def __init__(self, use_depth: bool = True) -> None:
        self._use_depth = use_depth
        self._proposals: Iterator[list[ShardingOption]] = iter(())
        self._current: list[ShardingOption] | None = None

    def load(
        self, search_space: list[ShardingOption], enumerator: Enumerator | None = None
    ) -> None:
        """Begin anew; the arguments as those of `Proposer.load`."""
        self._proposals = iter(self._of_types(by_table(search_space)))
        self._current = next(self._proposals, None)

    def _of_types(self, tables: Sequence[list[ShardingOption]]) -> list[list[ShardingOption]]:
        types = dict.fromkeys(option.sharding_type for options in tables for option in options)
        found = []
        for kind in types:
            of_tables = [
                [option for option in options if option.sharding_type == kind] for options in tables
            ]
            if all(of_tables):
                found.append(
                    [min(ways, key=lambda o: _time_of(o, self._use_depth)) for ways in of_tables]
                )
        return found

    def propose(self) -> list[ShardingOption] | None:
        """Return a way for each table; None: there is nothing more to propose."""
        return self._current

    def feedback(
        self,
        partitionable: bool,
        plan: list[ShardingOption] | None = None,
        perf_rating: float | None = None,
        storage_constraint: Topology | None = None,
    ) -> None:
        """Go on to the next proposal; the arguments as those of `Proposer.feedback`."""
        self._current = next(self._proposals, None)


class GridSearchProposer(Proposer):
    """Every way of each table with every way of all others; nothing, where that would be too much.

    Args:
        max_proposals: how much is too much.
    """

    def __init__(self, max_proposals: int = MAX_PROPOSALS) -> None:
        self._max_proposals = max_proposals
        self._proposals: Iterator[tuple[ShardingOption, ...]] = iter(())
        self._current: tuple[ShardingOption, ...] | None = None

    def load(
        self, search_space: list[ShardingOption], enumerator: Enumerator | None = None
    ) -> None:
        """Begin anew; the arguments as those of `Proposer.load`."""
        tables = by_table(search_space)
        too_many = math.prod(map(len, tables)) > self._max_proposals
        self._proposals = iter(()) if too_many or not tables else itertools.product(*tables)
        self._current = next(self._proposals, None)

    def propose(self) -> list[ShardingOption] | None:
        """Return a way for each table; None: there is nothing more to propose."""
        return None if self._current is None else list(self._current)

    def feedback(
        self,
        partitionable: bool,
        plan: list[ShardingOption] | None = None,
        perf_rating: float | None = None,
        storage_constraint: Topology | None = None,
    ) -> None:
        """Go on to the next proposal; the arguments as those of `Proposer.feedback`."""
        self._current = next(self._proposals, None)


class DynamicProgrammingProposer(Proposer):
    """For each amount of memory, the ways that take least time in all: the quickest first, then with less memory.

    Memory of all ranks is divided into bins, and what a table takes is rounded up to whole ones. Which memory there is
    is told with the first feedback; the first proposal is the quickest way of each table.

    Args:
        hbm_bins_per_device: bins of the memory of a rank.
    """

    def __init__(self, hbm_bins_per_device: int = 100) -> None:
        if hbm_bins_per_device < 1:
            raise ValueError(
                f"`hbm_bins_per_device` should be at least 1. Received {hbm_bins_per_device}."
            )
        self._bins_per_device = hbm_bins_per_device
        self._tables: list[list[ShardingOption]] = []
        self._proposals: list[list[int]] = []
        self._at = 0
        self._has_memory = False

    def load(
        self, search_space: list[ShardingOption], enumerator: Enumerator | None = None
    ) -> None:
        """Begin anew; the arguments as those of `Proposer.load`."""
        self._tables = by_table(search_space)
        self._at, self._has_memory = 0, False
        quickest = [
            min(range(len(options)), key=lambda i: options[i].total_perf)
            for options in self._tables
        ]
        self._proposals = [quickest] if self._tables else []

    def propose(self) -> list[ShardingOption] | None:
        """Return a way for each table; None: there is nothing more to propose."""
        if self._at >= len(self._proposals):
            return None
        chosen = self._proposals[self._at]
        return [options[i] for options, i in zip(self._tables, chosen, strict=True)]

    def feedback(
        self,
        partitionable: bool,
        plan: list[ShardingOption] | None = None,
        perf_rating: float | None = None,
        storage_constraint: Topology | None = None,
    ) -> None:
        """Go on to the next proposal; the arguments as those of `Proposer.feedback`."""
        self._at += 1
        if not self._has_memory and storage_constraint is not None and self._tables:
            self._has_memory = True
            found = self._by_memory(storage_constraint)
            self._proposals += [chosen for chosen in found if chosen not in self._proposals]

    def _by_memory(self, topology: Topology) -> list[list[int]]:
        on_host = topology.compute_device == "cpu"
        memory = sum(_main(device.storage, on_host) for device in topology.devices)
        bins = self._bins_per_device * topology.world_size
        width = max(memory / bins, 1.0)
        # best[b]: least time of the tables so far in b bins; chosen[t][b]: the way of table t in it.
        best = [0.0] * (bins + 1)
        chosen: list[list[int | None]] = []
        sizes = [
            [math.ceil(_main(option.total_storage, on_host) / width) for option in options]
            for options in self._tables
        ]
        for options, of_table in zip(self._tables, sizes, strict=True):
            times = [option.total_perf for option in options]
            new, ways = [math.inf] * (bins + 1), [None] * (bins + 1)  # type: tuple[list[float], list[int | None]]
            for way, (size, time) in enumerate(zip(of_table, times, strict=True)):
                for b in range(size, bins + 1):
                    if best[b - size] + time < new[b]:
                        new[b], ways[b] = best[b - size] + time, way
            best = new
            chosen.append(ways)
        found: list[list[int]] = []
        for b in range(bins, -1, -1):
            if best[b] < math.inf:
                plan = _traced(chosen, sizes, b)
                if plan not in found[-1:]:
                    found.append(plan)
        return found


def _traced(
    chosen: Sequence[Sequence[int | None]], sizes: Sequence[Sequence[int]], b: int
) -> list[int]:
    plan = []
    for ways, of_table in zip(reversed(chosen), reversed(sizes), strict=True):
        way = ways[b]
        if way is None:
            raise RuntimeError(
                "A number of bins that can be reached should have a way for each table."
            )
        plan.append(way)
        b -= of_table[way]
    return plan[::-1]


def _time_of(option: ShardingOption, use_depth: bool) -> float:
    times = [shard.perf.total if shard.perf else 0.0 for shard in option.shards]
    return max(times, default=0.0) if use_depth else sum(times)


def _largest(option: ShardingOption) -> Storage:
    return max((shard.storage or Storage(0, 0) for shard in option.shards), default=Storage(0, 0))


def _main(storage: Storage, on_host: bool) -> int:
    return storage.ddr if on_host else storage.hbm
