"""Ranks meet where nobody was before them, whoever has left what in the store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from time import sleep

import pytest
from torch.distributed import HashStore

from torchrec.training.meeting import absent_ranks, meeting_place

pytestmark = pytest.mark.once


def test_ranks_meet_at_another_place_each_time() -> None:
    store, places = HashStore(), []
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        with ThreadPoolExecutor(3) as pool:
            found = []
            for rank in order:
                found.append(pool.submit(meeting_place, store, rank, 3, 20))
                sleep(0.03)
            assert len({each.result() for each in found}) == 1
            places.append(found[0].result())
    assert len(set(places)) == 3


def test_a_rank_that_was_killed_while_it_waited_is_replaced() -> None:
    store = HashStore()
    store.set("present/1", "killed")  # the others are called, and it does not answer
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(meeting_place, store, 0, 2, 20)
        sleep(0.1)
        second = pool.submit(meeting_place, store, 1, 2, 20)
        assert first.result() == second.result() == "attempt/2/"


@pytest.mark.parametrize(("rank", "missing"), [(0, "ranks [1, 2]"), (1, "rank 0")])
def test_ranks_that_do_not_start_are_named(rank: int, missing: str) -> None:
    with pytest.raises(RuntimeError) as raised:
        meeting_place(HashStore(), rank, 3, 0.1)
    assert str(raised.value) == (
        f"All ranks should have started within 0.1 s. Received nothing from {missing}."
    )


def test_ranks_that_do_not_answer_are_named() -> None:
    store = HashStore()
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(absent_ranks, store, rank, 4, 0.2) for rank in (0, 2)]
    assert [each.result() for each in found] == [[1, 3], [1, 3]]
    assert absent_ranks(HashStore(), 0, 1, 0.2) == []
