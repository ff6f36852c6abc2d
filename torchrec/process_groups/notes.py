"""What ranks tell one another in the store while they wait: where each is, and what all of them say in the end."""

from __future__ import annotations

from datetime import timedelta

from torch.distributed.distributed_c10d import Store

from torchrec.process_groups._private import default_store

__all__ = ["decide", "decided", "left_out", "note_of", "out_of_order", "read"]


def note_of(rank: int) -> str:
    """Return the key of what a rank waits in, whichever group it waits in.

    Args:
        rank: among all of the program.
    """
    return f"waits/{rank}"


def read(store: Store, key: str) -> str:
    """Return what stands in a store; nothing, if nothing does.

    Args:
        store: of the program.
        key: where.
    """
    return store.get(key).decode() if store.check([key]) else ""


def decide(name: str, text: str) -> str:
    """Return what all ranks of a group are to say: the first that gives up decides.

    Args:
        name: of the group.
        text: what this rank would say.
    """
    found: bytes = default_store().compare_set(f"{name}/end", "", text)
    return found.decode()


def decided(name: str) -> str:
    """Return what all ranks of a group are to say; nothing, if none has given up, or if there is no telling.

    Args:
        name: of the group.
    """
    try:
        return read(default_store(), f"{name}/end")
    except (RuntimeError, ValueError):
        # The store was that of a rank that has ended, or is destroyed: then nobody can say anything, and what the
        # collective itself has failed by is raised.
        return ""


def left_out(doing: str, timeout: timedelta, received: str) -> str:
    """Return what is said of ranks that do not come.

    Args:
        doing: where others wait.
        timeout: of their process group.
        received: from whom, and what instead.

    Example:
        >>> left_out("a step", timedelta(seconds=9), "nothing from rank 1")[:43]
        'All ranks should take part in a step within'
    """
    return (
        f"All ranks should take part in {doing} within {timeout.total_seconds():g} s, the `timeout` of their process "
        f"group. Received {received}."
    )


def out_of_order(doing: str, rank: int, elsewhere: str, other: int) -> str:
    """Return what is said of ranks that wait for each other in different things.

    Args:
        doing: where a rank waits.
        rank: it.
        elsewhere: where another one does.
        other: it.

    Example:
        >>> out_of_order("a step", 0, "a sum", 1)
        'All ranks should do the same in the same order. Received a step on rank 0, a sum on rank 1.'
    """
    return (
        f"All ranks should do the same in the same order. Received {doing} on rank {rank}, {elsewhere} on rank "
        f"{other}."
    )
