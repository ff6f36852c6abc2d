"""Who deals the parts of tables out to ranks, once it is known in which way each table is placed."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from torchrec.distributed._units import bytes_to_text
from torchrec.distributed.planner._interfaces import Partitioner
from torchrec.distributed.planner._options import (
    PlannerError,
    PlannerErrorType,
    ShardingOption,
)
from torchrec.distributed.planner._placing import by_time, take
from torchrec.distributed.planner._problem import Choice, Load
from torchrec.distributed.planner._search_space import SearchSpace, search_space_of
from torchrec.distributed.planner._topology import Storage, Topology
from torchrec.distributed.planner.perf_models import NoopPerfModel, NoopStorageModel

__all__ = ["GreedyPerfPartitioner", "MemoryBalancedPartitioner", "SortBy"]


class SortBy(Enum):
    """Which tables are dealt out first: those that take most memory, or most time."""

    STORAGE = "storage"
    PERF = "perf"


class GreedyPerfPartitioner(Partitioner):
    """Table by table, each part to the rank with room for it that has least to do so far.

    Args:
        sort_by: which tables come first.
        balance_modules: whether tables of small modules come first, each module as ``sort_by`` says.
    """

    def __init__(self, sort_by: SortBy = SortBy.STORAGE, balance_modules: bool = False) -> None:
        self._sort_by = sort_by
        self._balance_modules = balance_modules

    def partition(
        self,
        proposal: list[ShardingOption],
        storage_constraint: Topology,
        hbm_per_device: int | None = None,
    ) -> list[ShardingOption]:
        """Return the same ways with ranks, in their order.

        Args:
            proposal: a way for each table.
            storage_constraint: the ranks, with the memory that is left for tables.
            hbm_per_device: bytes that a rank may use at most, of the memory that tables are in. Default: all.

        Raises:
            PlannerError: if there is no room; it names the table, the ranks and what they have left.
        """
        topology = storage_constraint
        if hbm_per_device is not None:
            topology = topology.with_storage(lambda storage: _at_most(storage, hbm_per_device))
        search_space = search_space_of(proposal, topology)
        load = Load(search_space.problem.room)
        choices: dict[int, Choice] = {}
        for i in self._order(search_space):
            choice = next(
                (
                    found
                    for candidate in search_space.problem.items[i]
                    if (found := take(load, candidate, by_time))
                ),
                None,
            )
            if choice is None:
                raise _no_room(search_space.groups[i][0].options[0], load)
            choices[i] = choice
        return search_space.taken([choices[i] for i in range(len(search_space.groups))])

    def _order(self, search_space: SearchSpace) -> Sequence[int]:
        totals = [candidates[0].total for candidates in search_space.problem.items]
        paths = [group[0].options[0].path for group in search_space.groups]
        of_modules: dict[str, int] = {}
        for path, total in zip(paths, totals, strict=True):
            of_modules[path] = of_modules.get(path, 0) + total.num_bytes

        def key(i: int) -> tuple[int, str, int]:
            size = totals[i].num_bytes if self._sort_by is SortBy.STORAGE else totals[i].ns
            return (
                (of_modules[paths[i]], paths[i], -size) if self._balance_modules else (0, "", -size)
            )

        return sorted(range(len(totals)), key=key)


class MemoryBalancedPartitioner(Partitioner):
    """As `GreedyPerfPartitioner`, with as few bytes on the fullest rank as a little more time can buy.

    The least bytes a rank are looked for by halving, as long as the slowest rank takes no longer than the tolerance
    allows.

    Args:
        max_search_count: how often bytes are halved.
        tolerance: the share by which the slowest rank may be slower.
        balance_modules: whether tables of small modules come first.
    """

    def __init__(
        self, max_search_count: int = 10, tolerance: float = 0.02, balance_modules: bool = False
    ) -> None:
        self._max_search_count = max_search_count
        self._tolerance = tolerance
        self._greedy = GreedyPerfPartitioner(balance_modules=balance_modules)

    def partition(
        self, proposal: list[ShardingOption], storage_constraint: Topology
    ) -> list[ShardingOption]:
        """Return the same ways with ranks, in their order.

        Args:
            proposal: a way for each table.
            storage_constraint: the ranks, with the memory that is left for tables.

        Raises:
            PlannerError: if there is no room.
        """
        best = self._greedy.partition(proposal, storage_constraint)
        time, memory = NoopPerfModel(storage_constraint), NoopStorageModel(storage_constraint)
        limit = time.rate(best) * (1 + self._tolerance)
        used = sum(_main(option.total_storage, storage_constraint) for option in proposal)
        low, high = used // storage_constraint.world_size, int(memory.rate(best))
        for _ in range(self._max_search_count):
            if low >= high:
                break
            middle = (low + high) // 2
            try:
                plan = self._greedy.partition(proposal, storage_constraint, middle)
            except PlannerError:
                low = middle + 1
                continue
            if time.rate(plan) > limit:
                low = middle + 1
            else:
                best, high = plan, int(memory.rate(plan))
        return best


def _main(storage: Storage, topology: Topology) -> int:
    return storage.ddr if topology.compute_device == "cpu" else storage.hbm


def _at_most(storage: Storage, num_bytes: int) -> Storage:
    if storage.hbm:
        return Storage(min(storage.hbm, num_bytes), storage.ddr, storage.ssd)
    return Storage(storage.hbm, min(storage.ddr, num_bytes), storage.ssd)


def _no_room(option: ShardingOption, load: Load) -> PlannerError:
    left = ", ".join(
        f"rank {rank} {bytes_to_text(room.num_bytes - load.num_bytes(rank))}"
        for rank, room in enumerate(load.room)
    )
    total = option.total_storage
    return PlannerError(
        f"Table {option.name!r} of module {option.path!r} should fit into the memory that is left: {left}. "
        f"Received {option.sharding_type}, {bytes_to_text(total.hbm + total.ddr)}.",
        PlannerErrorType.PARTITION,
    )
