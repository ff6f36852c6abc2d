"""Models over HTTP: what each path answers, and what it refuses, with a sentence."""

from __future__ import annotations

import asyncio
import io
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive

from rowwise import __version__
from tests.serve import clicks
from torchrec.inference import load
from torchrec.serve import Limits, application, service
from torchrec.serve.bodies import ARROW, arrow_of

pytestmark = pytest.mark.once

PREDICT = "/v1/models/clicks:predict"
RECOMMEND = "/v1/models/clicks:recommend"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clicks.save(tmp_path_factory.mktemp("run") / "model").parent


@pytest.fixture(scope="module")
def tasks_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clicks.save(tmp_path_factory.mktemp("tasks"), tasks=True)


@pytest.fixture(scope="module")
def client(folder: Path, tasks_folder: Path) -> Iterator[TestClient]:
    limits = Limits(body=50_000, rows=200, batch=8)
    with TestClient(application({"clicks": folder, "tasks": tasks_folder}, limits)) as found:
        yield found


def arrow(rows: list[dict[str, object]], **columns: object) -> bytes:
    return arrow_of(pa.table({**pa.Table.from_pylist(rows).to_pydict(), **columns}))


@pytest.mark.parametrize("number", [1, 8, 9, 70])
def test_predictions_are_those_of_the_predictor(
    client: TestClient, folder: Path, number: int
) -> None:
    """In a batch with others (8), alone (9), and beyond the rows that need no Arrow table (70)."""
    rows = clicks.rows(number, seed=3)
    answer = client.post(PREDICT, json={"rows": rows})
    assert answer.status_code == 200, answer.text
    expected = load(folder).predict(rows).tolist()
    assert answer.json()["predictions"] == {"labels": pytest.approx(expected, abs=1e-7)}
    assert answer.json()["version"] == client.get("/v1/models/clicks").json()["version"]


def test_arrow_there_and_back(client: TestClient, folder: Path) -> None:
    rows = clicks.rows(60)
    headers = {"content-type": ARROW, "accept": ARROW}
    answer = client.post(PREDICT, content=arrow(rows), headers=headers)
    assert answer.headers["content-type"] == ARROW
    table = pa.ipc.open_stream(io.BytesIO(answer.content)).read_all()
    assert table.column_names == ["prediction"]
    expected = load(folder).predict(rows).numpy()
    np.testing.assert_allclose(table["prediction"].to_numpy(), expected, atol=1e-7)
    as_json = client.post(PREDICT, content=arrow(rows), headers={"content-type": ARROW}).json()
    assert as_json["predictions"]["labels"] == pytest.approx(expected.tolist(), abs=1e-7)


def test_all_tasks_are_predicted(client: TestClient, tasks_folder: Path) -> None:
    rows = clicks.rows(3)
    answer = client.post("/v1/models/tasks:predict", json={"rows": rows}).json()["predictions"]
    expected = load(tasks_folder).predict_tasks(rows)
    assert list(answer) == ["click", "stars"]
    for name, scores in expected.items():
        np.testing.assert_allclose(answer[name], scores.numpy(), atol=1e-7)
    headers = {**JSON, "accept": ARROW}
    found = client.post("/v1/models/tasks:predict", json={"rows": rows}, headers=headers)
    assert pa.ipc.open_stream(found.content).read_all().column_names == [
        "prediction_click",
        "prediction_stars_0",
        "prediction_stars_1",
        "prediction_stars_2",
    ]


def test_no_rows_have_no_predictions(client: TestClient) -> None:
    assert client.post(PREDICT, json={"rows": []}).json()["predictions"] == {"labels": []}


