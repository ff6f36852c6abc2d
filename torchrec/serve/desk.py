"""Where requests come in and answers go out: an id, the token, and what is counted and logged of each."""

from __future__ import annotations

import hmac
import itertools
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from torchrec.serve.bodies import JSON, PROBLEM, json_of
from torchrec.serve.failures import RefusedError
from torchrec.serve.meters import LOG, Meters, log

_OPEN = {"/", "/healthz", "/readyz"}  # say nothing about models, and need no token
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PLACE = "torchrec.request"  # of a request in its scope, which is there for that
_FIRST_HALF = secrets.token_hex(8)  # of ids of ours: no two processes give the same
_NUMBERS = itertools.count(1)
_LOST = "The request should be answered. It met an error in the server."


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
        response: what it is answered.
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
    response: Response | None = None
    began: float = field(default_factory=time.perf_counter)

    def header(self, name: bytes) -> str:
        """Return a header; empty if there is none."""
        return self.headers.get(name, b"").decode("latin-1")


class Endpoint:
    """What a route leads to. Starlette calls it as it is; a function it would wrap in handlers of exceptions.

    Args:
        answer: a request.
    """

    def __init__(self, answer: Callable[[Request], Awaitable[Response]]) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that has come in by a `Desk`, which sends the answer."""
        request: Request = scope[_PLACE]
        request.parameters = scope["path_params"]
        request.response = await self._answer(request)


class Desk:
    """Gives each request an id, asks for the token, sends the answer, and counts and logs how it ended.

    Args:
        router: leads to endpoints.
        meters: counts.
        token: that has to come with a request. None: none is asked.
        log_all: log every request, and not only those that fail.
    """

    def __init__(self, router: ASGIApp, meters: Meters, token: str | None, log_all: bool) -> None:
        self._router, self._meters, self._log_all = router, meters, log_all
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
        scope[_PLACE] = request = Request(given, scope["path"], headers, receive)
        status = 500
        try:
            response = await self._response(request, scope, send)
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

    async def _response(self, request: Request, scope: Scope, send: Send) -> Response:
        """Return the answer to a request, which may be that it is refused."""
        try:
            if self._token is not None and request.path not in _OPEN:
                self._check(request.headers, self._token)
            scope.setdefault("app", self)  # a router without one would send answers of its own
            await self._router(scope, request.receive, send)
            assert request.response is not None
            return request.response
        except RefusedError as error:
            return _problem(request, error)
        except HTTPException as error:
            return _problem(request, _unrouted(request, scope["method"], error))
        except Exception:
            fields = {"request_id": request.id, "path": request.path}
            LOG.exception("error", extra={"fields": fields})
            return _problem(request, RefusedError(500, _LOST))

    @staticmethod
    def _check(headers: Mapping[bytes, bytes], token: bytes) -> None:
        if not hmac.compare_digest(headers.get(b"authorization", b""), token):
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


def _unrouted(request: Request, method: str, error: HTTPException) -> RefusedError:
    """Return why a path that there is not, or that has another method, is refused."""
    path = request.path[:200]
    detail = {
        404: f"The path should be one of those in /openapi.json. Received '{path}'.",
        405: f"The method of '{path}' should be another. Received {method}.",
    }.get(error.status_code, str(error.detail))
    headers = dict(error.headers) if error.headers else None
    return RefusedError(error.status_code, detail, headers)
