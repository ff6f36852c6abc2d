"""Requests that are wrong in every way, and clients that break off: a server goes on, in flat memory."""

from __future__ import annotations

import json
import random
import socket
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pyarrow as pa
import pytest

from tests.serve import clicks
from tests.serve.process import megabytes_of, serving
from torchrec.serve.bodies import ARROW, arrow_of

pytestmark = [
    pytest.mark.once,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from /proc"),
]

REQUESTS = 5_000
PREDICT = "/v1/models/clicks:predict"
RECOMMEND = "/v1/models/clicks:recommend"
NUMBERS = [None, True, -1, 2**63, 2**64, 1e308, 0.5]
ODD = [*NUMBERS, "", "\x00", "\ud800", "x" * 3_000, [], [[]], {}, [None], {"a": {}}]
PATHS = ["/", "/v1/models/%00:predict", f"{PREDICT}?x=1", "/v1/models/../x"]
KINDS = ["", "text/html", "application/json"]


def bodies(draw: random.Random) -> Iterator[tuple[str, str, bytes]]:
    """Give paths, types and bodies, most of them wrong."""
    table = pa.Table.from_pylist(clicks.rows(20))
    while True:
        rows = clicks.rows(draw.choice((1, 2, 5, 100)), draw.randrange(1000))
        row = draw.choice(rows)
        kind = draw.randrange(7)
        if kind == 0:  # another value
            row[draw.choice(list(row))] = draw.choice(ODD)
            yield PREDICT, "application/json", json.dumps({"rows": rows}).encode()
        elif kind == 1:  # no column, or one more
            row.pop(draw.choice(list(row)))
            yield PREDICT, "application/json", json.dumps({"rows": rows}).encode()
        elif kind == 2:  # bytes that are others, or end early
            text = bytearray(json.dumps({"rows": rows}).encode())
            for _ in range(draw.randrange(1, 4)):
                text[draw.randrange(len(text))] = draw.randrange(256)
            yield PREDICT, "application/json", bytes(text[: draw.randrange(1, len(text) + 1)])
        elif kind == 3:  # the same of Arrow
            stream = bytearray(arrow_of(table.slice(draw.randrange(20))))
            for _ in range(draw.randrange(1, 9)):
                stream[draw.randrange(len(stream))] = draw.randrange(256)
            yield PREDICT, ARROW, bytes(stream[: draw.randrange(1, len(stream) + 1)])
        elif kind == 4:  # columns of other types
            name = draw.choice(table.column_names)
            other = pa.array([draw.choice([None, True, 0.5, ""])] * 20)
            place = table.column_names.index(name)
            yield PREDICT, ARROW, arrow_of(table.set_column(place, name, other))
        elif kind == 5:  # wishes
            shops = [{"shop": 1, "price": 1.0, "tags": []}]
            wish: dict[str, object] = {"users": [{"user": "user-1"}], "k": 2, "candidates": shops}
            wish[draw.choice(["users", "k", "candidates", "seen", "task", "x"])] = draw.choice(ODD)
            yield RECOMMEND, "application/json", json.dumps(wish).encode()
        else:
            yield draw.choice(PATHS), draw.choice(KINDS), b"{"


def post(connection: HTTPConnection, path: str, kind: str, body: bytes) -> HTTPResponse:
    connection.request("POST", path, body, {"content-type": kind})
    return connection.getresponse()


def test_malformed_requests_get_a_sentence(tmp_path: Path) -> None:
    clicks.save(tmp_path / "clicks" / "model")
    draw = random.Random(0)
    statuses: dict[int, int] = {}
    log = tmp_path / "log"
    with (
        serving(str(tmp_path / "clicks"), log=log) as (url, process),
        closing(HTTPConnection(url.removeprefix("http://"), timeout=300)) as connection,
    ):
        memory = 0.0
        for number, (path, kind, body) in zip(range(REQUESTS), bodies(draw), strict=False):
            answer = post(connection, path, kind, body)
            text = answer.read()
            statuses[answer.status] = statuses.get(answer.status, 0) + 1
            assert answer.status < 500, (path, kind, body, text)
            if answer.status >= 400:
                problem = json.loads(text)
                assert " should " in problem["detail"], (path, kind, body, text)
                assert problem["detail"].endswith("."), (path, kind, body, text)
            if number == REQUESTS // 2:
                memory = megabytes_of(process)
        assert sum(count for status, count in statuses.items() if status >= 400) > REQUESTS / 2
        assert {200, 400, 404, 405, 415, 422} <= set(statuses)
        assert megabytes_of(process) < memory + 20
        # Still there, and right.
        rows = clicks.rows(1)
        answer = post(connection, PREDICT, "application/json", json.dumps({"rows": rows}).encode())
        assert answer.status == 200
        assert process.poll() is None
    assert '"level":"error"' not in log.read_text()


def test_what_is_no_http_at_all(tmp_path: Path) -> None:
    clicks.save(tmp_path / "clicks" / "model")
    draw = random.Random(1)
    whole = (
        b"POST " + PREDICT.encode() + b" HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    )
    with serving(str(tmp_path / "clicks"), "--wait", "2", log=tmp_path / "log") as (url, process):
        host, _, port = url.removeprefix("http://").partition(":")
        for number in range(500):
            with socket.create_connection((host, int(port)), timeout=300) as raw:
                if number % 3 == 0:
                    raw.sendall(draw.randbytes(draw.randrange(1, 200)) + b"\r\n\r\n")
                elif number % 3 == 1:  # breaks off within the head, or the body
                    raw.sendall((whole + b"content-length: 90\r\n\r\n{")[: draw.randrange(1, 120)])
                else:
                    raw.sendall(whole + b"transfer-encoding: chunked\r\n\r\nzz\r\n")
        for head in (b"x: " + b"y" * (1 << 20), b"x: y\r\n" * 100_000):
            with socket.create_connection((host, int(port)), timeout=300) as raw, suppress(OSError):
                raw.sendall(whole + head)
                assert b"should have at most 65,536 bytes. Received more." in raw.recv(1000)
        with socket.create_connection((host, int(port)), timeout=300) as raw:
            raw.sendall(whole)  # and never ends
            assert raw.recv(20) == b""
        with socket.create_connection((host, int(port)), timeout=300) as raw:
            raw.sendall(whole + b"content-length: 90\r\n\r\n{")  # and stays
            assert raw.recv(20).startswith(b"HTTP/1.1 408 ")
        body = json.dumps({"rows": clicks.rows(1)}).encode()
        with closing(HTTPConnection(f"{host}:{port}", timeout=300)) as connection:
            assert post(connection, PREDICT, "application/json", body).status == 200
        assert process.poll() is None
