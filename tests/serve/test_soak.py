"""A server under mixed load, while versions come and go and clients break off; and killed in the midst of it.

``ROWWISE_SOAK_SECONDS=1800 pytest -m slow tests/serve/test_soak.py`` goes on for half an hour.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pyarrow as pa
import pytest

from tests.serve import clicks
from tests.serve.process import megabytes_of, serving
from torchrec.inference import load
from torchrec.serve.bodies import ARROW, arrow_of

pytestmark = [
    pytest.mark.once,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from /proc"),
]

SECONDS = float(os.environ.get("ROWWISE_SOAK_SECONDS", "60"))
PREDICT = "/v1/models/models:predict"
SIZES = (1, 1, 1, 3, 8, 70, 500)
MODELS = 3


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("saved")
    return [clicks.save(folder / str(seed), seed) for seed in range(MODELS)]


@pytest.fixture(scope="module")
def expected(saved: list[Path]) -> list[list[float]]:
    """What each model predicts for the most rows that are asked for."""
    return [load(one).predict(clicks.rows(max(SIZES))).tolist() for one in saved]


def publish(saved: list[Path], folder: Path, number: int) -> None:
    """Copy a version to where it is looked for, as a user would: file after file."""
    shutil.copytree(saved[number % MODELS], folder / str(number))


def body_of(size: int, as_arrow: bool) -> tuple[bytes, str]:
    rows = clicks.rows(max(SIZES))[:size]
    if as_arrow:
        return arrow_of(pa.Table.from_pylist(rows)), ARROW
    return json.dumps({"rows": rows}).encode(), "application/json"


def check(answer: dict, expected: list[list[float]]) -> None:
    """Check that an answer is that of the version it names, every row of it."""
    labels = answer["predictions"]["labels"]
    wanted = expected[int(answer["version"]) % MODELS][: len(labels)]
    assert labels == pytest.approx(wanted, abs=1e-6)


def test_nothing_is_lost(saved: list[Path], expected: list[list[float]], tmp_path: Path) -> None:
    models = tmp_path / "models"
    publish(saved, models, 1)
    stop = threading.Event()
    failures: list[BaseException] = []
    answered = [0] * 4

    def repeat(work: Callable[[random.Random], None], seed: int) -> threading.Thread:
        draw = random.Random(seed)

        def run() -> None:
            try:
                while not stop.is_set():
                    work(draw)
            except BaseException as error:
                failures.append(error)
                stop.set()

        return threading.Thread(target=run)

    options = ["--poll", "0.1", "--wait", "300"]  # on a busy machine, too
    with serving(str(models), *options, log=tmp_path / "log") as (url, process):
        host, _, port = url.removeprefix("http://").partition(":")

        def ask(draw: random.Random) -> None:
            with closing(HTTPConnection(host, int(port), timeout=300)) as connection:
                for _ in range(draw.randrange(1, 200)):
                    body, kind = body_of(draw.choice(SIZES), draw.random() < 0.3)
                    connection.request("POST", PREDICT, body, {"content-type": kind})
                    answer = connection.getresponse()
                    content = json.loads(answer.read())
                    assert answer.status == 200, content
                    check(content, expected)
                    answered[0] += 1

        def ask_wrongly(draw: random.Random) -> None:
            with closing(HTTPConnection(host, int(port), timeout=300)) as connection:
                body = bytearray(body_of(2, draw.random() < 0.5)[0])
                body[draw.randrange(len(body))] = draw.randrange(256)
                kind = draw.choice((ARROW, "application/json"))
                connection.request("POST", PREDICT, bytes(body), {"content-type": kind})
                answer = connection.getresponse()
                answer.read()
                assert answer.status < 500
                answered[1] += 1
            time.sleep(0.005)

        def break_off(draw: random.Random) -> None:
            body, kind = body_of(draw.choice(SIZES), False)
            head = f"POST {PREDICT} HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
            whole = head.encode() + body
            with socket.create_connection((host, int(port)), timeout=300) as raw:
                raw.sendall(
                    whole[: draw.randrange(1, len(whole) + 1)]
                )  # all of it, and nobody reads the answer
            answered[2] += 1
            time.sleep(0.005)

        def roll(draw: random.Random) -> None:
            number = answered[3] + 2
            publish(saved, models, number)
            while not stop.is_set():
                with closing(HTTPConnection(host, int(port), timeout=300)) as connection:
                    connection.request("GET", "/v1/models/models")
                    if json.loads(connection.getresponse().read())["version"] == str(number):
                        break
                time.sleep(0.05)
            shutil.rmtree(models / str(number - 1))
            answered[3] += 1

        works = [ask, ask, ask, ask_wrongly, break_off, roll]
        threads = [repeat(work, seed) for seed, work in enumerate(works)]
        for one in threads:
            one.start()
        memory: list[float] = []
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and not stop.is_set():
            time.sleep(SECONDS / 60)
            memory.append(megabytes_of(process))
        stop.set()
        for one in threads:
            one.join()
        if failures:
            raise failures[0]
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 0
    assert min(answered) > 0, answered
    quarter = len(memory) // 4
    # The least of the last quarter beside that of the second: what grows, grows on.
    assert min(memory[-quarter:]) < min(memory[quarter : 2 * quarter]) + 15, memory
    assert '"level":"error"' not in (tmp_path / "log").read_text()


def test_killed_in_a_swap(saved: list[Path], expected: list[list[float]], tmp_path: Path) -> None:
    """Whoever starts again has the old version or the new one, never a mixture."""
    models = tmp_path / "models"
    publish(saved, models, 1)
    draw = random.Random(0)
    body, kind = body_of(8, False)
    for number in range(2, 5):
        with (
            serving(str(models), "--poll", "0.01", log=tmp_path / "log") as (url, process),
            closing(HTTPConnection(url.removeprefix("http://"), timeout=300)) as connection,
        ):
            connection.request("POST", PREDICT, body, {"content-type": kind})
            content = json.loads(connection.getresponse().read())
            check(content, expected)
            assert int(content["version"]) in (number - 1, number - 2)
            copy = threading.Thread(target=publish, args=(saved, models, number))
            copy.start()
            time.sleep(draw.random() * 0.05)
            os.kill(process.pid, signal.SIGKILL)
            copy.join()
        if number % 2:  # whoever copied was killed as well
            weights = models / str(number) / "weights.safetensors"
            weights.write_bytes(weights.read_bytes()[:-100])
