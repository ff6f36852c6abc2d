"""A server that listens, until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from torchrec.serve.meters import LOG, JsonLines

_CONNECTIONS = 10_000
_WAITING = 2048  # connections that nobody has taken yet
_IDLE = 75  # seconds after which a connection that asks nothing is closed; longer than proxies keep theirs
# Objects after which Python looks for cycles, and how often for those that live longer. A request makes some fifty and
# leaves no cycle; as Python has it (700), it would look for a seventh of the time.
_COLLECT = 20_000, 20, 20
_HEAD = 64 << 10  # bytes of a request's head, but for what comes with its first ones
_HEAD_SECONDS = 10.0  # that it may take to come
_AHEAD = (
    100  # requests of a connection that wait for the answers to those before; each takes some 9 KB
)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound, before any model is loaded: what cannot be had is said at once.

    Args:
        host: name or address; ``"127.0.0.1"`` is this machine alone.
        port: 0: one that is free.

    Raises:
        ValueError: there is no such address, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"The server should listen on an address of this machine and a free port. Received {host} and port "
            f"{port}: {getattr(error, 'strerror', None) or error}."
        ) from None
    return bound


class WholeAnswers:
    """A transport that sends the head of an answer with its body, which uvicorn writes one after the other.

    A packet each would be two calls of the system instead of one, here and where it is read.

    Args:
        transport: sends.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held: bytes | None = (
            None  # until the next write, or until the loop goes on without one
        )

    def write(self, data: bytes) -> None:
        """Send bytes, or hold them for those that follow at once.

        Who asks several things in a row and goes away is still answered by uvicorn. Nothing is sent then: the transport
        of uvloop would raise.
        """
        if self._transport.is_closing():
            return
        if self._held is None:
            self._held = data
            asyncio.get_running_loop().call_soon(self._release)
        else:
            # One write: `writelines` does not stop for readers that are slow in asyncio of some versions.
            whole, self._held = self._held + data, None
            self._transport.write(whole)

    def close(self) -> None:
        """Close the connection once all is sent."""
        self._release()
        self._transport.close()

    def _release(self) -> None:
        data, self._held = self._held, None
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class BoundedProtocol(HttpToolsProtocol):
    """HTTP, with bounds where uvicorn has none: on bytes and seconds of a head, and requests ahead of answers."""

    _head_bytes = 0
    _head_due: float | None = None  # None: no head is under way

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, which may be silent for as long as one that asks no more."""
        super().connection_made(WholeAnswers(transport))  # type: ignore[arg-type]
        self._close_after(self.timeout_keep_alive)

    def data_received(self, data: bytes) -> None:
        """Take bytes as they come."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_due is None:  # it has come, perhaps with much of the body
            return
        if self._head_bytes > _HEAD:
            self.send_400_response(
                f"The head of a request should have at most {_HEAD:,} bytes. Received more."
            )
        else:
            self._close_after(self._head_due - time.monotonic())

    def on_message_begin(self) -> None:
        """Note that a head begins."""
        super().on_message_begin()
        self._head_bytes, self._head_due = 0, time.monotonic() + _HEAD_SECONDS

    def on_headers_complete(self) -> None:
        """Note that it has come, and take the request if there are not too many."""
        self._head_due = None
        if len(self.pipeline) == _AHEAD:
            text = f"At most {_AHEAD} requests should come ahead of their answers. Received more."
            self.send_400_response(text)
            raise ValueError(text)  # to the parser, which ends
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of what refers to this in turn: it would stay until cycles are looked for."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        self.cycle = None  # type: ignore[assignment]

    def _close_after(self, seconds: float) -> None:
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
        self.timeout_keep_alive_task = self.loop.call_later(
            seconds, self.timeout_keep_alive_handler
        )


def run(
    app: ASGIApp,
    bound: socket.socket,
    *,
    stop_after: float = 30.0,
    started: Callable[[], object] = lambda: None,
) -> None:
    """Answer requests until SIGTERM or Ctrl-C; then end those that are under way, and no more.

    Logs go to standard error, a JSON object a line.

    Args:
        app: answers.
        bound: from `listen`.
        stop_after: seconds that requests under way have to end. Default 30.
        started: is called once connections are taken. Default: nothing is.
    """
    _log_to_standard_error()
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=int(stop_after),
    )
    server = uvicorn.Server(config)
    # The server has its own handlers while it runs, and afterwards raises what it was sent for those before: it has
    # done what they would.
    former = {one: signal.signal(one, _ignore) for one in (signal.SIGTERM, signal.SIGINT)}
    thresholds = gc.get_threshold()
    gc.set_threshold(*_COLLECT)
    bound.listen(_WAITING)  # who comes now is answered as soon as the server runs
    started()
    try:
        server.run(sockets=[bound])
    finally:
        gc.set_threshold(*thresholds)
        for one, handler in former.items():
            signal.signal(one, handler)


def _ignore(*_: object) -> None:
    pass


def _log_to_standard_error() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for logger, level in (
        (LOG, logging.INFO),
        (logging.getLogger("uvicorn.error"), logging.WARNING),
    ):
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
