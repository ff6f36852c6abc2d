"""The processes that torchrun starts, as the world of a training."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from time import perf_counter
from typing import TypeVar

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from torchrec.distributed.wire import Wire
from torchrec.process_groups.lost_ranks import is_of_lost_ranks, ranks_in_words
from torchrec.training.meeting import absent_ranks, meeting_place
from torchrec.training.world import ALONE, Sent, World

T = TypeVar("T")

_ANSWER = 10.0  # seconds that ranks have to say that they are there, once one has found out that some are not
_START = timedelta(minutes=5)  # what all ranks have at least to start in: importing takes its time


class Ranks:
    """The ranks of a process group as a `torchrec.training.world.World`.

    Args:
        group: of the ranks, which all make one.

    Attributes:
        waited: seconds in `total`, which begins a step: for the rank that is last.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._wire = Wire(group)
        self.rank, self.size = self._wire.rank, self._wire.world_size
        self.waited = 0.0

    @property
    def sent(self) -> Sent:
        """What this process has sent to others: ids, vectors, their gradients, and what ranks tell one another."""
        return Sent(self._wire.sent_bytes, self._wire.sent_messages)

    def total(
        self, numbers: Sequence[float], what: str, error: Exception | None = None
    ) -> list[float]:
        """Return the sums of some numbers over all ranks, added up in the order of ranks.

        Args:
            numbers: of this rank; as many as on the others.
            what: they are about, in words that are the same on all ranks.
            error: what has failed here instead; raised on all ranks. Default: nothing.
        """
        kind = f"<{len(numbers)}"
        bits = struct.unpack(f"{kind}q", struct.pack(f"{kind}d", *numbers))
        line = [int(error is not None), *bits]
        began = perf_counter()
        lines = self._wire.begin(what, [line] * self.size, len(line)).numbers()
        self.waited += perf_counter() - began
        if any(failed for failed, *_ in lines):
            self._wire.raise_together(error)
        of_ranks = [struct.unpack(f"{kind}d", struct.pack(f"{kind}q", *rest)) for _, *rest in lines]
        return [sum(column) for column in zip(*of_ranks, strict=True)]

    def gather(self, value: T, what: str) -> list[T]:
        """Return on all ranks what each has, in order of ranks.

        Args:
            value: what this one has; picklable.
            what: it is about, in words that are the same on all ranks.
        """
        return self._wire.tell(value, what)

    def each(self, act: Callable[[], T], what: str) -> list[T]:
        """Do something on every rank, and wait for those that are alive; return on all what came of it, by rank.

        Args:
            act: what is done; what it returns is picklable. What fails is raised on all ranks.
            what: it is, in words that are the same on all ranks.
        """
        return self.gather(self._wire.together(act, what), what)

    def first(self, act: Callable[[], T], what: str) -> T:
        """Do something on the first rank, while the others wait as long as it is alive; return on all what came of it.

        Args:
            act: what is done; what it returns is picklable. What fails is raised on all ranks.
            what: it is, in words that are the same on all ranks.
        """
        failed: list[Exception] = []

        def watched() -> T:
            try:
                return act()
            except Exception as error:
                failed.append(error)
                raise

        try:
            return self._wire.on_one(watched, what)
        except Exception:
            if failed:
                raise failed[0] from None  # as one process raises it, where it was raised
            raise


@contextmanager
def joined_ranks(timeout: float) -> Iterator[World]:
    """Give the processes that torchrun has started as one world; this process alone, if it was not started so.

    Their process group ends with the context, unless a program had one before.

    Args:
        timeout: seconds that a rank waits for another in a step, before all of them give up.
    """
    if dist.is_initialized():
        assert dist.group.WORLD is not None
        yield Ranks(dist.group.WORLD) if dist.get_world_size() > 1 else ALONE
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield ALONE
        return
    waited = timedelta(seconds=timeout)
    store, rank, size = next(rendezvous("env://", timeout=max(waited, _START)))
    place = meeting_place(store, rank, size, max(waited, _START).total_seconds())
    own = PrefixStore(place, store)
    dist.init_process_group("gloo", store=own, rank=rank, world_size=size, timeout=waited)
    try:
        assert dist.group.WORLD is not None
        with _absent_named(own, rank, size, timeout):
            yield Ranks(dist.group.WORLD)
    finally:
        dist.destroy_process_group()


@contextmanager
def _absent_named(store: Store, rank: int, size: int, timeout: float) -> Iterator[None]:
    """Say which ranks have stopped or ended, where what fails by that does not, as sums of gradients."""
    try:
        yield
    except RuntimeError as error:
        if str(error).startswith("All ranks should") or not is_of_lost_ranks(error):
            raise
        try:
            absent = absent_ranks(store, rank, size, _ANSWER)
        except RuntimeError:  # with the store, which was where one has ended
            absent = []
        if not absent:
            raise
        raise RuntimeError(
            f"All ranks should take part within {timeout:g} s, `distributed.timeout`. Received nothing from "
            f"{ranks_in_words(absent)}, which has stopped or ended: what was written there last may say why."
        ) from error
