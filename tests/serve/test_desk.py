"""Which path leads where, remembered or not."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import pytest
from starlette.routing import Match, Route

from torchrec.serve.desk import Paths, Request, Response
from torchrec.serve.failures import RefusedError

pytestmark = pytest.mark.once


async def predict(_: Request) -> Response:
    return Response(b"")


async def describe(_: Request) -> Response:
    return Response(b"")


class Counted(Route):
    """Counts how often it is looked at."""

    looks = 0

    def matches(self, scope: MutableMapping[str, Any]) -> tuple[Match, MutableMapping[str, Any]]:
        self.looks += 1
        return super().matches(scope)


def scope(path: str, method: str = "POST", root_path: str = "") -> dict[str, Any]:
    return {"type": "http", "path": path, "method": method, "root_path": root_path}


@pytest.mark.parametrize(("name", "looks"), [("clicks", 1), ("x" * 300, 5)])
def test_a_path_is_looked_for_once_if_it_is_short(name: str, looks: int) -> None:
    route = Counted("/models/{model}:predict", predict, methods=["POST"])
    paths = Paths([route, Route("/models/{model}", describe, methods=["GET"])])
    for _ in range(5):
        assert paths.find(scope(f"/models/{name}:predict")) == (predict, {"model": name})
    assert route.looks == looks
    assert paths.find(scope(f"/models/{name}", "GET")) == (describe, {"model": name})


def test_what_comes_after_a_name_is_no_part_of_it() -> None:
    routes = [
        Route("/models/{model}:predict", predict, methods=["POST"]),
        Route("/models/{model}", describe, methods=["GET"]),
    ]
    with pytest.raises(RefusedError, match=r"another\. Received GET\.") as caught:
        Paths(routes).find(scope("/models/clicks:predict", "GET"))
    assert (caught.value.status, caught.value.headers) == (405, {"allow": "POST"})


def test_a_mounted_path_is_another() -> None:
    paths = Paths([Route("/models/{model}", describe)])
    assert paths.find(scope("/models/a", "GET")) == (describe, {"model": "a"})
    assert paths.find(scope("/all/models/b", "GET", "/all")) == (describe, {"model": "b"})
    with pytest.raises(RefusedError, match=r"in /openapi\.json\. Received '/models/a'"):
        paths.find(scope("/models/a", "GET", "/models"))


def test_another_method_says_which_there_are() -> None:
    routes = [
        Route("/models", describe, methods=["GET"]),
        Route("/models", predict, methods=["POST"]),
    ]
    for _ in range(2):  # what is refused is not remembered
        with pytest.raises(RefusedError, match=r"another\. Received PUT\.") as caught:
            Paths(routes).find(scope("/models", "PUT"))
        assert (caught.value.status, caught.value.headers) == (405, {"allow": "GET, HEAD, POST"})
