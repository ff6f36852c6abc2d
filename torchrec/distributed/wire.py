"""Ranks that tell one another something, and all raise what fails on one of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import ref

import torch
import torch.distributed as dist
from torch import Tensor

from torchrec.errors import IdOutOfRangeError
from torchrec.ops.routing import new_vector

__all__ = ["Wire", "lost_ranks_named"]


class Wire:
    """The ranks that exchange something.

    Args:
        group: of them. `torch.distributed` keeps it, until it is destroyed.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        # Weak: who calls `destroy_process_group()` ends the group's threads only if nobody else holds it.
        # Threads that outlive Python abort the process, and tables are in cycles, which are freed late.
        self._group = ref(group)
        self.world_size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)

    @property
    def group(self) -> dist.ProcessGroup:
        """Through which they do.

        Raises:
            RuntimeError: if it has been destroyed.
        """
        group = self._group()
        if group is None:
            raise RuntimeError(
                "The process group of a sharded model should last as long as it is used. Received "
                f"one that rank {self.rank} has destroyed."
            )
        return group

    def swap(
        self,
        sent: Tensor,
        sizes: Sequence[int],
        expected: Sequence[int],
        received: Tensor | None = None,
    ) -> Tensor:
        """Send each rank its part, and return what each has sent here.

        Args:
            sent: ``(sum(sizes),)``.
            sizes: elements for each rank.
            expected: elements from each rank.
            received: written to, ``(sum(expected),)``, and returned. Default: new memory.
        """
        if received is None:
            received = new_vector(sum(expected), sent)
        with lost_ranks_named(self.group) as group:
            dist.all_to_all_single(
                received, sent.contiguous(), list(expected), list(sizes), group=group
            )
        return received

    def states(self, mine: int) -> list[int]:
        """Tell all ranks a small number, and return those of all, in order of ranks."""
        ones = [1] * self.world_size
        told = self.swap(torch.full((self.world_size,), mine), ones, ones)
        return [int(state) for state in told]

    def any_of(self, mine: Sequence[bool]) -> list[bool]:
        """Return which of some conditions, the same ones on all ranks, hold on any rank.

        Args:
            mine: which do on this one.
        """
        each = [len(mine)] * self.world_size
        told = self.swap(torch.tensor(mine, dtype=torch.int32).repeat(self.world_size), each, each)
        return [bool(held) for held in told.view(self.world_size, len(mine)).any(0).tolist()]

    def share(self, value: Any, rank: int) -> Any:
        """Return on all ranks what one of them has.

        Args:
            value: what it is, on that rank.
            rank: which.
        """
        told = [value]
        with lost_ranks_named(self.group) as group:
            dist.broadcast_object_list(told, dist.get_global_rank(group, rank), group)
        return told[0]

    def broadcast(self, tensor: Tensor, rank: int | None) -> Tensor:
        """Return a tensor, on all ranks with what it holds on one of them.

        Args:
            tensor: contiguous, of one size and type on all ranks; written to on the others.
            rank: which.
        """
        with lost_ranks_named(self.group) as group:
            dist.broadcast(tensor, group=group, group_src=rank)
        return tensor

    def reduce(self, tensor: Tensor, how: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
        """Return a tensor, on all ranks with the sum, say, of what it holds on each.

        Args:
            tensor: contiguous, of one size and type on all ranks; written to.
            how: numbers are put together. Default: added.
        """
        with lost_ranks_named(self.group) as group:
            dist.all_reduce(tensor, how, group)
        return tensor

    def tell(self, value: Any) -> list[Any]:
        """Return on all ranks what each of them has, in order of ranks.

        Args:
            value: what this one has.
        """
        told: list[Any] = [None] * self.world_size
        with lost_ranks_named(self.group) as group:
            dist.all_gather_object(told, value, group)
        return told

    def agree(self, error: Exception | None) -> None:
        """Go on if no rank has failed, else raise what did, on all of them; they all call this.

        Args:
            error: of this rank; None: it has none.
        """
        if any(self.states(int(error is not None))):
            self.raise_together(error)

    def raise_together(self, error: Exception | None) -> None:
        """Raise what failed on any rank, on all of them; they all call this.

        Args:
            error: of this rank; None: it has none.
        """
        told = self.tell(None if error is None else _description(error))
        for rank, found in enumerate(told):
            if found is not None:
                raise _error_of(rank, *found) from (error if rank == self.rank else None)

    def __reduce__(self) -> tuple[Any, ...]:
        """Refuse to be pickled: there is no process group in a file."""
        raise TypeError(
            "A sharded model should be saved by its `state_dict()`, which loads into one that is sharded again: it "
            "cannot be pickled, as the ranks that it exchanges vectors with are those of this run."
        )

    def __deepcopy__(self, _: object) -> Wire:
        """Return itself: process groups cannot be copied."""
        return self


# What errors of gloo say when a rank is gone, or does not answer; other errors are the caller's own.
_LOST = re.compile("clos|reset|pipe|Timed out|timeout", re.IGNORECASE)


@contextmanager
def lost_ranks_named(group: dist.ProcessGroup) -> Iterator[dist.ProcessGroup]:
    """Say which ranks are gone, or for how long none has answered, where an exchange fails by that.

    Args:
        group: the ranks.

    Raises:
        RuntimeError: on every rank that goes on, as soon as it exchanges something.
    """
    try:
        yield group
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        waited = re.search(r"Timed out waiting (\d+)ms", str(error))
        if waited is not None:
            raise RuntimeError(
                f"Rank {dist.get_rank(group)} should get an answer within {int(waited[1]) / 1000:g} s, the "
                "`timeout` of its process group. Received none: another rank has stopped, or has left out "
                "what this one does."
            ) from error
        lost = _lost_ranks(group)
        named = f"rank {lost[0]}, which has" if len(lost) == 1 else f"ranks {lost}, which have"
        if lost:
            raise RuntimeError(
                "All ranks should take part until the last step. Received nothing more from "
                f"{named} ended: what was written there last says why."
            ) from error
        raise


def _lost_ranks(group: dist.ProcessGroup) -> list[int]:
    """Return the ranks whose connection to this one is closed: a process that ends closes all it has, at once."""
    others = [rank for rank in range(dist.get_world_size(group)) if rank != dist.get_rank(group)]
    return [rank for rank in others if _is_closed(group, rank)]


def _is_closed(group: dist.ProcessGroup, rank: int) -> bool:
    try:
        # Never waited for: who is still there need not take it, and giving up would close that connection, too.
        dist.isend(torch.zeros(1), group=group, group_dst=rank)
    except RuntimeError:
        return True
    return False


_KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (ValueError, TypeError, IndexError, KeyError, RuntimeError)
}


def _description(error: Exception) -> tuple[str, tuple[Any, ...]]:
    if isinstance(error, IdOutOfRangeError):
        return IdOutOfRangeError.__name__, error.__reduce__()[1][:5]
    kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _KINDS]
    return (kinds or ["RuntimeError"])[0], (str(error),)


def _error_of(rank: int, kind: str, arguments: tuple[Any, ...]) -> Exception:
    if kind == IdOutOfRangeError.__name__:
        table, feature, sample, number, rows = arguments
        return IdOutOfRangeError(table, feature, sample, number, rows, rank)
    return _KINDS[kind](f"On rank {rank}: {arguments[0]}")