def changed(**columns: object) -> bytes:
    """Return three rows, of which the second is another."""
    rows = clicks.rows(3, seed=1)
    rows[1] |= columns
    return json.dumps(
        {"rows": [{k: v for k, v in row.items() if v != "left out"} for row in rows]}
    ).encode()


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (changed(price="dear"), 422, "Column 'price' should hold numbers, as in training. Received 'dear' in row 1."),
        (changed(user=7), 422, "Column 'user' should hold strings, as in training. Received 7 in row 1."),
        (changed(shop=20), 422, "Ids of feature 'shop' should be in [0, 20), the rows of table 'shop'. Received 20"),
        (changed(user="left out"), 422, "should have column 'user', None where it is missing. Received row 1"),
        (changed(tags=["a", {}]), 422, "Column 'tags' should hold values of one type"),
        (b"", 400, "The body should be JSON"),
        (b"\xff", 400, "The body should be JSON"),
        (b'{"rows": [{"price": NaN}]}', 400, "The body should be JSON"),
        (b'{"rows": ' + b"[" * 30_000, 400, "recursion limit"),
        (b'{"rows": [{"shop": ' + b"1" * 5_000 + b"}]}", 400, "number out of range"),
        (b"[]", 400, "The body should be a JSON object. Received a list."),
        (b"{}", 400, 'The body should be {"rows": [...]}, with an object of columns for each row. Received nothing'),
        (b'{"rows": [], "k": 1}', 400, "Received 'k' (an integer), 'rows' (a list)."),
        (b'{"rows": [{}, 5]}', 400, "`rows` should be objects of columns. Received an integer in row 1."),
        (b'{"rows": [' + b",".join([b"{}"] * 201) + b"]}", 413, "should have at most 200 rows. Received 201."),
        (b" " * 50_001, 413, "The body of a request should have at most 50,000 bytes. Received 50,001."),
    ],
)  # fmt: skip
def test_what_is_refused(client: TestClient, body: bytes, status: int, message: str) -> None:
    answer = client.post(PREDICT, content=body, headers=JSON)
    assert (answer.status_code, answer.headers["content-type"]) == (
        status,
        "application/problem+json",
    )
    assert message in answer.json()["detail"]
    assert answer.json()["status"] == status
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "message"),
    [
        ("GET", "/nothing", {}, 404, "The path should be one of those in /openapi.json. Received '/nothing'."),
        ("GET", PREDICT, {}, 405, "The method of '/v1/models/clicks:predict' should be another. Received GET."),
        ("PUT", PREDICT, {}, 405, "The method of '/v1/models/clicks:predict' should be another. Received PUT."),
        ("POST", "/v1/models/click:predict", JSON, 404, "Received 'click'; did you mean 'clicks'?"),
        ("POST", "/v1/models/clicks/versions/7:predict", JSON, 404, "which are loaded. Received '7'."),
        ("POST", f"/v1/models/{'x' * 9_000}:predict", JSON, 404, f"one of clicks, tasks. Received '{'x' * 80}'."),
        ("GET", "/healthz/", {}, 404, "Received '/healthz/'."),
        ("POST", PREDICT, {"content-type": "text/plain"}, 415, "Received 'text/plain'."),
        ("POST", PREDICT, {**JSON, "content-encoding": "gzip"}, 415, "bodies are not compressed. Received 'gzip'."),
        ("POST", RECOMMEND, {"content-type": ARROW}, 415, "`Content-Type` should be application/json."),
        ("POST", PREDICT, {**JSON, "content-length": "-1"}, 400, "`Content-Length` should be a number. Received '-1'."),
    ],
)  # fmt: skip
def test_what_is_no_request(
    client: TestClient, method: str, path: str, headers: dict[str, str], status: int, message: str
) -> None:
    answer = client.request(method, path, headers=headers)
    assert answer.status_code == status
    assert message in answer.json()["detail"]


def compressed() -> bytes:
    sink, table = io.BytesIO(), pa.table({"x": pa.array(np.zeros(100_000))})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue()


def dictionary() -> bytes:
    sink = io.BytesIO()
    table = pa.table({"x": pa.array(["a" * 1000] * 500 + ["b"]).dictionary_encode()})
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "The body should be a stream of Arrow IPC."),
        (b"\xff\xff\xff\xff\x00\x00\x00\x10" + b"x" * 40, 400, "The body should be a stream of Arrow IPC."),
        (compressed(), 400, "its batches are compressed, and should not be"),
        (dictionary(), 400, "its batches are compressed, and should not be"),
        (arrow(clicks.rows(201)), 413, "A request should have at most 200 rows."),
        (arrow(clicks.rows(3), price=["a", "b", "c"]), 422, "Column 'price' of feature 'price' should hold numbers"),
    ],
    ids=["empty", "no_message", "compressed", "compressed_dictionary", "rows", "strings"],
)  # fmt: skip
def test_arrow_that_is_refused(client: TestClient, body: bytes, status: int, message: str) -> None:
    answer = client.post(PREDICT, content=body, headers={"content-type": ARROW})
    assert answer.status_code == status, answer.text
    assert message in answer.json()["detail"]


