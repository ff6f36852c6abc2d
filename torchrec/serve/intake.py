"""How bodies come in: their type, and no more bytes at once than fit."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from torchrec.serve.bodies import ARROW, JSON
from torchrec.serve.desk import Request
from torchrec.serve.failures import RefusedError, busy
from torchrec.serve.limits import Limits


def media_type(request: Request) -> str:
    """Return the type of a request's body, `JSON` or `ARROW`.

    Raises:
        RefusedError: it is another, or the body is compressed (415).
    """
    coding = request.header(b"content-encoding")
    if coding.strip().lower() not in ("", "identity"):
        raise RefusedError(
            415,
            f"`Content-Encoding` should be left out: bodies are not compressed. Received '{coding[:80]}'.",
        )
    given = request.header(b"content-type").partition(";")[0].strip().lower()
    if given not in (JSON, ARROW):
        raise RefusedError(
            415, f"`Content-Type` should be {JSON} or {ARROW}. Received '{given[:80]}'."
        )
    return given


class Intake:
    """Reads the bodies of requests, no more of them at once than fit.

    Args:
        limits: of one body, of all together, and of how long one takes to come.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pending = 0  # bytes of requests under way
        self._deadlines = _Deadlines(limits.wait)

    def room(self) -> Room:
        """Return room for a body, which is given back when what is done with it ends."""
        return Room(self, self._limits, self._deadlines)

    def take(self, more: int) -> None:
        """Count further bytes as under way.

        Raises:
            RefusedError: there are too many (429).
        """
        if self._pending + more > self._limits.pending:
            raise busy(
                f"Requests under way should have at most {self._limits.pending:,} bytes together. Received more: "
                "ask again later."
            )
        self._pending += more

    def give_back(self, size: int) -> None:
        """Count bytes as under way no more."""
        self._pending -= size


class Room:
    """What the body of one request takes of what all may have together.

    Args:
        intake: counts bytes of all.
        limits: of one.
        deadlines: of bodies that come.
    """

    def __init__(self, intake: Intake, limits: Limits, deadlines: _Deadlines) -> None:
        self._intake, self._limits, self._deadlines = intake, limits, deadlines
        self._taken = 0

    def __enter__(self) -> Room:
        return self

    def __exit__(self, *error: object) -> None:
        self._intake.give_back(self._taken)

    async def read(self, request: Request) -> bytes:
        """Return the body of a request.

        Raises:
            RefusedError: it is too large (413), or there are too many (429), or it does not come (408).
        """
        declared = _length(request)
        self._grow(declared, f"{declared:,}")
        parts: list[bytes] = []
        size = 0
        with self._deadlines:
            more = True
            while more:
                message = await request.receive()
                if message["type"] != "http.request":
                    raise RefusedError(400, "The body of a request should come. It broke off.")
                part: bytes = message.get("body", b"")
                more = message.get("more_body", False)
                size += len(part)
                if size > self._taken:  # sent in chunks, whose sum nobody has declared
                    self._grow(size, "more")
                parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _grow(self, size: int, received: str) -> None:
        if size > self._limits.body:
            raise RefusedError(
                413,
                f"The body of a request should have at most {self._limits.body:,} bytes. Received {received}.",
                {"connection": "close"},
            )
        self._intake.take(size - self._taken)
        self._taken = size


class _Deadlines:
    """Refuses (408) what a task does within, if it takes longer than so many seconds.

    They are the same for all, so what began first is due first, and one timer serves: one for each request would cost
    as much as all else that is done to read a body that has come.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due: dict[asyncio.Task[Any], float] = {}  # in the order in which they began
        self._over: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None  # that has the timer

    def __enter__(self) -> None:
        loop, task = asyncio.get_running_loop(), _this_task()
        self._due[task] = due = loop.time() + self._seconds
        if self._loop is not loop:
            self._start(loop, due)

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        task = _this_task()
        self._due.pop(task, None)
        if task not in self._over:
            return
        self._over.remove(task)
        if kind is asyncio.CancelledError:
            if sys.version_info >= (3, 11):
                task.uncancel()
            raise RefusedError(
                408,
                f"The body of a request should come within {self._seconds:g} s. It did not.",
                {"connection": "close"},
            ) from None

    def _start(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._loop = loop
        loop.call_at(due, self._expire, loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = None
        for task, due in list(self._due.items()):
            if due > loop.time():
                self._start(loop, due)
                break
            del self._due[task]
            self._over.add(task)
            task.cancel()


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


def _length(request: Request) -> int:
    given = request.headers.get(b"content-length", b"0")
    if not given.isdigit() or len(given) > 18:
        text = given[:40].decode("latin-1")
        raise RefusedError(400, f"`Content-Length` should be a number. Received '{text}'.")
    return int(given)
