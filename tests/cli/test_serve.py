"""``torchrec serve``: a process that listens, answers and stops, and what it refuses to begin with."""

from __future__ import annotations

import json
import signal
import socket
import urllib.request
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rowwise import cli
from rowwise.cli.serve import say
from tests.serve import clicks
from tests.serve.process import serving
from torchrec.inference import load

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "clicks"
    clicks.save(folder / "model")
    return folder


def ask(url: str, body: object, **headers: str) -> dict:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json", **headers}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_a_server_answers_and_stops(run: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    shops = pa.table({"shop": [3, 5], "price": [1.0, 2.0], "tags": [["tag-1"], []]})
    pq.write_table(shops, tmp_path / "shops.parquet")
    options = ["--token-file", str(tmp_path / "token"), "-c", str(tmp_path / "shops.parquet")]
    with serving(f"mine={run}", *options) as (url, process):
        bearer = {"authorization": "Bearer secret"}
        rows = clicks.rows(2)
        answer = ask(f"{url}/v1/models/mine:predict", {"rows": rows}, **bearer)
        assert answer["predictions"]["labels"] == load(run).predict(rows).tolist()
        wish = {"users": [{"user": "user-1"}], "k": 1}
        (best,) = ask(f"{url}/v1/models/mine:recommend", wish, **bearer)["recommendations"]
        scored = load(run).predict([{"user": "user-1", **one} for one in shops.to_pylist()])
        assert best == [{"shop": [3, 5][int(scored.argmax())], "score": float(scored.max())}]
        body = json.dumps({"rows": rows}).encode()
        head = (
            f"POST /v1/models/mine:predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
        )
        more = "authorization: Bearer secret\r\ncontent-type: application/json\r\nexpect: 100-continue\r\n"
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 60) as raw:
            raw.sendall(f"{head}{more}\r\n".encode())
            assert b" 100 " in raw.recv(1000)  # it is under way
            process.send_signal(signal.SIGTERM)
            raw.sendall(body)
            last = b"".join(iter(lambda: raw.recv(10_000), b""))
        assert last.startswith(b"HTTP/1.1 200 ")
        assert json.loads(last.partition(b"\r\n\r\n")[2])["predictions"] == answer["predictions"]
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0
    events = [json.loads(line) for line in errors.splitlines()]
    assert [one["event"] for one in events] == ["request"] * 3
    assert (events[0]["status"], events[0]["model"], events[0]["rows"]) == (200, "mine", 2)
    assert events[0]["request_id"] == answer["request_id"]


def test_a_port_that_is_taken(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", str(run), "--port", str(port)]) == 2
    assert f"a free port. Received 127.0.0.1 and port {port}: Address already in use." in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "should be a run, a bundle, or a folder of such with numbers for names. Received 'nowhere'"),
        (["{run}", "{run}"], "Each RUN should have a name of its own, as in other={run}. Received 'clicks' twice."),
        (["a:b={run}"], "should be one that may stand in a URL. Received 'a:b'"),
        (["a={run}", "b={run}", "-c", "x.parquet"], "should name the model, as a=x.parquet. Received 'x.parquet'"),
        (["{run}", "--rows", "0"], "`rows` of a server should be above 0. Received 0."),
        (["{run}", "--token-file", "/dev/null"], "'/dev/null' should hold a token."),
    ],
)  # fmt: skip
def test_what_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    arguments = [one.format(run=run) for one in arguments]
    assert cli.main(["serve", "--port", "0", *arguments]) == 2
    assert message.format(run=run) in capsys.readouterr().err


def test_options_reach_the_server(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each under its unit: milliseconds and megabytes on the command line."""
    import torchrec.serve

    found = {}

    def application(paths: object, limits: object, **options: object) -> None:
        found.update(paths=paths, **vars(limits), **options)

    monkeypatch.setattr(torchrec.serve, "application", application)
    monkeypatch.setattr(torchrec.serve, "run", lambda app, bound, started: None)
    limits = [
        "--batch",
        "7",
        "--gather",
        "3",
        "--queue",
        "5",
        "--wait",
        "4",
        "--rows",
        "9",
        "--body",
        "500",
    ]
    others = ["--keep", "2", "--poll", "0.5", "--quiet"]
    assert cli.main(["serve", str(run), "--port", "0", *limits, *others]) == 0
    assert found == {
        "paths": {"clicks": str(run)},
        "body": 500_000_000,
        "pending": 500_000_000,
        "rows": 9,
        "queue": 5,
        "wait": 4.0,
        "batch": 7,
        "gather": 0.003,
        "token": None,
        "candidates": {},
        "keep": 2,
        "poll": 0.5,
        "log_all": False,
    }


def test_who_may_ask_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    say("clicks on http://0.0.0.0:8000", True)
    assert "no token is asked of them: see `--token-file`." in capsys.readouterr().out
