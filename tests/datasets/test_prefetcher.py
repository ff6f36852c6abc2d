"""Working ahead in threads, where loaders do not show it."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

import pytest

from torchrec.datasets._prefetcher import Prefetcher

pytestmark = pytest.mark.once


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


def wait_for_their_end() -> None:
    end = time.monotonic() + 10
    while readers() and time.monotonic() < end:
        time.sleep(0.01)
    assert not readers()


def test_results_come_in_order() -> None:
    def slower_at_first(x: int) -> int:
        time.sleep(0.02 / (x + 1))
        return x * x

    assert list(Prefetcher((x for x in range(20)), slower_at_first, 4)) == [
        x * x for x in range(20)
    ]
    wait_for_their_end()


def test_stop_iteration_is_an_error_and_no_end() -> None:
    def exhausted(x: int) -> int:
        return x if x < 2 else next(iter(()))

    ahead = Prefetcher((x for x in range(5)), exhausted, 2)
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(RuntimeError, match="raised StopIteration") as error:
        next(ahead)
    assert isinstance(error.value.__cause__, StopIteration)
    wait_for_their_end()


def test_a_reader_that_collects_garbage_may_close() -> None:
    """It holds the lock that the others wait for."""

    def items() -> Generator[int, None, None]:
        made.wait()
        yield 0
        ahead.close()
        yield 1

    made = threading.Event()
    ahead = Prefetcher(items(), lambda x: x, 3)
    made.set()
    assert list(ahead) in ([0], [0, 1])
    wait_for_their_end()


def test_a_reader_may_close_what_another_loader_left() -> None:
    left = Prefetcher(iter_forever(), lambda x: x, 2)
    assert list(Prefetcher((x for x in range(2)), lambda x: left.close(), 1)) == [None, None]
    wait_for_their_end()


def iter_forever() -> Generator[int, None, None]:
    while True:
        yield 0
