"""Numbers that one process writes and another waits for."""

from __future__ import annotations

import mmap
import threading
import time

import numpy as np
import pytest

from torchrec.ops.signals import can_signal, post, wait

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(not can_signal(), reason="there is no native library, or no Linux"),
]
SECOND = 1_000_000


@pytest.fixture
def addresses():
    """Four words and two bells, in memory that processes may share."""
    shared = np.frombuffer(mmap.mmap(-1, 4096), dtype=np.int64)
    start = shared.ctypes.data
    yield [start + 8 * i for i in range(4)], start + 64
    del shared


def test_it_waits_for_all_words(addresses):
    words, bell = addresses
    post(words[:2], [3, 5])
    assert wait(words[:2], [3, 5], bell, 0)
    assert wait([], [], bell, 0)
    assert not wait(words[:3], [3, 5, 1], bell, 1000)
    post(words[2:3], [7])
    assert wait(words[:3], [3, 5, 1], bell, 0)


def test_nobody_waits_longer_than_asked_for(addresses):
    words, bell = addresses
    start = time.monotonic()
    assert not wait(words[:1], [1], bell, SECOND // 20, SECOND // 100)
    assert 0.05 <= time.monotonic() - start < 2


@pytest.mark.parametrize("spin", [0, SECOND // 10])
def test_another_thread_wakes_it_at_once_and_python_goes_on_meanwhile(addresses, spin):
    words, bell = addresses
    timer = threading.Timer(0.05, post, (words[:1], [1], [bell]))
    timer.start()
    start = time.monotonic()
    assert wait(words[:1], [1], bell, 30 * SECOND, spin)
    assert time.monotonic() - start < 10
    timer.join()


def test_two_threads_answer_each_other(addresses):
    """Each number is written only when the other's was seen: one that is missed stops both."""
    (here, there, *_), bell = addresses
    other_bell, rounds, seen = bell + 64, 1000, []

    def answer():
        for i in range(1, rounds + 1):
            seen.append(wait([here], [i], other_bell, 10 * SECOND))
            post([there], [i], [bell])

    thread = threading.Thread(target=answer)
    thread.start()
    for i in range(1, rounds + 1):
        post([here], [i], [other_bell])
        assert wait([there], [i], bell, 10 * SECOND)
    thread.join()
    assert all(seen)


@pytest.mark.parametrize(
    ("words", "values", "bell"), [([0], [1], 8), ([12], [1], 8), ([8], [], 8), ([], [], 0)]
)
def test_what_is_no_address_is_refused(words, values, bell):
    with pytest.raises(ValueError, match="should"):
        wait(words, values, bell, 0)
