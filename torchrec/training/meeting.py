"""How ranks that were started again find one another in a store that those before them have used."""

from __future__ import annotations

from time import monotonic, sleep
from uuid import uuid4

from torch.distributed.distributed_c10d import Store

from torchrec.process_groups.lost_ranks import ranks_in_words

_POLL = 0.02  # seconds


def meeting_place(store: Store, rank: int, size: int, timeout: float) -> str:
    """Return a prefix of keys that is common to the ranks that are alive, and that none before them has used.

    `torchrun` keeps one store for all attempts of a job, in which a rank would find where one listened that has
    been killed since. Nor do the agents of several hosts count attempts alike: only the one whose rank has failed
    counts it. So the first rank calls the others together: each says who it is, the first gives all of them
    a number, and another one whenever somebody has come in place of a rank that is gone, until all have
    answered to it.

    Args:
        store: of the job.
        rank: which this is.
        size: how many there are.
        timeout: seconds to wait for the others.

    Raises:
        RuntimeError: naming the ranks that have not come.
    """
    end = monotonic() + timeout
    me = uuid4().hex
    store.set(f"present/{rank}", me)
    return (
        _call(store, me, size, end, timeout)
        if rank == 0
        else _follow(store, rank, me, end, timeout)
    )


def _call(store: Store, me: str, size: int, end: float, timeout: float) -> str:
    """Give the ranks that are there a number, until all have answered to it."""
    called: list[str] = []
    place, answers = "", list[str]()
    while not (answers and store.check(answers)):
        keys = [f"present/{rank}" for rank in range(size)]
        missing = [rank for rank, key in enumerate(keys) if not store.check([key])]
        present = [] if missing else [store.get(key).decode() for key in keys]
        if present != called:
            called, place = present, f"attempt/{store.add('attempts', 1)}/"
            answers = [f"{place}answered/{who}" for who in present[1:]]
            for who in present[1:]:
                store.set(f"called/{who}", place)
        elif monotonic() > end:
            raise _late(
                missing or [r for r, key in enumerate(answers, 1) if not store.check([key])],
                timeout,
            )
        sleep(_POLL)
    store.set(f"{place}begun", me)
    return place


def _follow(store: Store, rank: int, me: str, end: float, timeout: float) -> str:
    """Answer to the number that the first rank gives last."""
    answered = ""
    while not (answered and store.check([f"{answered}begun"])):
        if store.check([f"called/{me}"]):
            place = store.get(f"called/{me}").decode()
            if place != answered:
                answered = place
                store.set(f"{place}answered/{me}", str(rank))
        elif monotonic() > end:
            raise _late([0], timeout)
        sleep(_POLL)
    return answered


def absent_ranks(store: Store, rank: int, size: int, patience: float) -> list[int]:
    """Return the ranks that do not answer, where one has found out that something is wrong.

    All that find out call this within a few seconds, as the connections of one that gives up are closed.

    Args:
        store: of these ranks alone.
        rank: which this is.
        size: how many there are.
        patience: seconds to wait for others.
    """
    store.set(f"answers/{rank}", "")
    end = monotonic() + patience
    while True:
        absent = [each for each in range(size) if not store.check([f"answers/{each}"])]
        if not absent or monotonic() > end:
            return absent
        sleep(_POLL)


def _late(ranks: list[int], timeout: float) -> RuntimeError:
    return RuntimeError(
        f"All ranks should have started within {timeout:g} s. Received nothing from "
        f"{ranks_in_words(ranks)}."
    )
