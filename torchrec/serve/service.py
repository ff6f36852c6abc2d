"""Models over HTTP: what is asked of which path, as an ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from torchrec.inference.output_columns import output_columns
from torchrec.serve.bodies import (
    ARROW,
    JSON,
    Intake,
    arrow_of,
    json_of,
    media_type,
    rows_of_json,
    table_of_arrow,
    wish_of_json,
)
from torchrec.serve.candidates import recommended
from torchrec.serve.desk import Desk, Record, problem, record_of
from torchrec.serve.failures import RefusedError, busy
from torchrec.serve.limits import Limits
from torchrec.serve.meters import LOG, Meters
from torchrec.serve.models import Models, Threads, Version, describe
from torchrec.serve.openapi import openapi
from torchrec.serve.page import page

_SMALL = 64 << 10  # bytes of a body that are read between two requests; larger ones in a thread
_LONGEST = 2_000  # characters of a message
_T = TypeVar("_T")


def application(
    paths: Mapping[str, str | os.PathLike[str]],
    limits: Limits | None = None,
    *,
    token: str | None = None,
    candidates: Mapping[str, str | os.PathLike[str]] | None = None,
    keep: int = 1,
    poll: float = 2.0,
    log_all: bool = True,
) -> Starlette:
    """Return an ASGI application that answers for models.

    Models are loaded here, so that what is wrong with one is said at once.

    Args:
        paths: of each model by name: a run, a bundle, or a folder of such with numbers for names, its versions.
        limits: of requests and batches. Default: those of `Limits`.
        token: that requests have to bring as ``Authorization: Bearer ...``. Default: none is asked.
        candidates: Parquet file of what a model recommends, by its name. Default: requests bring their own.
        keep: how many versions of each model are loaded. Default 1: the newest.
        poll: seconds after which new versions are looked for. Default 2; 0: never.
        log_all: log every request, and not only those that fail. Default True.

    Raises:
        FileNotFoundError: a model is not there.
        ValueError: no version of a model is whole, or an option is out of range.
    """
    if poll < 0:
        raise ValueError(f"`poll` should be at least 0. Received {poll}.")
    if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
        raise ValueError(
            "`token` should have printable ASCII characters. Received others, or none."
        )
    limits, meters = limits or Limits(), Meters()
    few, many, loading = (
        ThreadPoolExecutor(1, thread_name_prefix=f"torchrec-{name}")
        for name in ("few", "many", "loading")
    )
    models = Models(
        paths, limits, Threads(few, many, loading), meters, candidates=candidates, keep=keep
    )
    models.load()

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        watch = asyncio.get_running_loop().create_task(_watch(models, poll)) if poll else None
        try:
            yield
        finally:
            if watch is not None:
                watch.cancel()
            for thread in (few, many, loading):
                thread.shutdown(wait=False)

    service = _Service(models, limits, meters, many)
    routes = [
        Route("/v1/models/{model}:predict", service.predict, methods=["POST"]),
        Route("/v1/models/{model}:recommend", service.recommend, methods=["POST"]),
        Route("/v1/models/{model}/versions/{version}:predict", service.predict, methods=["POST"]),
        Route(
            "/v1/models/{model}/versions/{version}:recommend", service.recommend, methods=["POST"]
        ),
        Route("/v1/models", service.models, methods=["GET"]),
        Route("/v1/models/{model}", service.model, methods=["GET"]),
        Route("/v1/models/{model}/versions/{version}", service.model, methods=["GET"]),
        Route("/healthz", service.health, methods=["GET"]),
        Route("/readyz", service.health, methods=["GET"]),
        Route("/metrics", service.metrics, methods=["GET"]),
        Route("/openapi.json", service.openapi, methods=["GET"]),
        Route("/", service.page, methods=["GET"]),
    ]
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(Desk, meters=meters, token=token, log_all=log_all)],
        exception_handlers={
            HTTPException: _of_framework,
            RefusedError: _refused,
        },
    )


async def _watch(models: Models, poll: float) -> None:
    while True:
        await asyncio.sleep(poll)
        try:
            await models.refresh()
        except (
            Exception
        ):  # a server that looks no more would go on with an old version, and nobody would know
            LOG.exception("look for versions failed")


class _Service:
    """Answers requests; whatever is refused is raised."""

    def __init__(
        self, models: Models, limits: Limits, meters: Meters, many: ThreadPoolExecutor
    ) -> None:
        self._models, self._limits, self._meters, self._many = models, limits, meters, many
        self._intake = Intake(limits)
        self._waiting = 0  # for the thread of what takes longer

    async def predict(self, request: Request) -> Response:
        """Predict for the rows of a request."""
        version = self._version(request)
        record = record_of(request)
        kind = media_type(request)
        async with self._intake.body(request) as body:
            if kind == JSON and len(body) <= _SMALL:
                rows = rows_of_json(body, self._limits)
                record.rows = len(rows)
                if 0 < len(rows) <= self._limits.batch and not _wants_arrow(request):
                    with _refusing():
                        scores = await version.batcher.scores(rows)
                    return _answer(version, scores, record)
            return await self._in_thread(lambda: self._predict(version, kind, body, request))

    def _predict(self, version: Version, kind: str, body: bytes, request: Request) -> Response:
        """Predict for many rows, in a thread of their own."""
        record = record_of(request)
        data = (
            rows_of_json(body, self._limits) if kind == JSON else table_of_arrow(body, self._limits)
        )
        record.rows = len(data)
        with _refusing():
            if _wants_arrow(request):
                table = output_columns(version.predictor, data)
                return Response(arrow_of(table), media_type=ARROW, headers=_named(version))
            return _answer(version, version.scores(data), record)

    async def recommend(self, request: Request) -> Response:
        """Recommend candidates to the users of a request."""
        version = self._version(request)
        record = record_of(request)
        if media_type(request) != JSON:
            raise RefusedError(415, f"`Content-Type` should be {JSON}. Received {ARROW}.")
        async with self._intake.body(request) as body:

            def answer() -> Response:
                wish = wish_of_json(body, self._limits)
                record.rows = len(wish.users)
                with _refusing():
                    found = recommended(version.predictor, wish, version.candidates, self._limits)
                content = {
                    "model": version.model,
                    "version": version.name,
                    "recommendations": found,
                    "request_id": record.id,
                }
                return Response(json_of(content), media_type=JSON)

            return await self._in_thread(answer)

    async def _in_thread(self, answer: Callable[[], _T]) -> _T:
        if self._waiting >= self._limits.queue:
            raise busy(
                f"At most {self._limits.queue:,} requests should wait. Received one more: ask again later."
            )
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._many, answer)
        finally:
            self._waiting -= 1

    async def models(self, _: Request) -> Response:
        """List the models."""
        names = self._models.names()
        return Response(
            json_of({"models": [describe(self._models.version(name)) for name in names]}),
            media_type=JSON,
        )

    async def model(self, request: Request) -> Response:
        """Describe a model."""
        version = self._version(request)
        loaded = [one.name for one in self._models.versions(version.model)]
        return Response(json_of({**describe(version), "versions": loaded}), media_type=JSON)

    async def health(self, _: Request) -> Response:
        """Say that the process answers; it only listens once its models are loaded, so it is ready as well."""
        return Response(b"ok\n", media_type="text/plain")

    async def metrics(self, _: Request) -> Response:
        """Say what was counted."""
        return Response(self._meters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, _: Request) -> Response:
        """Describe the paths and bodies, with the columns of the models."""
        newest = [self._models.version(name) for name in self._models.names()]
        return Response(json_of(openapi([describe(one) for one in newest])), media_type=JSON)

    async def page(self, _: Request) -> Response:
        """Give the page to try models by hand."""
        policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
        headers = {"content-security-policy": policy, "x-content-type-options": "nosniff"}
        return Response(page(), media_type="text/html; charset=utf-8", headers=headers)

    def _version(self, request: Request) -> Version:
        record = record_of(request)
        model = request.path_params["model"]
        version = self._models.version(model, request.path_params.get("version"))
        record.model, record.version = model, version.name
        return version


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Refuse, with a status of its own, data that the model refuses: they are not as in training."""
    try:
        yield
    except (ValueError, TypeError, IndexError) as error:
        text = " ".join(str(error).split())
        if len(text) > _LONGEST:  # a message quotes what it received
            text = f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
        raise RefusedError(422, text) from None


def _wants_arrow(request: Request) -> bool:
    return ARROW in request.headers.get("accept", "")


def _named(version: Version) -> dict[str, str]:
    return {"x-model-version": version.name}


def _answer(version: Version, scores: Mapping[str, list[Any]], record: Record) -> Response:
    content = {
        "model": version.model,
        "version": version.name,
        "predictions": scores,
        "request_id": record.id,
    }
    return Response(json_of(content), media_type=JSON)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return problem(record_of(request), error)


async def _of_framework(request: Request, error: Exception) -> Response:
    """Answer for a path that there is not, or another method than it has."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    detail = {
        404: f"The path should be one of those in /openapi.json. Received '{path}'.",
        405: f"The method of '{path}' should be another. Received {request.method}.",
    }.get(error.status_code, str(error.detail))
    headers = dict(error.headers) if error.headers else None
    return problem(record_of(request), RefusedError(error.status_code, detail, headers))
