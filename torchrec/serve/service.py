"""Models over HTTP: what is asked of which path, as an ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.routing import Route, Router
from starlette.types import ASGIApp

from torchrec.inference.output_columns import output_columns
from torchrec.serve.bodies import (
    ARROW,
    JSON,
    arrow_of,
    json_of,
    rows_of_json,
    table_of_arrow,
    wish_of_json,
)
from torchrec.serve.candidates import recommended
from torchrec.serve.desk import Desk, Request, Response
from torchrec.serve.failures import RefusedError, busy, late
from torchrec.serve.intake import Intake, media_type
from torchrec.serve.limits import Limits
from torchrec.serve.meters import LOG, Meters
from torchrec.serve.models import Models, Threads, Version, describe
from torchrec.serve.openapi import openapi
from torchrec.serve.page import page

_SMALL = 64 << 10  # bytes of a body that are read between two requests; larger ones in a thread
_LONGEST = 2_000  # characters of a message
_OF_DATA = (ValueError, TypeError, IndexError)  # what a predictor raises where data are wrong
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
) -> ASGIApp:
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
    async def lifespan(_: object) -> AsyncIterator[None]:
        watch = asyncio.get_running_loop().create_task(_watch(models, poll)) if poll else None
        try:
            yield
        finally:
            if watch is not None:
                watch.cancel()
            for thread in (few, many, loading):
                thread.shutdown(wait=False)

    service = _Service(models, limits, meters, many)
    one = "/v1/models/{model}"
    version = f"{one}/versions/{{version}}"
    asked = {
        f"{one}:predict": service.predict,  # first: the path of a model alone fits as well
        f"{one}:recommend": service.recommend,
        f"{version}:predict": service.predict,
        f"{version}:recommend": service.recommend,
    }
    read = {
        "/v1/models": service.models,
        one: service.model,
        version: service.model,
        "/healthz": service.health,
        "/readyz": service.health,
        "/metrics": service.metrics,
        "/openapi.json": service.openapi,
        "/": service.page,
    }
    routes = [
        Route(path, answer, methods=[method])
        for method, answers in (("POST", asked), ("GET", read))
        for path, answer in answers.items()
    ]
    router = Router(routes, redirect_slashes=False, lifespan=lifespan)
    return Desk(router, meters, token, log_all)


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
        kind = media_type(request)
        with self._intake.room() as room:
            body = await room.read(request)
            if kind == JSON and len(body) <= _SMALL:
                rows = rows_of_json(body, self._limits)
                request.rows = len(rows)
                if 0 < len(rows) <= self._limits.batch and not _wants_arrow(request):
                    try:
                        scores = await version.batcher.scores(rows)
                    except _OF_DATA as error:
                        raise _refusal(error) from None
                    return _answer(version, scores, request)
            return await self._in_thread(lambda: self._predict(version, kind, body, request))

    def _predict(self, version: Version, kind: str, body: bytes, request: Request) -> Response:
        """Predict for many rows, in a thread of their own."""
        data = (
            rows_of_json(body, self._limits) if kind == JSON else table_of_arrow(body, self._limits)
        )
        request.rows = len(data)
        try:
            if _wants_arrow(request):
                table = output_columns(version.predictor, data)
                return Response(arrow_of(table), ARROW, headers={"x-model-version": version.name})
            return _answer(version, version.scores(data), request)
        except _OF_DATA as error:
            raise _refusal(error) from None

    async def recommend(self, request: Request) -> Response:
        """Recommend candidates to the users of a request."""
        version = self._version(request)
        if media_type(request) != JSON:
            raise RefusedError(415, f"`Content-Type` should be {JSON}. Received {ARROW}.")
        with self._intake.room() as room:
            body = await room.read(request)

            def answer() -> Response:
                wish = wish_of_json(body, self._limits)
                request.rows = len(wish.users)
                try:
                    found = recommended(version.predictor, wish, version.candidates, self._limits)
                except _OF_DATA as error:
                    raise _refusal(error) from None
                content = {
                    "model": version.model,
                    "version": version.name,
                    "recommendations": found,
                    "request_id": request.id,
                }
                return Response(json_of(content))

            return await self._in_thread(answer)

    async def _in_thread(self, answer: Callable[[], _T]) -> _T:
        if self._waiting >= self._limits.queue:
            raise busy(
                f"At most {self._limits.queue:,} requests should wait. Received one more: ask again later."
            )
        since = time.perf_counter()

        def answer_in_time() -> _T:
            if time.perf_counter() - since > self._limits.wait:
                raise late(self._limits.wait)
            return answer()

        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._many, answer_in_time)
        finally:
            self._waiting -= 1

    async def models(self, _: Request) -> Response:
        """List the models."""
        newest = [self._models.version(name) for name in self._models.names()]
        return Response(json_of({"models": [describe(one) for one in newest]}))

    async def model(self, request: Request) -> Response:
        """Describe a model."""
        version = self._version(request)
        loaded = [one.name for one in self._models.versions(version.model)]
        return Response(json_of({**describe(version), "versions": loaded}))

    async def health(self, _: Request) -> Response:
        """Say that the process answers; it only listens once its models are loaded, so it is ready as well."""
        return Response(b"ok\n", "text/plain; charset=utf-8")

    async def metrics(self, _: Request) -> Response:
        """Say what was counted."""
        return Response(self._meters.text(), "text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, _: Request) -> Response:
        """Describe the paths and bodies, with the columns of the models."""
        newest = [self._models.version(name) for name in self._models.names()]
        return Response(json_of(openapi([describe(one) for one in newest])))

    async def page(self, _: Request) -> Response:
        """Give the page to try models by hand."""
        policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
        headers = {"content-security-policy": policy, "x-content-type-options": "nosniff"}
        return Response(page(), "text/html; charset=utf-8", headers=headers)

    def _version(self, request: Request) -> Version:
        model = request.parameters["model"]
        version = self._models.version(model, request.parameters.get("version"))
        request.model, request.version = model, version.name
        return version


def _refusal(error: Exception) -> RefusedError:
    """Return the refusal of data that the model refuses, with a status of its own: they are not as in training."""
    text = " ".join(str(error).split())
    if len(text) > _LONGEST:  # a message quotes what it received
        text = f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
    return RefusedError(422, text)


def _wants_arrow(request: Request) -> bool:
    return ARROW in request.header(b"accept")


def _answer(version: Version, scores: Mapping[str, list[Any]], request: Request) -> Response:
    content = {
        "model": version.model,
        "version": version.name,
        "predictions": scores,
        "request_id": request.id,
    }
    return Response(json_of(content))