def test_offsets_of_arrow_are_checked(client: TestClient) -> None:
    """Of a list whose offsets lead beyond its values, what lies there would be read."""
    offsets = pa.array([0, 5_000_000, 1], pa.int32()).buffers()[1]
    tags = pa.Array.from_buffers(
        pa.list_(pa.string()), 2, [None, offsets], children=[pa.array(["a"])]
    )
    table = pa.table({**pa.Table.from_pylist(clicks.rows(2)).to_pydict(), "tags": tags})
    answer = client.post(PREDICT, content=arrow_of(table), headers={"content-type": ARROW})
    assert answer.status_code == 400
    assert "The body should be a stream of Arrow IPC" in answer.json()["detail"]


def test_request_ids(client: TestClient) -> None:
    assert (
        client.get("/healthz", headers={"x-request-id": "mine-1"}).headers["x-request-id"]
        == "mine-1"
    )
    for odd in ("a b", "x" * 65, '"', ""):
        found = client.get("/healthz", headers={"x-request-id": odd}).headers["x-request-id"]
        assert len(found) == 32


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ([], 408, "The body of a request should come within 0.02 s. It did not."),
        ([{"type": "http.request", "body": b"{", "more_body": True}], 408, "It did not."),
        ([{"type": "http.disconnect"}], 400, "The body of a request should come. It broke off."),
    ],
)  # fmt: skip
def test_a_body_that_does_not_come(
    folder: Path, body: list[dict[str, object]], status: int, message: str
) -> None:
    async def receive() -> dict[str, object]:
        if body:
            return body.pop(0)
        return await asyncio.Event().wait()  # type: ignore[return-value]

    app = application({"clicks": folder}, Limits(wait=0.02))
    assert_refused(asyncio.run(sent(app, PREDICT, receive)), status, message)


def test_bodies_that_do_not_come_are_refused_in_turn(folder: Path) -> None:
    """One timer is for all, in this loop and the next; who is in time is answered."""
    app = application({"clicks": folder}, Limits(wait=0.2))

    async def never() -> dict[str, object]:
        return await asyncio.Event().wait()  # type: ignore[return-value]

    async def at_once() -> dict[str, object]:
        return {"type": "http.request", "body": json.dumps({"rows": clicks.rows(1)}).encode()}

    async def run() -> list[int]:
        order: list[int] = []

        async def ask(number: int, receive: Receive) -> int:
            status: int = (await sent(app, PREDICT, receive))[0]["status"]
            order.append(number)
            return status

        tasks = []
        for number in range(4):
            tasks.append(asyncio.create_task(ask(number, never)))
            assert await ask(10 + number, at_once) == 200
        broken_off = asyncio.create_task(ask(20, never))
        await asyncio.sleep(0)
        broken_off.cancel()  # not by the timer
        with pytest.raises(asyncio.CancelledError):
            await broken_off
        assert await asyncio.gather(*tasks) == [408] * 4
        return order

    for _ in range(2):
        assert asyncio.run(run()) == [10, 11, 12, 13, 0, 1, 2, 3]


async def sent(app: ASGIApp, path: str, receive: Receive) -> list[Message]:
    """Return what an application sends for a request whose body comes as it is told."""
    found: list[Message] = []

    async def send(message: Message) -> None:
        found.append(message)

    headers = [(b"content-type", b"application/json")]
    await app({"type": "http", "method": "POST", "path": path, "headers": headers}, receive, send)
    return found


def assert_refused(messages: list[Message], status: int, text: str) -> None:
    assert messages[0]["status"] == status
    assert text in json.loads(messages[1]["body"])["detail"]


def test_what_takes_longer_is_given_up_as_well(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(service, "recommended", lambda *_: gate.wait() and [])

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b'{"users": []}'}

    async def run() -> list[list[Message]]:
        app = application({"clicks": folder}, Limits(wait=0.5, queue=2))
        tasks = [asyncio.create_task(sent(app, RECOMMEND, receive)) for _ in range(3)]
        await asyncio.sleep(0)  # two are in the thread's queue, which is full
        await asyncio.sleep(0.6)
        gate.set()
        return await asyncio.gather(*tasks)

    first, second, third = asyncio.run(run())
    assert first[0]["status"] == 200
    assert_refused(second, 503, "A request should wait at most 0.5 s for the model.")
    assert_refused(third, 429, "At most 2 requests should wait.")


