"""Where requests come in: an id, the token, and what is counted and logged of each."""

from __future__ import annotations

import hmac
import logging
import re
import time
import uuid
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from torchrec.serve.bodies import PROBLEM, json_of
from torchrec.serve.failures import RefusedError
from torchrec.serve.meters import LOG, Meters, log

_OPEN = {"/", "/healthz", "/readyz"}  # say nothing about models, and need no token
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_RECORD = "torchrec.request"  # its place in the scope of a request, which is there for that


@dataclass
class Record:
    """What is counted and logged of a request, filled in while it is answered.

    Attributes:
        id: that the client has given it, or one of ours.
        path: that was asked.
        model: that it is about; empty for none.
        version: of the model.
        rows: that are predicted.
        detail: why it was refused.
        began: seconds on the clock of `time.perf_counter`.
    """

    id: str
    path: str
    model: str = ""
    version: str = ""
    rows: int = 0
    detail: str = ""
    began: float = field(default_factory=time.perf_counter)


def record_of(request: Request) -> Record:
    """Return the record of a request that has come in by a `Desk`."""
    record: Record = request.scope[_RECORD]
    return record


def problem(record: Record, error: RefusedError) -> Response:
    """Return the answer to a request that is refused, as RFC 9457 has it, and note why."""
    record.detail = str(error)
    content = {"status": error.status, "detail": str(error), "request_id": record.id}
    return Response(json_of(content), error.status, error.headers, media_type=PROBLEM)


class Desk:
    """Gives each request an id, asks for the token, and counts and logs how it ended.

    Args:
        app: what answers.
        meters: counts.
        token: that has to come with a request. None: none is asked.
        log_all: log every request, and not only those that fail.
    """

    def __init__(self, app: ASGIApp, meters: Meters, token: str | None, log_all: bool) -> None:
        self._app, self._meters, self._log_all = app, meters, log_all
        self._token = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        path = scope["path"]
        record = Record(given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex, path)
        scope[_RECORD] = record
        status, has_begun = 500, False

        async def answer(message: Message) -> None:
            nonlocal status, has_begun
            if message["type"] == "http.response.start":
                status, has_begun = message["status"], True
                message["headers"].append((b"x-request-id", record.id.encode()))
            await send(message)

        try:
            if self._token is not None and path not in _OPEN and not self._is_known(headers):
                detail = (
                    "`Authorization` should be 'Bearer ' and the token. Received none, or another."
                )
                raise RefusedError(401, detail, {"www-authenticate": "Bearer"})
            await self._app(scope, receive, answer)
        except RefusedError as error:
            await problem(record, error)(scope, receive, answer)
        except Exception:
            LOG.exception("error", extra={"fields": {"request_id": record.id, "path": path}})
            if not has_begun:
                wrong = RefusedError(
                    500, "The request should be answered. It met an error in the server."
                )
                await problem(record, wrong)(scope, receive, answer)
        finally:
            self._note(record, scope, status)

    def _is_known(self, headers: dict[bytes, bytes]) -> bool:
        assert self._token is not None
        return hmac.compare_digest(headers.get(b"authorization", b""), self._token)

    def _note(self, record: Record, scope: Scope, status: int) -> None:
        seconds = time.perf_counter() - record.began
        action = record.path.rpartition(":")[2] if record.model else "other"
        method = action if action in ("predict", "recommend") else "other"
        rows = record.rows if status == 200 else 0
        self._meters.request(record.model, method, status, seconds, rows)
        if status < 400 and not self._log_all:
            return
        client = scope.get("client")
        log(
            "request",
            logging.INFO if status < 500 else logging.ERROR,
            request_id=record.id,
            client=client[0] if client else None,
            method=scope["method"],
            path=record.path,
            status=status,
            ms=round(seconds * 1e3, 3),
            **{
                name: value
                for name in ("model", "version", "rows", "detail")
                if (value := getattr(record, name))
            },
        )
