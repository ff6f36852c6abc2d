"""What ranks say of those that have ended."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist

from torchrec.process_groups._private import is_gloo

__all__ = ["ended", "is_closed", "is_of_lost_ranks", "lost_ranks_named", "named", "ranks_in_words"]

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
        found = named(error, group)
        if found is error:
            raise
        raise found from error


def named(error: RuntimeError, group: dist.ProcessGroup) -> RuntimeError:
    """Return an error that says which ranks are gone, if that is what an exchange by gloo has failed by, else the same.

    Args:
        error: of the exchange.
        group: the ranks.
    """
    if not is_of_lost_ranks(error) or not is_gloo(group):
        return error
    waited = re.search(r"Timed out waiting (\d+)ms", str(error))
    if waited is not None:
        return RuntimeError(
            f"Rank {dist.get_rank(group)} should get an answer within {int(waited[1]) / 1000:g} s, the "
            "`timeout` of its process group. Received none: another rank has stopped, or has left out "
            "what this one does."
        )
    others = [rank for rank in range(dist.get_world_size(group)) if rank != dist.get_rank(group)]
    # A process that ends closes all the connections it has, at once.
    lost = [rank for rank in others if is_closed(group, rank)]
    return RuntimeError(ended(lost)) if lost else error


def ended(lost: Sequence[int]) -> str:
    """Return what all others say of ranks that have ended.

    Args:
        lost: those.

    Example:
        >>> ended([2])[48:]
        'Received nothing more from rank 2, which has ended: what was written there last says why.'
    """
    have = "has" if len(lost) == 1 else "have"
    return (
        "All ranks should take part until the last step. Received nothing more from "
        f"{ranks_in_words(lost)}, which {have} ended: what was written there last says why."
    )


def ranks_in_words(ranks: Sequence[int]) -> str:
    """Name ranks in a sentence.

    Args:
        ranks: at least one.

    Example:
        >>> ranks_in_words([2]), ranks_in_words([0, 3])
        ('rank 2', 'ranks [0, 3]')
    """
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {list(ranks)}"


def is_of_lost_ranks(error: RuntimeError) -> bool:
    """Whether an error is what an exchange of gloo fails by where a rank is gone, or does not answer.

    Args:
        error: any.
    """
    return _LOST.search(str(error)) is not None


def is_closed(group: dist.ProcessGroup, rank: int) -> bool:
    """Whether the connection to a rank is closed.

    Args:
        group: the ranks.
        rank: of the group, another one.
    """
    try:
        # Never waited for: who is still there need not take it, and giving up would close that connection, too.
        # Its tag is that of nothing else, so that nobody takes it for a message.
        dist.isend(torch.zeros(1), group=group, group_dst=rank, tag=1)
    except RuntimeError:
        return True
    return False