def test_bodies_of_all_requests_have_a_bound(folder: Path) -> None:
    """Bytes that have been declared, or have come, count until their request is answered."""
    body = json.dumps({"rows": clicks.rows(1)}).encode()
    half = len(body) // 2

    async def run() -> list[list[Message]]:
        app = application({"clicks": folder}, Limits(pending=len(body) + half, body=len(body)))
        rest = asyncio.Event()

        def parts(*sent: bytes) -> Receive:
            left = [{"type": "http.request", "body": one, "more_body": True} for one in sent]
            left[-1]["more_body"] = False

            async def receive() -> Message:
                if len(left) == 1 and len(sent) > 1:
                    await rest.wait()
                return left.pop(0)

            return receive

        first = asyncio.create_task(sent(app, PREDICT, parts(body, b"")))
        await asyncio.sleep(0)
        while_it_comes = await sent(app, PREDICT, parts(body))
        rest.set()
        answers = [await first, while_it_comes, await sent(app, PREDICT, parts(body))]
        return [*answers, await sent(app, PREDICT, parts(body, body, b" "))]

    first, second, third, long = asyncio.run(run())
    assert (first[0]["status"], third[0]["status"]) == (200, 200)
    assert_refused(second, 429, f"should have at most {len(body) + half} bytes together")
    assert (b"retry-after", b"1") in second[0]["headers"]
    assert_refused(long, 413, "bytes. Received more.")


def test_models_say_what_they_read(client: TestClient) -> None:
    first = client.get("/v1/models").json()["models"][0]
    assert (first["name"], first["columns"]) == ("clicks", ["user", "shop", "price", "tags"])
    assert first["features"][2] == {
        "name": "price",
        "column": "price",
        "type": "dense",
        "values": "numbers",
    }
    assert first["tasks"] == [{"name": "labels", "kind": "click"}]
    description = client.get("/openapi.json").json()
    body = description["paths"][PREDICT]["post"]["requestBody"]["content"]["application/json"]
    row = body["schema"]["properties"]["rows"]["items"]
    assert row["required"] == ["user", "shop", "price", "tags"]
    assert row["properties"]["tags"] == {
        "type": ["array", "null"],
        "items": {"type": ["string", "null"]},
    }


def test_recommendations(client: TestClient, folder: Path) -> None:
    candidates = [{"shop": shop, "price": 0.5 * shop, "tags": ["tag-1"]} for shop in range(7)]
    users = [{"user": "user-1"}, {"user": None}, {"user": "user-1"}]
    wish = {"users": users, "candidates": candidates, "k": 3, "seen": [[2], [], []]}
    found = client.post(RECOMMEND, json=wish).json()["recommendations"]
    predictor = load(folder)
    for user, seen, best in zip(users, wish["seen"], found, strict=True):
        rows = [{**user, **one} for one in candidates if one["shop"] not in seen]
        scores = predictor.predict(rows)
        expected = scores.sort(descending=True, stable=True)
        assert [one["shop"] for one in best] == [rows[i]["shop"] for i in expected.indices[:3]]
        np.testing.assert_allclose([one["score"] for one in best], expected.values[:3], atol=1e-7)


@pytest.mark.parametrize(
    ("wish", "status", "message"),
    [
        ({"k": 3}, 400, "The body should have `users`"),
        ({"users": 3}, 400, "`users` should be a list. Received an integer."),
        ({"users": [], "k": True}, 400, "`k` should be an integer. Received true or false."),
        ({"users": [], "much": 1}, 400, "The body should have users, k, candidates, seen, task. Received 'much'."),
        ({"users": [{}]}, 422, "A request should bring `candidates`, as the server has none"),
        ({"users": [{}], "candidates": [{}]}, 422, "`candidates` should have one or more rows"),
        ({"users": [{}], "candidates": [{"shop": 1}]}, 422, "Column 'user' of feature 'user' should be in the table"),
        ({"users": [{"user": "a"}], "candidates": [{"shop": 1, "tags": [], "price": 1}], "seen": []}, 422,
         "`seen` should have a list for each of 1 users. Received 0 lists."),
        ({"users": [{"user": "a"}], "candidates": [{"shop": 1, "tags": [], "price": 1}], "seen": [["x"]]}, 422,
         "`seen` should have keys of candidates, of type int64."),
        ({"users": [{"user": "a"}], "candidates": [{"shop": 1, "tags": [], "price": 1}], "k": 0}, 422,
         "`k` should be at least 1. Received 0."),
        ({"users": [{"user": "a", "price": 2}], "candidates": [{"shop": 1, "tags": [], "price": 1}]}, 422,
         "Received 'price' in both"),
        ({"users": [{"user": "a"}], "candidates": [{"id": [1], "shop": 1, "tags": [], "price": 1}]}, 422,
         "Column 'id' should hold one value a row, to name it. Received list"),
        ({"users": [{"user": "a"}] * 50, "candidates": [{"shop": 1, "tags": [], "price": 1}] * 5}, 413,
         "at most 200 pairs of user and candidate. Received 250."),
    ],
)  # fmt: skip
def test_recommendations_that_are_refused(
    client: TestClient, wish: dict[str, object], status: int, message: str
) -> None:
    answer = client.post(RECOMMEND, json=wish)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["detail"]


