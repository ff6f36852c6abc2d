"""How ranks that wait tell one that works for long from one that has stopped.

A rank that reads or writes says nothing to others meanwhile, for minutes or hours. So a thread beside counts up a
number in the store, and writes there how long the one that works has had a processor: the number stands still once the
process does, and the time once what it does waits for something that does not come.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from threading import Event, Thread, get_ident
from typing import NamedTuple

from torchrec.process_groups import default_store

__all__ = ["LifeWatch", "Stopped", "signs_of_life"]


@contextmanager
def signs_of_life(key: str, doing: str, every: timedelta) -> Iterator[None]:
    """Let others see by the store that this rank is alive, and whether its thread runs, while inside.

    Args:
        key: of the store, which this rank alone writes to; empty afterwards.
        doing: what it does, for errors of others.
        every: how often a sign is given.
    """
    default_store().set(key, f"0 0 {doing}")
    over = Event()
    arguments = (key, doing, every, _processor_time(), over)
    thread = Thread(target=_give_signs, args=arguments, name="signs of life")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _processor_time() -> Callable[[], int]:
    """Return what tells how long the thread that asks for it has had a processor, in whichever thread it is called."""
    if not hasattr(time, "pthread_getcpuclockid"):  # as on macOS: it then never stands still
        return time.monotonic_ns
    return partial(time.clock_gettime_ns, time.pthread_getcpuclockid(get_ident()))


def _give_signs(
    key: str, doing: str, every: timedelta, ran: Callable[[], int], over: Event
) -> None:
    number = 0
    try:
        store = default_store()
        while not over.wait(every.total_seconds()):
            number += 1
            store.set(key, f"{number} {ran()} {doing}")
        store.set(key, "")
    except (RuntimeError, ValueError):
        # With the store, which was where a rank has ended, or is destroyed: whoever waits finds that out without us.
        return


class Stopped(NamedTuple):
    """Ranks that have stopped, all in the same way.

    Attributes:
        ranks: which.
        doing: what they said that they were doing; nothing, if they never gave a sign.
        is_alive: whether they go on giving signs: then it is the thread that works which does not run.
    """

    ranks: list[int]
    doing: str
    is_alive: bool


@dataclass
class _Seen:
    """What was seen of a rank last, and since when it has not changed."""

    number_at: float
    ran_at: float
    number: str = ""
    ran: str = ""
    doing: str = ""

    def see(self, sign: str, now: float) -> None:
        """Take note of what a rank has written; nothing: it gives no signs, or no longer."""
        number, ran, doing = sign.split(" ", 2) if sign else ("", "", "")
        if number != self.number:
            self.number, self.number_at = number, now
        if (ran, doing) != (self.ran, self.doing):
            self.ran, self.doing, self.ran_at = ran, doing, now


class LifeWatch:
    """What a rank that waits makes of the signs of life of others.

    Args:
        patience: how long a rank may give no new one, or its thread not run.
    """

    def __init__(self, patience: timedelta) -> None:
        self._patience = patience.total_seconds()
        self._seen: dict[int, _Seen] = {}

    def stopped(self, signs: Mapping[int, str], now: float) -> Stopped | None:
        """Return those ranks that have stopped; None: all may go on.

        Args:
            signs: what `signs_of_life` has written last, by rank, of those that are waited for; nothing of those that
                wait themselves, whose time begins anew.
            now: seconds. To be asked every now and then: signs are held against those of the time before.

        Example:
            >>> watch = LifeWatch(timedelta(seconds=60))
            >>> watch.stopped({1: "7 5000 reading"}, now=50.0), watch.stopped({1: "7 5000 reading"}, now=100.0)
            (None, None)
            >>> watch.stopped({1: "7 5000 reading"}, now=111.0)
            Stopped(ranks=[1], doing='reading', is_alive=False)
        """
        self._seen = {rank: self._seen.get(rank) or _Seen(now, now) for rank in signs}
        for rank, sign in signs.items():
            self._seen[rank].see(sign, now)
        silent = [rank for rank in signs if now - self._seen[rank].number_at > self._patience]
        idle = [rank for rank in signs if now - self._seen[rank].ran_at > self._patience]
        found = silent or idle
        if not found:
            return None
        doing = self._seen[found[0]].doing
        alike = [rank for rank in found if self._seen[rank].doing == doing]
        return Stopped(alike, doing, is_alive=not silent)

    def silent_for(self, rank: int, now: float) -> float:
        """Return how many seconds ago a rank gave its last new sign, or was first asked for.

        Args:
            rank: that `stopped` was asked of.
            now: seconds.
        """
        return now - self._seen[rank].number_at
