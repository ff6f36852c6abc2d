"""Threads that take turns: one at a time, in the order in which they came."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from torchrec.inference.turns import Turns

pytestmark = pytest.mark.once


def test_one_at_a_time() -> None:
    turns, inside, most = Turns(), 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(50):
            with turns:
                inside += 1
                most = max(most, inside)
                time.sleep(0)
                inside -= 1

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work) for _ in range(8)]:
            future.result()
    assert (inside, most) == (0, 1)


def test_who_has_waited_longest_is_next() -> None:
    """A thread that comes back at once stands behind those that wait."""
    turns, order, waiting = Turns(), [], threading.Semaphore(0)

    def wait(name: str) -> None:
        waiting.release()
        with turns:
            order.append(name)

    with ThreadPoolExecutor(8) as pool:
        futures = []
        with turns:
            for name in "abcde":
                futures.append(pool.submit(wait, name))
                waiting.acquire()
                time.sleep(0.02)  # until it stands in the line
        with turns:
            order.append("first again")
        for future in futures:
            future.result()
    assert order == [*"abcde", "first again"]


def test_an_error_gives_the_turn_away() -> None:
    turns = Turns()
    with pytest.raises(ZeroDivisionError), turns:
        1 / 0  # noqa: B018
    with turns:
        pass


def test_a_copy_is_free() -> None:
    turns = Turns()
    with turns, pickle.loads(pickle.dumps(turns)), copy.deepcopy(turns):
        pass
