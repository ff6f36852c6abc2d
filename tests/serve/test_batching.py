"""Rows of many requests in one batch: who is joined with whom, who fails alone, who is turned away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from torchrec.serve.batching import Batcher, Rows, Scores
from torchrec.serve.failures import RefusedError
from torchrec.serve.limits import Limits

pytestmark = pytest.mark.once


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


class Model:
    """Doubles; notes what it was given, and waits at a gate if it has one."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, rows: Rows) -> Scores:
        self.gate.wait()
        self.batches.append([row["x"] for row in rows])
        for row in rows:
            if row["x"] == "odd":
                raise ValueError("Received 'odd'.")
        return {"first": [2 * row["x"] for row in rows], "second": [[row["x"]] for row in rows]}


def asked(*values: object) -> Rows:
    return [{"x": value} for value in values]


def test_requests_of_one_moment_are_one_batch(thread: ThreadPoolExecutor) -> None:
    model, seen = Model(), []

    async def run() -> list[Scores]:
        batcher = Batcher(model, thread, Limits(batch=4), lambda *numbers: seen.append(numbers))
        parts = [asked(1, 2), asked(3), asked(4, 5), asked(6)]
        return await asyncio.gather(*(batcher.scores(one) for one in parts))

    answers = asyncio.run(run())
    assert [one["first"] for one in answers] == [[2, 4], [6], [8, 10], [12]]
    assert [one["second"] for one in answers] == [[[1], [2]], [[3]], [[4], [5]], [[6]]]
    assert model.batches == [[1, 2, 3], [4, 5, 6]]  # what does not fit whole waits
    assert seen == [(3, 2), (3, 0)]


def test_requests_gather_while_a_batch_is_computed(thread: ThreadPoolExecutor) -> None:
    model = Model()

    async def run() -> None:
        batcher = Batcher(model, thread, Limits(batch=64))
        model.gate.clear()
        first = asyncio.create_task(batcher.scores(asked(0)))
        await asyncio.sleep(0.01)  # it is being computed
        others = [asyncio.create_task(batcher.scores(asked(i))) for i in range(1, 50)]
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(first, *others)

    asyncio.run(run())
    assert model.batches == [[0], list(range(1, 50))]


def test_a_batch_waits_for_requests_that_are_there_already(thread: ThreadPoolExecutor) -> None:
    """They are read in later turns of the loop; one that brings none ends the batch, and a full one goes."""
    model = Model()

    async def run(*late: int) -> None:
        batcher = Batcher(model, thread, Limits(batch=4))

        async def ask(value: int, turns: int) -> Scores:
            for _ in range(turns):
                await asyncio.sleep(0)
            return await batcher.scores(asked(value))

        await asyncio.gather(*(ask(value, turns) for value, turns in enumerate(late)))

    asyncio.run(run(0, 1, 2))
    assert model.batches == [[0, 1, 2]]
    model.batches.clear()
    asyncio.run(run(0, 0, 0, 0, 1))
    assert model.batches[0] == [0, 1, 2, 3]


def test_who_is_refused_fails_alone(thread: ThreadPoolExecutor) -> None:
    model = Model()

    async def run() -> list[Scores | BaseException]:
        batcher = Batcher(model, thread, Limits(batch=64))
        parts = [asked("odd" if i in (3, 20) else i) for i in range(32)]
        return await asyncio.gather(*map(batcher.scores, parts), return_exceptions=True)

    answers = asyncio.run(run())
    for i, answer in enumerate(answers):
        if i in (3, 20):
            assert isinstance(answer, ValueError)
        else:
            assert answer == {"first": [2 * i], "second": [[i]]}
    assert len(model.batches) <= 1 + 2 * 2 * 5  # halves of 32, for each of two


def test_a_full_queue_turns_away(thread: ThreadPoolExecutor) -> None:
    model = Model()

    async def run() -> list[Scores | BaseException]:
        batcher = Batcher(model, thread, Limits(queue=3))
        return await asyncio.gather(
            *(batcher.scores(asked(i)) for i in range(5)), return_exceptions=True
        )

    answers = asyncio.run(run())
    assert [isinstance(one, RefusedError) and one.status for one in answers] == [False] * 3 + [
        429
    ] * 2
    assert model.batches == [[0, 1, 2]]


def test_who_waits_too_long_is_given_up(thread: ThreadPoolExecutor) -> None:
    model = Model()

    async def run() -> list[Scores | BaseException]:
        batcher = Batcher(model, thread, Limits(wait=0.01))
        model.gate.clear()
        tasks = [asyncio.create_task(batcher.scores(asked(0)))]
        await asyncio.sleep(0.01)
        tasks.append(asyncio.create_task(batcher.scores(asked(1))))
        await asyncio.sleep(0.05)
        tasks.append(asyncio.create_task(batcher.scores(asked("odd"))))
        tasks[2].cancel()
        model.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, late, cancelled = asyncio.run(run())
    assert first == {"first": [0], "second": [[0]]}
    assert isinstance(late, RefusedError)
    assert late.status == 503
    assert isinstance(cancelled, asyncio.CancelledError)
    assert model.batches == [[0]]


@pytest.mark.parametrize(("gather", "batches"), [(0.0, [[0], [1], [2]]), (60.0, [[0, 1, 2]])])
def test_a_batch_gathers_if_it_is_to(
    thread: ThreadPoolExecutor, gather: float, batches: list[list[int]]
) -> None:
    """Until it is full: nobody waits a minute."""
    model = Model()

    async def run() -> None:
        batcher = Batcher(model, thread, Limits(batch=3, gather=gather))
        tasks = []
        for i in range(3):
            tasks.append(asyncio.create_task(batcher.scores(asked(i))))
            while not gather and not tasks[-1].done():
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert model.batches == batches


def test_a_batch_that_stays_small_goes_when_its_time_is_over(thread: ThreadPoolExecutor) -> None:
    async def run() -> Scores:
        return await Batcher(Model(), thread, Limits(gather=0.001)).scores(asked(1))

    assert asyncio.run(run())["first"] == [2]


def test_a_thread_that_is_gone_leaves_nobody_waiting() -> None:
    async def run() -> list[Scores | BaseException]:
        pool = ThreadPoolExecutor(1)
        batcher = Batcher(Model(), pool, Limits(batch=1))
        pool.shutdown()
        calls = [batcher.scores(asked(i)) for i in range(3)]
        return await asyncio.gather(*calls, return_exceptions=True)

    statuses = [one.status for one in asyncio.run(run()) if isinstance(one, RefusedError)]
    assert statuses == [503] * 3
