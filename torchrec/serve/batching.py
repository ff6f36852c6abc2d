"""One batch of the rows of several requests: what makes many small ones cheap."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torchrec.serve.failures import RefusedError, busy, late
from torchrec.serve.limits import Limits

Rows = Sequence[dict[str, Any]]
Scores = dict[str, list[Any]]
"""By task, what is predicted of each row: a number, or one a class."""


@dataclass(slots=True)
class _Question:
    rows: Rows
    answer: asyncio.Future[Scores]
    since: float


class Batcher:
    """Joins the rows of requests that wait for the same model.

    While a batch is computed, in another thread, requests gather for the next, which is taken once all are read that
    have come. Nothing waits for a clock unless it is asked to (`Limits.gather`): a request that comes alone is computed
    alone, and the more there are, the larger batches become. A request whose rows the model refuses fails alone: the
    others of its batch are computed without.

    Args:
        predict: gives the scores of rows.
        thread: where it runs.
        limits: of rows in a batch, requests that wait, and how long.
        observe: is told of each batch, how many rows it has and how many requests still wait. Default: nobody is.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> sizes = []
        >>> def predict(rows):
        ...     sizes.append(len(rows))
        ...     return {"labels": [row["x"] / 2 for row in rows]}
        >>> async def ask(*values):
        ...     batcher = Batcher(predict, thread, Limits(batch=3))
        ...     return await asyncio.gather(*(batcher.scores([{"x": x}]) for x in values))
        >>> with ThreadPoolExecutor(1) as thread:
        ...     answers = asyncio.run(ask(2, 4, 6, 8))
        >>> [answer["labels"] for answer in answers], sizes
        ([[1.0], [2.0], [3.0], [4.0]], [3, 1])
    """

    def __init__(
        self,
        predict: Callable[[Rows], Scores],
        thread: Executor,
        limits: Limits,
        observe: Callable[[int, int], object] = lambda rows, waiting: None,
    ) -> None:
        self._predict, self._thread, self._limits = predict, thread, limits
        self._observe = observe
        self._waiting: deque[_Question] = deque()
        self._rows = 0  # that wait
        self._enough = asyncio.Event()  # rows for a batch
        self._running: asyncio.Task[None] | None = None

    async def scores(self, rows: Rows) -> Scores:
        """Return what is predicted for some rows, at most as many as a batch has.

        Raises:
            RefusedError: too many requests wait (429), or this one has waited for too long (503).
        """
        if len(self._waiting) >= self._limits.queue:
            raise busy(
                f"At most {self._limits.queue:,} requests should wait for the model. Received one more: ask "
                "again later."
            )
        loop = asyncio.get_running_loop()
        question = _Question(rows, loop.create_future(), loop.time())
        self._waiting.append(question)
        self._rows += len(rows)
        if self._rows >= self._limits.batch:
            self._enough.set()
        if self._running is None:
            # It starts after all that is ready now, among it other requests that have just come.
            self._running = loop.create_task(self._run())
        return await question.answer

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        batch: list[_Question] = []
        try:
            while self._waiting:
                if self._limits.gather and not self._enough.is_set():
                    await self._gather()
                await self._come_in()
                batch = self._take(loop.time())
                if not batch:
                    continue
                self._observe(sum(len(one.rows) for one in batch), len(self._waiting))
                parts = [one.rows for one in batch]
                found = await loop.run_in_executor(self._thread, _answers, self._predict, parts)
                for one, answer in zip(batch, found, strict=True):
                    _settle(one.answer, answer)
        finally:
            self._running = None
            for one in (
                *batch,
                *self._waiting,
            ):  # who has no answer yet, as where the thread was shut down
                _settle(one.answer, RefusedError(503, "The server should be running. It stops."))
            self._waiting.clear()
            self._rows = 0

    async def _gather(self) -> None:
        with suppress(TimeoutError, asyncio.TimeoutError):  # two types before Python 3.11
            await asyncio.wait_for(self._enough.wait(), self._limits.gather)

    async def _come_in(self) -> None:
        """Let requests in that are there already but not read, turn after turn of the loop until one brings no more.

        A turn takes some microseconds, and makes batches half as large again.
        """
        seen = 0
        while seen < len(self._waiting) and self._rows < self._limits.batch:
            seen = len(self._waiting)
            await asyncio.sleep(0)

    def _take(self, now: float) -> list[_Question]:
        """Take the requests of the next batch from those that wait; give up those that have waited for too long."""
        taken: list[_Question] = []
        rows = 0
        while self._waiting:
            size = len(self._waiting[0].rows)
            if taken and rows + size > self._limits.batch:
                break
            one = self._waiting.popleft()
            self._rows -= size
            if now - one.since > self._limits.wait:
                _settle(one.answer, late(self._limits.wait))
            elif not one.answer.done():  # as it is where who asked has been cancelled
                taken.append(one)
                rows += size
        if self._rows < self._limits.batch:
            self._enough.clear()
        return taken


def _settle(future: asyncio.Future[Scores], answer: Scores | Exception) -> None:
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def _answers(predict: Callable[[Rows], Scores], parts: Sequence[Rows]) -> list[Scores | Exception]:
    """Return the scores of each request, or why it has none."""
    try:
        found = predict(parts[0] if len(parts) == 1 else [row for rows in parts for row in rows])
    except Exception as error:
        if len(parts) == 1:
            return [error]
        # Halves: one request of 64 that is refused costs twelve predictions, not 64.
        middle = len(parts) // 2
        return _answers(predict, parts[:middle]) + _answers(predict, parts[middle:])
    answers: list[Scores | Exception] = []
    start = 0
    for rows in parts:
        end = start + len(rows)
        answers.append({task: scores[start:end] for task, scores in found.items()})
        start = end
    return answers