def test_a_token_is_asked(folder: Path) -> None:
    with TestClient(application({"clicks": folder}, token="secret")) as client:
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"authorization": "Bearer other"}).status_code == 401
        for scheme in ("Bearer", "bearer"):
            headers = {"authorization": f"{scheme} secret"}
            assert client.get("/v1/models", headers=headers).status_code == 200
        assert [client.get(path).status_code for path in ("/", "/healthz", "/readyz")] == [200] * 3


def test_it_is_mounted_in_an_application_of_ones_own(folder: Path) -> None:
    own = Starlette(routes=[Mount("/models", app=application({"clicks": folder}))])
    with TestClient(own) as client:
        answer = client.post(f"/models{PREDICT}", json={"rows": clicks.rows(2)})
        assert len(answer.json()["predictions"]["labels"]) == 2
        missing = client.get("/models/nothing")
        assert (missing.status_code, missing.json()["status"]) == (404, 404)


def test_metrics_count(client: TestClient) -> None:
    def read() -> dict[str, float]:
        lines = [line.rpartition(" ") for line in client.get("/metrics").text.splitlines()]
        return {name: float(value) for name, _, value in lines if not name.startswith("#")}

    before = read()
    client.post(PREDICT, json={"rows": [{**clicks.rows(1)[0], "user": "nobody"}] * 3})
    client.post(PREDICT, content=b"", headers=JSON)
    after = read()

    def more(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert more('torchrec_rows_total{model="clicks"}') == 3
    assert more('torchrec_requests_total{method="predict",model="clicks",status="200"}') == 1
    assert more('torchrec_requests_total{method="predict",model="clicks",status="400"}') == 1
    seconds = 'torchrec_request_seconds_{}{{{}method="predict",model="clicks"}}'
    assert more(seconds.format("count", "")) == 2
    assert more(seconds.format("bucket", 'le="+Inf",')) == 2
    assert more(seconds.format("bucket", 'le="0.0005",')) <= 2
    assert 0 < more(seconds.format("sum", "")) < 60
    unknown = 'torchrec_feature_values_total{feature="user",model="clicks",what="unknown"}'
    assert more(unknown) == 3


def test_the_page_asks_nobody_else(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert "http" not in answer.text.replace("http-equiv", "").partition("<script>")[0]


def test_the_container_is_that_of_the_documentation() -> None:
    root = Path(__file__).parents[2]
    content = (root / "deploy" / "serve" / "Dockerfile").read_text().partition("\n")[2]
    assert f"```\n{content}```" in (root / "docs" / "serving.md").read_text()
    given = dict(re.findall(r"(TORCH|ROWWISE)=([0-9.]+)", content))
    (torch,) = re.findall(r"^torch==(.*)$", (root / "constraints.txt").read_text(), re.MULTILINE)
    assert given == {"TORCH": torch, "ROWWISE": __version__}


def test_options_out_of_range(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"`poll` should be at least 0. Received -1"):
        application({"clicks": folder}, poll=-1)
    with pytest.raises(ValueError, match="`token` should have printable ASCII characters"):
        application({"clicks": folder}, token=" ")
    with pytest.raises(ValueError, match="A server should have at least one model"):
        application({})
    with pytest.raises(ValueError, match=r"`keep` should be at least 1. Received 0"):
        application({"clicks": folder}, keep=0)
    with pytest.raises(
        ValueError, match=r"one of the models clicks. Received 'click'; did you mean 'clicks'?"
    ):
        application({"clicks": folder}, candidates={"click": "a.parquet"})
