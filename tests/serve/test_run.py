"""How a server listens: what goes onto the wire at once, and what it changes of its process."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any, cast

import pytest
import uvicorn

from torchrec.serve.run import WholeAnswers, listen, run

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
    ids=["an answer", "three parts", "a late body", "two answers", "no body", "refused", "closed", "lost", "lost between", "lost before"],
)  # fmt: skip
def test_an_answer_is_one_packet(
    steps: list[Callable[[WholeAnswers, Wire], object] | None], packets: list[bytes]
) -> None:
    assert on_the_wire(*steps) == packets


def test_what_a_transport_else_does() -> None:
    wire = Wire()
    assert not WholeAnswers(cast(asyncio.Transport, wire)).is_closing()


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
