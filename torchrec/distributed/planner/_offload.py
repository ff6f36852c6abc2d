"""Tables in the memory of the host, of which accelerators cache rows: how much of each.

No sharder here keeps tables so (kernel ``fused_uvm_caching``); sharders of your own may, for a topology of
accelerators. Without such tables there is nothing to scale, and one proposal, the quickest way of each table.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace

import torch
from torch import Tensor

from torchrec.distributed.planner._interfaces import Enumerator, Proposer
from torchrec.distributed.planner._options import ShardingOption
from torchrec.distributed.planner._tables import by_table
from torchrec.distributed.planner._topology import Topology
from torchrec.distributed.types import CacheParams

__all__ = ["EmbeddingOffloadScaleupProposer"]

_CACHED, _NEAR = "fused_uvm_caching", "fused"
# Budgets closer to each other than this share of the memory are alike.
_LEAST_STEP = 0.01


class EmbeddingOffloadScaleupProposer(Proposer):
    """Gives caches the memory of accelerators that tables leave: as much as can be dealt out, found by halving.

    Args:
        use_depth: whether of the ways of a table the one with the quickest slowest part comes first; else the one
            whose parts take least in all.
    """

    def __init__(self, use_depth: bool = True) -> None:
        self._use_depth = use_depth
        self._enumerator: Enumerator | None = None
        self._start: list[ShardingOption] = []
        self._current: list[ShardingOption] | None = None
        self._low, self._high, self._step = 0, 0, 0
        self._budget: int | None = None

    def load(
        self, search_space: list[ShardingOption], enumerator: Enumerator | None = None
    ) -> None:
        """Begin anew; the arguments as those of `Proposer.load`."""
        self._enumerator, self._budget = enumerator, None
        self._start = [min(options, key=self._rank_of) for options in by_table(search_space)]
        self.promote_high_prefetch_overheaad_table_to_hbm(enumerator, self._start)
        self._current = self._start or None

    def _rank_of(self, option: ShardingOption) -> tuple[bool, float]:
        times = [shard.perf.total if shard.perf else 0.0 for shard in option.shards]
        time = max(times, default=0.0) if self._use_depth else sum(times)
        return not _is_scalable(option), time  # what can be scaled begins in the host

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
        """Give caches more if there was room, else less; the arguments as those of `Proposer.feedback`."""
        if self._current is None:
            return
        if self._budget is None:  # the first proposal
            if not partitionable or storage_constraint is None:
                self._current = None
                return
            self._low, self._high = 0, self.get_budget(self._start, storage_constraint)
            self._step = max(1, int(self._high * _LEAST_STEP))
            self._budget = self._high
        else:
            if partitionable:
                self._low = self._budget
            else:
                self._high = self._budget
            if self._high - self._low < self._step:
                self._current = None
                return
            self._budget = (self._low + self._high) // 2
        self._current = self.next_plan(self._start, self._budget, self._enumerator)

    @staticmethod
    def get_scalable_sharding_options(proposal: list[ShardingOption]) -> list[ShardingOption]:
        """Return the ways of a proposal whose tables are cached, and of which it is known how well."""
        return [option for option in proposal if _is_scalable(option)]

    @staticmethod
    def get_cacheability(sharding_option: ShardingOption) -> float | None:
        """Return how well rows of a table can be cached, from 0, very well, to 1; None: not known."""
        params = sharding_option.cache_params
        return None if params is None or params.stats is None else params.stats.cacheability

    @staticmethod
    def get_expected_lookups(sharding_option: ShardingOption) -> float | None:
        """Return how many distinct rows of a table a step looks up; None: not known."""
        params = sharding_option.cache_params
        return None if params is None or params.stats is None else params.stats.expected_lookups

    @staticmethod
    def get_budget(proposal: list[ShardingOption], storage_constraint: Topology) -> int:
        """Return the bytes of accelerators that a proposal leaves."""
        there = sum(device.storage.hbm for device in storage_constraint.devices)
        return there - sum(option.total_storage.hbm for option in proposal)

    @staticmethod
    def get_hbm_ceiling(starting_proposal: list[ShardingOption], enumerator: Enumerator) -> int:
        """Return the bytes of accelerators that a proposal would take with all tables in their memory."""
        near = [_near(option) if _is_scalable(option) else option for option in starting_proposal]
        enumerator.populate_estimates(near)
        return sum(option.total_storage.hbm for option in near)

    @staticmethod
    def build_affine_storage_model(
        uvm_caching_sharding_options: list[ShardingOption], enumerator: Enumerator
    ) -> tuple[Tensor, Tensor]:
        """Return what caches take by the share of rows in them, and what tables take that lie near as a whole.

        Args:
            uvm_caching_sharding_options: ways of tables that are cached.
            enumerator: who says what they take.

        Returns:
            bytes for all rows and bytes for none, of shape (tables, 2), and bytes near, of shape (tables,).
        """

        def hbm(options: Sequence[ShardingOption]) -> Tensor:
            enumerator.populate_estimates(list(options))
            sizes = [option.total_storage.hbm for option in options]
            return torch.tensor(sizes, dtype=torch.float64)

        none = hbm([_cached(option, 0.0) for option in uvm_caching_sharding_options])
        half = hbm([_cached(option, 0.5) for option in uvm_caching_sharding_options])
        near = hbm([_near(option) for option in uvm_caching_sharding_options])
        return torch.stack([2 * (half - none), none], dim=1), near

    @staticmethod
    def clf_to_bytes(model: Tensor, clfs: float | Tensor) -> Tensor:
        """Return what caches take.

        Args:
            model: as `build_affine_storage_model` makes one.
            clfs: shares of rows.

        Example:
            >>> model = torch.tensor([[1000.0, 10.0], [2000.0, 20.0]])
            >>> EmbeddingOffloadScaleupProposer.clf_to_bytes(model, 0.5)
            tensor([ 510., 1020.], dtype=torch.float64)
        """
        return (model[:, 0].to(torch.float64) * clfs + model[:, 1]).to(torch.float64)

    @staticmethod
    def allocate_budget(
        model: Tensor,
        fused_hbm_ceiling: Tensor,
        clfs: Tensor,
        budget: int,
        allocation_priority: Tensor,
    ) -> Tensor:
        """Return shares of rows that bytes more come to, dealt out by priority; what one cannot use, others get.

        Args:
            model: as `build_affine_storage_model` makes one.
            fused_hbm_ceiling: what each table takes that lies near as a whole; what that leaves of its part goes to
                the others.
            clfs: shares of rows so far.
            budget: bytes more.
            allocation_priority: of each table.

        Example:
            >>> model = torch.tensor([[1000.0, 10.0], [2000.0, 20.0]])
            >>> near, so_far = torch.tensor([1010.0, 2020.0]), torch.tensor([0.1, 0.2])
            >>> allocate = EmbeddingOffloadScaleupProposer.allocate_budget
            >>> allocate(model, near, so_far, 300, torch.tensor([1.0, 2.0]))
            tensor([0.2000, 0.3000])
        """
        slopes = model[:, 0].to(torch.float64).clamp_min(1e-9)
        least = EmbeddingOffloadScaleupProposer.clf_to_bytes(model, clfs)
        most = torch.minimum(fused_hbm_ceiling.to(torch.float64), slopes + model[:, 1])
        sizes, left = least.clone(), float(budget)
        for _ in range(len(clfs)):
            open_ones = (sizes < most) & (allocation_priority > 0)
            if left <= 0 or not bool(open_ones.any()):
                break
            weights = torch.where(open_ones, allocation_priority.to(torch.float64), 0.0)
            more = torch.minimum(left * weights / weights.sum(), most - sizes).clamp_min(0.0)
            sizes, left = sizes + more, left - float(more.sum())
        found = ((sizes - model[:, 1]) / slopes).clamp(0.0, 1.0)
        return torch.where(sizes >= most, 1.0, found).to(clfs.dtype)

    @staticmethod
    def promote_high_prefetch_overheaad_table_to_hbm(
        enumerator: Enumerator | None, proposal: list[ShardingOption]
    ) -> None:
        """Keep tables near whose caches are filled ahead of the step, where that takes more time than it saves.

        Args:
            enumerator: who says what they take then.
            proposal: changed in place.
        """
        if enumerator is None:
            return
        for i, option in enumerate(proposal):
            prefetch = sum(shard.perf.prefetch_compute for shard in option.shards if shard.perf)
            if option.compute_kernel == _CACHED and prefetch > 0:
                near = _near(option)
                enumerator.populate_estimates([near])
                if near.total_perf < option.total_perf:
                    proposal[i] = near

    @staticmethod
    def next_plan(
        starting_proposal: list[ShardingOption],
        budget: int | None,
        enumerator: Enumerator | None,
    ) -> list[ShardingOption] | None:
        """Return a proposal in which caches are larger; None: there is nothing to scale.

        Args:
            starting_proposal: a way for each table.
            budget: bytes more of accelerators.
            enumerator: who says what they take then.
        """
        kind = EmbeddingOffloadScaleupProposer
        scalable = kind.get_scalable_sharding_options(starting_proposal)
        if budget is None or enumerator is None or not scalable:
            return None
        clfs = torch.tensor([option.cache_load_factor or 0.0 for option in scalable])
        priority = torch.tensor(
            [
                (kind.get_cacheability(o) or 0.0) * (kind.get_expected_lookups(o) or 0.0)
                for o in scalable
            ]
        )
        model, near = kind.build_affine_storage_model(scalable, enumerator)
        shares = kind.allocate_budget(model, near, clfs, budget, priority).tolist()
        changed = {
            id(option): _near(option) if share >= 1 else _cached(option, share)
            for option, share in zip(scalable, shares, strict=True)
        }
        enumerator.populate_estimates(list(changed.values()))
        return [changed.get(id(option), option) for option in starting_proposal]


def _is_scalable(option: ShardingOption) -> bool:
    return (
        option.compute_kernel == _CACHED
        and option.cache_params is not None
        and option.cache_params.stats is not None
    )


def _copy(option: ShardingOption) -> ShardingOption:
    other = copy(option)
    other.shards = [replace(shard) for shard in option.shards]
    return other


def _near(option: ShardingOption) -> ShardingOption:
    other = _copy(option)
    other.compute_kernel, other.cache_params = _NEAR, None
    return other


def _cached(option: ShardingOption, share: float) -> ShardingOption:
    other = _copy(option)
    other.cache_params = replace(option.cache_params or CacheParams(), load_factor=share)
    return other
