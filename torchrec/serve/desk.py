"""Where requests come in and answers go out: an id, the token, and what is counted and logged of each."""

from __future__ import annotations

import functools
import hmac
import itertools
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from starlette.routing import BaseRoute, Match, Route, Router
from starlette.types import Receive, Scope, Send

from torchrec.serve.bodies import JSON, PROBLEM, json_of
from torchrec.serve.failures import RefusedError
from torchrec.serve.meters import LOG, Meters, log

_OPEN = {"/", "/healthz", "/readyz"}  # say nothing about models, and need no token
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FIRST_HALF = secrets.token_hex(8)  # of ids of ours: no two processes give the same
_NUMBERS = itertools.count(1)
_LOST = "The request should be answered. It met an error in the server."
_PATHS, _SHORT = 1024, 256  # that are remembered, and the characters of one: who asks chooses them


class Response(NamedTuple):
    """An answer.

    Attributes:
        body: what it says.
        media_type: of the body.
        status: of HTTP.
        headers: further ones.
    """

    body: bytes
    media_type: str = JSON
    status: int = 200
    headers: Mapping[str, str] = {}


@dataclass(slots=True)
class Request:
    """A request, with what is counted and logged of it, filled in while it is answered.

    Attributes:
        id: that the client has given it, or one of ours.
        path: that was asked.
        headers: as they came, by their names in lower case.
        receive: gives the parts of its body.
        parameters: the parts of the path that have names.
        model: that it is about; empty for none.
        version: of the model.
        rows: that are predicted.
        detail: why it was refused.
        began: seconds on the clock of `time.perf_counter`.
    """

    id: str
    path: str
    headers: Mapping[bytes, bytes]
    receive: Receive
    parameters: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    version: str = ""
    rows: int = 0
    detail: str = ""
    began: float = field(default_factory=time.perf_counter)

    def header(self, name: bytes) -> str:
        """Return a header; empty if there is none."""
        return self.headers.get(name, b"").decode("latin-1")


Answer = Callable[[Request], Awaitable[Response]]


class Paths:
    """Finds what answers a path, among routes that say so by Starlette's patterns.

    Starlette's own way from a route to its endpoint is a tenth of a request; here it is a look in a cache.

    Args:
        routes: their endpoints take a `Request` and return a `Response`. The first path that fits counts, whatever its
            methods: what comes after the name of a model is not taken for a part of the name.
    """

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._routes = [route for route in routes if isinstance(route, Route)]
        self._remembered = functools.lru_cache(_PATHS)(self._found)

    def find(self, scope: Scope) -> tuple[Answer, Mapping[str, str]]:
        """Return what answers a request, and the parts of its path that have names.

        Raises:
            RefusedError: there is no such path (404), or it has another method (405).
        """
        path: str = scope["path"]
        find = self._remembered if len(path) <= _SHORT else self._found
        return find(path, scope["method"], scope.get("root_path", ""))

    def _found(self, path: str, method: str, root_path: str) -> tuple[Answer, Mapping[str, str]]:
        scope = {"type": "http", "path": path, "method": method, "root_path": root_path}
        place: str | None = None  # the pattern that fits
        allowed: set[str] = set()
        for route in self._routes:
            match, found = route.matches(scope)
            if match is Match.NONE or place not in (None, route.path):
                continue
            if match is Match.FULL:
                return found["endpoint"], found["path_params"]
            place = route.path
            allowed |= route.methods or set()
        if place is not None:
            raise RefusedError(
                405,
                f"The method of '{path[:200]}' should be another. Received {method}.",
                {"allow": ", ".join(sorted(allowed))},
            )
        raise RefusedError(
            404,
            f"The path should be one of those in /openapi.json. Received '{path[:200]}'.",
        )


class Desk:
    """Gives each request an id, asks for the token, sends the answer, and counts and logs how it ended.

    Args:
        router: of `Paths`; what is no request, as the start and the end of the server, it answers itself.
        meters: counts.
        token: that has to come with a request. None: none is asked.
        log_all: log every request, and not only those that fail.
    """

    def __init__(self, router: Router, meters: Meters, token: str | None, log_all: bool) -> None:
        self._router, self._meters, self._log_all = router, meters, log_all
        self._paths = Paths(router.routes)
        self._token = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens."""
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        if not _REQUEST_ID.fullmatch(given):
            given = f"{_FIRST_HALF}{next(_NUMBERS):016x}"
        request = Request(given, scope["path"], headers, receive)
        status = 500
        try:
            response = await self._response(request, scope)
            status = response.status
            fields = [
                (b"content-length", b"%d" % len(response.body)),
                (b"content-type", response.media_type.encode()),
                (b"x-request-id", request.id.encode()),
                *((name.encode(), text.encode()) for name, text in response.headers.items()),
            ]
            await send({"type": "http.response.start", "status": status, "headers": fields})
            await send({"type": "http.response.body", "body": response.body})
        finally:
            self._note(request, scope, status)

    async def _response(self, request: Request, scope: Scope) -> Response:
        """Return the answer to a request, which may be that it is refused."""
        try:
            if self._token is not None and request.path not in _OPEN:
                self._check(request.headers, self._token)
            answer, request.parameters = self._paths.find(scope)
            return await answer(request)
        except RefusedError as error:
            return _problem(request, error)
        except Exception:
            fields = {"request_id": request.id, "path": request.path}
            LOG.exception("error", extra={"fields": fields})
            return _problem(request, RefusedError(500, _LOST))

    @staticmethod
    def _check(headers: Mapping[bytes, bytes], token: bytes) -> None:
        scheme, space, given = headers.get(b"authorization", b"").partition(b" ")
        if not hmac.compare_digest(scheme.title() + space + given, token):  # RFC 9110: of any case
            raise RefusedError(
                401,
                "`Authorization` should be 'Bearer ' and the token. Received none, or another.",
                {"www-authenticate": "Bearer"},
            )

    def _note(self, request: Request, scope: Scope, status: int) -> None:
        seconds = time.perf_counter() - request.began
        action = request.path.rpartition(":")[2] if request.model else "other"
        method = action if action in ("predict", "recommend") else "other"
        rows = request.rows if status == 200 else 0
        self._meters.request(request.model, method, status, seconds, rows)
        if status < 400 and not self._log_all:
            return
        client = scope.get("client")
        log(
            "request",
            logging.INFO if status < 500 else logging.ERROR,
            request_id=request.id,
            client=client[0] if client else None,
            method=scope["method"],
            path=request.path,
            status=status,
            ms=round(seconds * 1e3, 3),
            **{
                name: value
                for name in ("model", "version", "rows", "detail")
                if (value := getattr(request, name))
            },
        )


def _problem(request: Request, error: RefusedError) -> Response:
    """Return the answer to a request that is refused, as RFC 9457 has it, and note why."""
    request.detail = str(error)
    content = {"status": error.status, "detail": request.detail, "request_id": request.id}
    return Response(json_of(content), PROBLEM, error.status, error.headers or {})
