"""Working ahead of a consumer in threads: in order, a bounded number of steps, and without leaving a thread behind."""

from __future__ import annotations

import atexit
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_open: weakref.WeakSet[Any] = weakref.WeakSet()
_thread = threading.local()  # `.is_reader`: whether it is one of ours


class Prefetcher(Generic[T, R]):
    """The results of a function for each item of a generator, worked out ahead in threads.

    The generator runs in one thread at a time, the function in all of them. What either raises is
    raised where its result would have been, and ends the iteration.

    Args:
        items: what to work on.
        function: the work.
        workers: number of threads, at least 1, and of results that wait at most.
    """

    def __init__(
        self, items: Generator[T, None, None], function: Callable[[T], R], workers: int
    ) -> None:
        self._items = items
        self._function = function
        self._limit = workers
        self._taking = threading.Lock()
        self._changed = threading.Condition()
        self._results: dict[int, tuple[R | None, BaseException | None]] = {}
        self._taken = self._given = 0
        self._ended = self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"reader-{index}", daemon=True)
            for index in range(workers)
        ]
        _open.add(self)
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Iterator[R]:
        return self

    def __next__(self) -> R:
        with self._changed:
            self._changed.wait_for(
                lambda: self._given in self._results or (self._ended and self._given == self._taken)
            )
            if self._given not in self._results:
                raise StopIteration
            result, error = self._results.pop(self._given)
            self._given += 1
            self._changed.notify_all()
        if error is not None:
            self.close()
            if isinstance(error, StopIteration):  # it would pass for the end
                raise RuntimeError("The function raised StopIteration.") from error
            raise error
        return result  # type: ignore[return-value]

    def close(self) -> None:
        """Stop the threads and wait for them.

        A thread of ours does not wait: the garbage collector may close, in any thread and at any
        moment, what was given up unfinished, and they could hold what the others wait for.
        """
        with self._changed:
            self._closed = self._ended = True
            self._changed.notify_all()
        if sys.is_finalizing() or getattr(_thread, "is_reader", False):
            return  # when Python ends, threads stand still and would be waited for in vain
        for thread in self._threads:
            thread.join()
        self._items.close()
        self._results.clear()
        _open.discard(self)

    def _work(self) -> None:
        _thread.is_reader = True
        while True:
            with self._taking:
                with self._changed:
                    self._changed.wait_for(self._may_take)
                    if self._ended:
                        return
                index = self._taken
                try:
                    item = next(self._items)
                except StopIteration:
                    self._finish(None, None)
                    return
                except BaseException as error:
                    self._finish(index, error)
                    return
                self._taken += 1
            self._put(index, item)
            del item

    def _put(self, index: int, item: T) -> None:
        """Work on an item, and leave the result, or the error, to the consumer."""
        outcome: tuple[R | None, BaseException | None]
        try:
            outcome = self._function(item), None
        except BaseException as error:
            outcome = None, error
        with self._changed:
            self._results[index] = outcome
            self._changed.notify_all()

    def _may_take(self) -> bool:
        return self._ended or self._taken - self._given < self._limit

    def _finish(self, index: int | None, error: BaseException | None) -> None:
        """Take note that there is no further item, or that getting it failed."""
        with self._changed:
            if index is not None:
                self._results[index] = None, error
                self._taken += 1
            self._ended = True
            self._changed.notify_all()


@atexit.register
def _close_all() -> None:
    for prefetcher in list(_open):
        prefetcher.close()
