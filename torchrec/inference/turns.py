"""A lock for calls that take turns."""

from __future__ import annotations

import collections
import threading


class Turns:
    """A lock that goes to who has waited longest.

    Python runs one thread at a time and lets it run for 5 ms, so of threads that make short calls one makes
    a dozen in a row, and whoever is interrupted in the midst of one waits for all others to do the same. A
    plain lock does not help: who gives it up takes it again before others have woken up. With turns each waits for
    one call of each of the others, and as many calls are made in all.

    Example:
        >>> turns = Turns()
        >>> with turns:
        ...     print("mine")
        mine
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: collections.deque[threading.Lock] = collections.deque()
        self._is_taken = False

    def __reduce__(self) -> tuple[type[Turns], tuple[()]]:
        """Copy and pickle as a new one that nobody holds."""
        return Turns, ()

    def __enter__(self) -> None:
        with self._guard:
            if not self._is_taken:
                self._is_taken = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        turn.acquire()  # which whoever is before this releases

    def __exit__(self, *error: object) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_taken = False
