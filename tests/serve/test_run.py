"""How a server listens: what goes onto the wire at once, and what it changes of its process."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any, cast

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from torchrec.serve.run import BoundedProtocol, WholeAnswers, listen, run

pytestmark = pytest.mark.once


class Wire:
    """A transport that notes what it sends, and like that of uvloop sends nothing once it is closed."""

    def __init__(self) -> None:
        self.packets: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.packets.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, _: str) -> None:
        return None

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def on_the_wire(*steps: Callable[[WholeAnswers, Wire], object] | None) -> list[bytes]:
    """Return the packets of some steps; at None the loop goes on."""

    async def go() -> list[bytes]:
        wire = Wire()
        answers = WholeAnswers(cast(asyncio.Transport, wire))
        for step in (*steps, None):
            await asyncio.sleep(0) if step is None else step(answers, wire)
        return wire.packets

    return asyncio.run(go())


def writes(data: bytes) -> Callable[[WholeAnswers, Wire], object]:
    return lambda answers, _: answers.write(data)


def closes(answers: WholeAnswers, _: Wire) -> None:
    answers.close()


def is_lost(_: WholeAnswers, wire: Wire) -> None:
    wire.closed = True


@pytest.mark.parametrize(
    ("steps", "packets"),
    [
        ([writes(b"head"), writes(b"body")], [b"headbody"]),
        ([writes(b"1"), writes(b"2"), writes(b"3")], [b"12", b"3"]),
        ([writes(b"head"), None, writes(b"body")], [b"head", b"body"]),
        ([writes(b"1"), writes(b"2"), None, writes(b"3"), writes(b"4")], [b"12", b"34"]),
        ([writes(b"head"), writes(b"")], [b"head"]),
        ([writes(b"400"), closes], [b"400"]),
        ([closes], []),
        ([writes(b"head"), is_lost], []),
        ([writes(b"head"), is_lost, writes(b"body")], []),
        ([is_lost, writes(b"head"), writes(b"body")], []),
    ],
    ids=[
        "an answer", "three parts", "a late body", "two answers", "no body", "refused", "closed", "lost",
        "lost between", "lost before",
    ],
)  # fmt: skip
def test_an_answer_is_one_packet(
    steps: list[Callable[[WholeAnswers, Wire], object] | None], packets: list[bytes]
) -> None:
    assert on_the_wire(*steps) == packets


def test_what_a_transport_else_does() -> None:
    wire = Wire()
    assert not WholeAnswers(cast(asyncio.Transport, wire)).is_closing()


async def length(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer how long the body is."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"%d bytes" % size})


def answers_to(*reads: bytes) -> bytes:
    """Return what is sent where these bytes come from a connection, one read after another."""

    async def go() -> bytes:
        wire = Wire()
        protocol = BoundedProtocol(uvicorn.Config(length, log_config=None), ServerState(), {})
        protocol.connection_made(cast(asyncio.Transport, wire))
        for data in reads:
            protocol.data_received(data)
        for _ in range(300):  # turns of the loop
            await asyncio.sleep(0)
        protocol.connection_lost(None)
        return b"".join(wire.packets)

    return asyncio.run(go())


def test_heads_are_bounded_and_bodies_that_come_with_them_are_not() -> None:
    large = 200_000
    head = b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % large
    whole = head + b"x" * large
    assert b"200000 bytes" in answers_to(whole)
    assert b"200000 bytes" in answers_to(whole[:30], whole[30:])
    twice = whole + whole[:30], whole[30:]
    assert answers_to(*twice).count(b"200000 bytes") == 2
    endless = [b"POST / HTTP/1.1\r\n"] + [b"x: %s\r\n" % (b"y" * 1000)] * 70
    assert b" 400 " in answers_to(*endless)
    assert answers_to(*endless[:50]) == b""


def test_requests_ahead_of_their_answers_are_bounded() -> None:
    ask = b"GET / HTTP/1.1\r\n\r\n"
    assert answers_to(ask * 50).count(b"0 bytes") == 50
    refused = answers_to(ask * 102)
    assert refused.count(b"HTTP/1.1 ") == 1
    assert refused.endswith(
        b"At most 100 requests should come ahead of their answers. Received more."
    )


@pytest.mark.parametrize("error", [None, ConnectionResetError()], ids=["closed", "reset"])
def test_a_connection_leaves_no_cycle(error: Exception | None) -> None:
    async def go() -> None:
        protocol = BoundedProtocol(uvicorn.Config(length, log_config=None), ServerState(), {})
        wire = Wire()
        protocol.connection_made(cast(asyncio.Transport, wire))
        protocol.data_received(b"GET / HTTP/1.1\r\n\r\n" * 5)
        for _ in range(3):  # some are answered
            await asyncio.sleep(0)
        wire.closed = True
        protocol.connection_lost(error)
        for _ in range(10):
            await asyncio.sleep(0)
        gone = weakref.ref(protocol)
        del protocol
        assert gone() is None

    gc.disable()
    try:
        asyncio.run(go())
    finally:
        gc.enable()


def test_cycles_are_looked_for_rarely_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[int, int, int]] = []
    before = gc.get_threshold()
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: found.append(gc.get_threshold()))
    bound = listen("127.0.0.1", 0)
    try:
        run(cast(Any, None), bound)
    finally:
        bound.close()
    assert found[0] > before
    assert gc.get_threshold() == before
