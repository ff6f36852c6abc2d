"""Collectives in the process group of a program, which name the ranks that do not come.

Gloo says after its timeout that nothing has come, and not from whom. So a rank that waits for longer leaves a note in
the store, what it waits in; who has left none holds the others up. Ranks leave such notes where a sharded model
exchanges vectors, too: who waits there has not stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from time import monotonic

import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store

from torchrec.process_groups._private import default_store, is_gloo, timeout_of
from torchrec.process_groups.lost_ranks import lost_ranks_named, ranks_in_words
from torchrec.process_groups.notes import (
    decide,
    decided,
    left_out,
    note_of,
    out_of_order,
    read,
)

__all__ = ["all_gather", "all_reduce", "broadcast", "done_within", "wait_for"]

_PATIENCE = timedelta(seconds=2)  # how long a rank waits, at most, before it says where it is


def all_reduce(
    tensor: Tensor,
    doing: str,
    group: dist.ProcessGroup | None = None,
    op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM,
) -> None:
    """Do what `torch.distributed.all_reduce` does.

    Args:
        tensor: on any device that the group has a backend for; written to.
        doing: what it is part of, for errors; in words that are the same on all ranks.
        group: the ranks. Default: all.
        op: how numbers are put together. Default: added.

    Raises:
        RuntimeError: see `wait_for`.
    """
    with lost_ranks_named(_group(group)) as ranks:
        work = dist.all_reduce(tensor, op, ranks, async_op=True)
    wait_for(work, tensor, doing, ranks)


def all_gather(
    received: Sequence[Tensor], sent: Tensor, doing: str, group: dist.ProcessGroup | None = None
) -> None:
    """Do what `torch.distributed.all_gather` does.

    Args:
        received: one tensor for each rank, like ``sent``; written to.
        sent: of one shape and dtype on all ranks.
        doing: see `all_reduce`.
        group: the ranks. Default: all.

    Raises:
        RuntimeError: see `wait_for`.
    """
    with lost_ranks_named(_group(group)) as ranks:
        work = dist.all_gather(list(received), sent, ranks, async_op=True)
    wait_for(work, sent, doing, ranks)


def broadcast(
    tensor: Tensor, rank: int | None, doing: str, group: dist.ProcessGroup | None = None
) -> None:
    """Do what `torch.distributed.broadcast` does.

    Args:
        tensor: of one shape and dtype on all ranks; written to on all others.
        rank: of the group, whose tensor it is.
        doing: see `all_reduce`.
        group: the ranks. Default: all.

    Raises:
        RuntimeError: see `wait_for`.
    """
    with lost_ranks_named(_group(group)) as ranks:
        work = dist.broadcast(tensor, group=ranks, async_op=True, group_src=rank)
    wait_for(work, tensor, doing, ranks)


def _group(given: dist.ProcessGroup | None) -> dist.ProcessGroup:
    group = dist.group.WORLD if given is None else given
    assert group is not None  # asked only where there are several ranks
    return group


def wait_for(work: dist.Work | None, tensor: Tensor, doing: str, group: dist.ProcessGroup) -> None:
    """Wait for a collective that has been begun.

    On devices other than the CPU, and by backends other than gloo, only its own watchdog ends it.

    Args:
        work: the collective; None: this rank takes no part in it.
        tensor: that travels.
        doing: see `all_reduce`.
        group: the ranks.

    Raises:
        RuntimeError: on all ranks, with the same sentence, if one does not begin the collective, or waits in another
            one, until the timeout of the group is nearly over; or naming a rank that has ended.
    """
    if work is None:
        return
    if tensor.device.type != "cpu" or not is_gloo(group):
        work.wait()
        return
    timeout = timeout_of(group)
    patience, said = min(_PATIENCE, timeout / 5), ""
    try:
        with lost_ranks_named(group):
            if not done_within(work, patience):
                said = _wait_long(work, doing, group, timeout, patience)
    except RuntimeError as error:
        # By who has given up, which closes the connections of the others.
        said = decided(group.group_name)
        if not said:
            raise
        raise RuntimeError(said) from error
    if said:
        raise RuntimeError(said)


def _wait_long(
    work: dist.Work,
    doing: str,
    group: dist.ProcessGroup,
    timeout: timedelta,
    patience: timedelta,
) -> str:
    """Wait, and let others know where; return what all ranks are to say if one does not come, else nothing."""
    store, rank = default_store(), dist.get_rank(group)
    notes = [note_of(each) for each in dist.get_process_group_ranks(group)]
    # Before gloo gives up, which closes all connections: nobody could ask any more who was missing.
    end = monotonic() + (0.9 * timeout - 2 * patience).total_seconds()
    while not done_within(work, patience / 4):
        # Another thread of this process may wait as well: its note does, and is its own to take away.
        store.compare_set(notes[rank], "", doing)
        said = decided(group.group_name)
        # Who has begun to wait just now leaves a note a little later.
        if not said and monotonic() > end and not done_within(work, patience):
            said = _give_up(store, notes, rank, doing, group)
        if said:
            return said
    if read(store, notes[rank]) == doing:
        store.delete_key(notes[rank])
    return ""


def _give_up(
    store: Store, notes: Sequence[str], rank: int, doing: str, group: dist.ProcessGroup
) -> str:
    """Return what all ranks are to say, which the first that gives up decides; nothing, if all wait by the same."""
    waits = {each: read(store, note) for each, note in enumerate(notes) if each != rank}
    missing = [each for each, where in waits.items() if not where]
    elsewhere = [each for each, where in waits.items() if where != doing]
    if missing:
        stopped = f"{ranks_in_words(missing)}: it has stopped, or has left out what others do"
        text = left_out(doing, timeout_of(group), f"nothing from {stopped}")
    elif elsewhere:
        text = out_of_order(doing, rank, waits[elsewhere[0]], elsewhere[0])
    else:
        return ""
    return decide(group.group_name, text)


def done_within(work: dist.Work, time: timedelta) -> bool:
    """Wait for a collective by gloo for so long at most, and return whether it is done.

    Args:
        work: the collective; it goes on meanwhile, and after that.
        time: how long.

    Raises:
        RuntimeError: if it has failed.
    """
    try:
        work.wait(time)
    except RuntimeError:
        if work.is_completed():
            raise  # it has failed
        return False
    return True
