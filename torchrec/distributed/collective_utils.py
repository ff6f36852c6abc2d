"""What one rank does for all: a function's result, or its error."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from torch.distributed import ProcessGroup

from torchrec.distributed.wire import Wire

__all__ = ["invoke_on_rank_and_broadcast_result", "is_leader", "run_on_leader"]

T = TypeVar("T")


def is_leader(pg: ProcessGroup | None, leader_rank: int = 0) -> bool:
    """Return whether this process is the one that does something for all.

    Args:
        pg: the ranks; None: there is one, which is.
        leader_rank: which of them does it. Default: the first.

    Example:
        >>> is_leader(None)
        True
    """
    return pg is None or pg.rank() == leader_rank


def invoke_on_rank_and_broadcast_result(
    pg: ProcessGroup, rank: int, func: Callable[..., T], *args: Any, **kwargs: Any
) -> T:
    """Call a function on one rank, and return on all what it returned; every rank calls this.

    Args:
        pg: the ranks.
        rank: which of them calls it, of the group.
        func: what it returns should be picklable.
        args: of the function.
        kwargs: likewise.

    Raises:
        ValueError, TypeError, IndexError, KeyError, OSError, RuntimeError: on all ranks, if it failed.
    """
    if not 0 <= rank < pg.size():
        raise ValueError(f"`rank` should be from 0 to {pg.size() - 1}. Received {rank}.")
    return Wire(pg).on_one(lambda: func(*args, **kwargs), "what one rank does for all", rank)


def run_on_leader(pg: ProcessGroup, rank: int) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Have a function run on one rank, and return on all what it returned.

    Args:
        pg: the ranks, which all call it.
        rank: which of them runs it, of the group.
    """

    def decorate(func: Callable[..., T]) -> Callable[..., T]:
        @wraps(func)
        def on_leader(*args: Any, **kwargs: Any) -> T:
            return invoke_on_rank_and_broadcast_result(pg, rank, func, *args, **kwargs)

        return on_leader

    return decorate
