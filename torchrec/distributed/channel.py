"""What the ranks of a process group exchange through, and how long they wait for one another.

Exchanges have a process group of their own beside the one that a program gives. Gloo matches what ranks do by how many
operations each has begun in a group: where one rank leaves an exchange out, its next one answers the others, who then
see by its head that it is not what they are at. Gradients of layers, added up in the background, would come between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic, sleep
from weakref import ReferenceType, WeakKeyDictionary, finalize, ref

import torch
import torch.distributed as dist
from torch import Tensor

from torchrec.distributed.shared_memory import SharedMemory, share_memory
from torchrec.distributed.signs_of_life import LifeWatch, Stopped, signs_of_life
from torchrec.distributed.transport import SwapWork, Work
from torchrec.ops.routing import new_vector
from torchrec.process_groups import all_reduce, default_store, timeout_of
from torchrec.process_groups.lost_ranks import (
    ended,
    is_closed,
    lost_ranks_named,
    named,
    ranks_in_words,
)
from torchrec.process_groups.notes import decide, decided, left_out, note_of, out_of_order, read

__all__ = ["Channel", "channel_of", "use_channel"]

_POLLS = 0.001, 0.5  # seconds between two looks at the store, at least and at most
_PATIENCE = timedelta(seconds=2)  # how long a rank waits, at most, before it says where it is

_channels: WeakKeyDictionary[dist.ProcessGroup, Channel] = WeakKeyDictionary()


def channel_of(group: dist.ProcessGroup) -> Channel:
    """Return what the ranks of a group exchange through; they all call this, and get one for each group.

    Args:
        group: of the program.
    """
    found = _channels.get(group)
    if found is None:
        found = _channels[group] = Channel(group)
    return found


def use_channel(group: dist.ProcessGroup, channel: Channel) -> None:
    """Have the ranks of a group exchange through a channel of a class of one's own; they all call this.

    Args:
        group: of the program.
        channel: `channel_of` gives it from here on.

    Raises:
        ValueError: if they have exchanged through another one before.
    """
    if group in _channels:
        raise ValueError(
            "`channel` should be given before the ranks of `group` exchange anything. "
            f"Received one after {_channels[group].sent_messages} messages."
        )
    _channels[group] = channel


class Channel:
    """A process group for exchanges alone, beside that of a program, and where each of its ranks waits.

    Args:
        beside: the group of the program, which all its ranks are in.
        memory: that they share already: then it has no process group but ``beside``. Default: none.
        name: of its own among those with one process group. Default: that of the group.

    Attributes:
        sent_bytes: to other ranks, in all exchanges so far.
        sent_messages: likewise: one to each other rank in each exchange.
    """

    def __init__(
        self, beside: dist.ProcessGroup, memory: SharedMemory | None = None, name: str | None = None
    ) -> None:
        self.world_size, self.rank = dist.get_world_size(beside), dist.get_rank(beside)
        self._ranks = dist.get_process_group_ranks(beside)
        self._timeout = timeout_of(beside)
        self._patience = min(_PATIENCE, self._timeout / 5)
        group = beside
        if self.world_size > 1 and memory is None:
            # Finds out who is gone, which the store that a new group is made by does not.
            all_reduce(torch.zeros(1), "their first exchange", beside)
            group = dist.new_group(
                self._ranks,
                self._timeout,
                dist.get_backend(beside),
                use_local_synchronization=True,
            )
            with lost_ranks_named(group):
                memory = share_memory(group, self._timeout)
        # Weak: who calls `destroy_process_group()` ends the group's threads only if nobody else holds it.
        # Threads that outlive Python abort the process, and tables are in cycles, which are freed late.
        self._group, self._memory = ref(group), memory
        if memory is not None:
            # Not while Python ends, when what it calls is gone: others see then that the process has ended.
            finalize(group, _leave, ref(memory)).atexit = False
        self._name, self._exchanges, self._end = name or group.group_name, 0, ""
        self._num_others = 0
        self.sent_bytes = self.sent_messages = 0
        self._met: dict[tuple[int, ...], int] = {}  # how often some of the ranks have met

    def another(self) -> Channel | None:
        """Return one more of the same ranks, for exchanges in an order of their own; None: they share no memory.

        All ranks call this. It has memory of its own, for as long as it is in use, and no process group: a program that
        makes one model after another would keep those of all.
        """
        group = self.group
        if self._memory is None:
            return None
        all_reduce(torch.zeros(1), "their first exchange", group)
        with lost_ranks_named(group):
            memory = share_memory(group, self._timeout)
        if memory is None:
            return None
        self._num_others += 1
        return Channel(group, memory, f"{self._name}/another {self._num_others}")

    @property
    def group(self) -> dist.ProcessGroup:
        """Through which they exchange.

        Raises:
            RuntimeError: if it has been destroyed, or if the ranks have given up.
        """
        group = self._group()
        if group is None:
            raise RuntimeError(
                "The process group of a sharded model should last as long as it is used. Received "
                f"one that rank {self.rank} has destroyed."
            )
        if self._end:
            raise RuntimeError(self._end)
        return group

    def message(self, size: int, like: Tensor) -> Tensor:
        """Return memory for what this rank sends: whatever is packed there is sent without another copy.

        Args:
            size: elements.
            like: a tensor of its dtype.
        """
        return new_vector(size, like) if self._memory is None else self._memory.message(size, like)

    def start(
        self,
        sent: Tensor,
        sizes: Sequence[int],
        expected: Sequence[int],
        received: Tensor | None = None,
    ) -> Work:
        """Send each rank its part; all ranks call this, in the same order.

        Args:
            sent: ``(sum(sizes),)``; not to be written to before it is done.
            sizes: elements for each rank.
            expected: elements from each rank.
            received: where parts are brought together, ``(sum(expected),)``. Default: new memory.
        """
        sent, group = sent.contiguous(), self.group
        self._count((sent.numel() - sizes[self.rank]) * sent.element_size())
        with lost_ranks_named(group):
            if self._memory is not None:
                return self._memory.start(sent, sizes, expected, received)
            return SwapWork(group, sent, sizes, expected, received)

    def start_all_gather(self, sent: Tensor) -> Work:
        """Send all ranks the same; all call this, with as many elements, in the same order.

        Args:
            sent: ``(size,)``; not to be written to before all have read it.
        """
        if self._memory is None:
            sizes = [len(sent)] * self.world_size
            return self.start(sent.repeat(self.world_size), sizes, sizes)
        sent, group = sent.contiguous(), self.group
        self._count(sent.nbytes * (self.world_size - 1))
        with lost_ranks_named(group):
            return self._memory.start_all_gather(sent)

    def _count(self, sent_bytes: int) -> None:
        self.sent_bytes += sent_bytes
        self.sent_messages += self.world_size - 1

    def wait(self, work: Work, doing: str) -> None:
        """Wait until an exchange is done.

        Args:
            work: the exchange, which all ranks begin in the same order.
            doing: what it is, for errors.

        Raises:
            RuntimeError: on all ranks, with the same sentence, if one does not begin it within the time that the
                process group gives; or naming a rank that has ended.
        """
        self._exchanges += 1
        try:
            if not work.done_within(self._patience):
                self._wait_long(work, doing)
        except RuntimeError as error:
            self._end = self._end or decided(self._name)
            if self._end:
                raise RuntimeError(self._end) from error
            raise named(error, self.group) from error

    def _wait_long(self, work: Work, doing: str) -> None:
        """Wait, and let the others know where this rank does: those of whom nothing is known hold it up."""
        store, waits = default_store(), [self._key(rank) for rank in range(self.world_size)]
        store.set(waits[self.rank], doing)
        store.set(self._anywhere(self.rank), doing)
        # Before gloo gives up, which closes all connections, so that nobody knows any more who was missing.
        end = monotonic() + (0.9 * self._timeout - 2 * self._patience).total_seconds()
        while not work.done_within(self._patience / 4):
            self._end = decided(self._name)
            # Who has begun to wait just now has said so a little later.
            if not self._end and monotonic() > end and not work.done_within(self._patience):
                missing = [r for r in range(len(waits)) if not store.check([waits[r]])]
                stopped = Stopped(self._without_waiting(missing), doing="", is_alive=False)
                self._end = self._give_up(stopped, doing)
            if self._end:
                raise RuntimeError(self._end)
        store.delete_key(waits[self.rank])
        store.delete_key(self._anywhere(self.rank))

    @contextmanager
    def alive(self, doing: str) -> Iterator[None]:
        """Do something that may take longer than others wait, who see by signs of life that it goes on.

        Args:
            doing: what it is, for errors of those who wait in `meet`.
        """
        with signs_of_life(self._life(self.rank), doing, self._patience):
            yield

    def meet(self, ranks: Sequence[int], doing: str) -> None:
        """Wait until some of the ranks are here, all of which call this: others take no part.

        What they send one another then comes at once. Before, nobody could end waiting for it. One that is `alive` is
        waited for as long as it is.

        Args:
            ranks: which, this one among them.
            doing: what they are to do, for errors.

        Raises:
            RuntimeError: on all ranks, with the same sentence, if one of these waits for something else, or neither
                comes nor gives a sign of life within the time that the process group gives; or naming a rank that has
                ended.
        """
        group, number = self.group, self._met.get(tuple(ranks), 0)
        self._met[tuple(ranks)] = number + 1
        who = "all" if len(ranks) == self.world_size else str(tuple(ranks))
        keys = {rank: f"{self._name}/{who}/{number}/{rank}" for rank in ranks}
        store, others = default_store(), [rank for rank in ranks if rank != self.rank]
        store.set(keys[self.rank], doing)
        began, watch = monotonic(), None
        while others and not store.check([keys[rank] for rank in others]):
            waited = monotonic() - began
            if waited > self._patience.total_seconds():
                if watch is None:
                    watch = LifeWatch(self._timeout)
                    store.set(self._anywhere(self.rank), doing)
                self._look_for(group, {rank: keys[rank] for rank in others}, watch, doing)
            # The longer it takes, the less often: the store answers all ranks. `Store.wait` writes to the log when it
            # is given up, and lets nobody else use the store meanwhile.
            sleep(min(_POLLS[1], max(_POLLS[0], waited / 10)))
        if watch is not None:
            store.delete_key(self._anywhere(self.rank))
        # Who is here has found all keys of the time before. Those of this time stay until the next one: another rank
        # may not have looked yet, and nobody is told when the last one has.
        if number:
            store.delete_key(f"{self._name}/{who}/{number - 1}/{self.rank}")

    def _look_for(
        self, group: dist.ProcessGroup, keys: Mapping[int, str], watch: LifeWatch, doing: str
    ) -> None:
        """Raise, if one of the ranks that should be here, and are not, is not going to come."""
        store, now = default_store(), monotonic()
        missing = [rank for rank, key in keys.items() if not store.check([key])]
        holding_up = self._without_waiting(missing)
        stopped = watch.stopped({rank: read(store, self._life(rank)) for rank in holding_up}, now)
        self._end = decided(self._name) or self._elsewhere(missing, doing)
        if not self._end and stopped is not None:
            self._end = self._give_up(stopped, doing)
        if self._end:
            raise RuntimeError(self._end)
        # Not of those that are alive: each time leaves a message there, and they may work for days.
        silent = [
            r for r in holding_up if watch.silent_for(r, now) > 2 * self._patience.total_seconds()
        ]
        lost = [rank for rank in silent if is_closed(group, rank)]
        if lost:
            raise RuntimeError(ended(lost))

    def _elsewhere(self, missing: Sequence[int], doing: str) -> str:
        """Return what all ranks are to say if one that is missing waits for what comes next; nothing, if none does."""
        store = default_store()
        for rank in missing:
            key = f"{self._name}/{self._exchanges + 1}/{rank}"
            if store.check([key]):
                elsewhere = store.get(key).decode()
                return decide(self._name, out_of_order(doing, self.rank, elsewhere, rank))
        return ""

    def _without_waiting(self, missing: Sequence[int]) -> list[int]:
        """Return those of some ranks that hold others up; all of them, if there is no telling.

        Who waits in an exchange of other ranks, or of other things, waits for one of these as well.
        """
        store = default_store()
        return [r for r in missing if not store.check([self._anywhere(r)])] or list(missing)

    def _anywhere(self, rank: int) -> str:
        """Return what a rank of this group says that it waits by, in whichever exchange it is."""
        return note_of(self._ranks[rank])

    def _key(self, rank: int) -> str:
        return f"{self._name}/{self._exchanges}/{rank}"

    def _life(self, rank: int) -> str:
        return f"{self._name}/alive/{rank}"

    def _give_up(self, stopped: Stopped, doing: str) -> str:
        """Return what all ranks are to say; the first that gives up decides."""
        who = ranks_in_words(stopped.ranks)
        if not stopped.doing:
            received = f"nothing from {who}: it has stopped, or has left out what others do"
        elif stopped.is_alive:
            received = (
                f"signs of life alone from {who}: for so long, nothing has gone on in the middle of {stopped.doing}, "
                "which may wait for a file system or a lock"
            )
        else:
            received = (
                f"no sign of life from {who} in the middle of {stopped.doing}: it has stopped"
            )
        return decide(self._name, left_out(doing, self._timeout, received))


def _leave(memory: ReferenceType[SharedMemory]) -> None:
    found = memory()
    if found is not None:
        found.leave()
