"""Measures a server of models: what a request costs beyond the model, and what joining requests gains.

``python -m benchmarks.serve [MODEL:CATEGORIES:NUMBERS...]`` starts `torchrec serve` twice for each model, with batches
and with ``--batch 1``, and asks from this process, over connections that stay open:

- one row a request, 200 a second whether answers have come or not: median and 99th percentile, and the same less the
  time that the predictor takes for a row in this process: in a loop, and at that rate, which may be three times as much
  on a machine that sleeps between. Wanted: 1 ms and 5 ms above it.
- one row a request, 64 connections, each as fast as it is answered, with batches and without; and one connection:
  requests a second, and processor time of the server a request. Wanted: ten times as many with batches.
- the same for a path that asks no model, which is what HTTP alone costs: no batch can be quicker.

The loads take turns of half a second, and of each the quietest is printed: other programs only ever add.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks.predicting import predictor, times
from torchrec.bundle import save_bundle
from torchrec.inference import Predictor
from torchrec.models.registry import ModelSection

_TICKS = os.sysconf("SC_CLK_TCK")


class Connection(asyncio.Protocol):
    """One that asks a question at a time, and reads no more of the answer than where it ends."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[float] | None = None
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    async def ask(self, request: bytes) -> float:
        """Return the moment at which the whole answer has come."""
        assert self.transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._received = b""
        self.transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if end and len(body) >= int(head.lower().partition(b"content-length: ")[2].split()[0]):
            assert self._answer is not None
            if not head.startswith(b"HTTP/1.1 200"):
                self._answer.set_exception(RuntimeError(self._received.decode()))
            else:
                self._answer.set_result(time.perf_counter())


async def connections(port: int, number: int) -> list[Connection]:
    """Open connections."""
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(Connection, "127.0.0.1", port) for _ in range(number)]
    return [protocol for _, protocol in made]


async def at_a_rate(
    port: int, requests: Sequence[bytes], rate: float, seconds: float
) -> list[float]:
    """Ask so many times a second; return the milliseconds from when a request was due."""
    free = await connections(port, 256)  # a second and more that answers may be late
    found: list[float] = []
    start = time.perf_counter() + 0.1

    async def one(number: int, due: float) -> None:
        connection = free.pop()
        found.append((await connection.ask(requests[number % len(requests)]) - due) * 1e3)
        free.append(connection)

    tasks = []
    for number in range(int(rate * seconds)):
        due = start + number / rate
        while (left := due - time.perf_counter()) > 0:
            # The last millisecond awake: a timer would be late by about as much as is measured.
            await asyncio.sleep(left - 0.001 if left > 0.002 else 0)
        tasks.append(asyncio.create_task(one(number, due)))
    await asyncio.gather(*tasks)
    return found[len(found) // 10 :]  # the first warm caches


def at_its_pace(
    one: Predictor, rows: Sequence[dict[str, object]], rate: float, seconds: float
) -> list[float]:
    """Return the milliseconds that a predictor takes for a row, so many times a second."""
    found = []
    start = time.perf_counter() + 0.1
    for number in range(int(rate * seconds)):
        due = start + number / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        began = time.perf_counter()
        one.predict(rows[number % len(rows)])
        found.append((time.perf_counter() - began) * 1e3)
    return found[len(found) // 10 :]


async def saturated(port: int, requests: Sequence[bytes], number: int, seconds: float) -> int:
    """Ask over so many connections, each as fast as it is answered; return how many answers came."""
    end = time.perf_counter() + seconds
    counts = [0] * number

    async def ask(place: int, connection: Connection) -> None:
        while await connection.ask(requests[(place + counts[place]) % len(requests)]) < end:
            counts[place] += 1

    opened = await connections(port, number)
    await asyncio.gather(*(ask(place, one) for place, one in enumerate(opened)))
    return sum(counts)


@contextmanager
def server(folder: Path, *options: str) -> Iterator[tuple[int, int]]:
    """Start a server; give its port and its process."""
    command = [sys.executable, "-m", "rowwise", "serve", f"model={folder}", "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "--quiet", *options], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield int(line.partition(";")[0].rpartition(":")[2]), process.pid
        finally:
            process.terminate()


def processor_seconds(process: int) -> float:
    """Return the processor time that a process has had."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def request(path: str, body: object = None) -> bytes:
    """Return a request as it is sent."""
    text = b"" if body is None else json.dumps(body).encode()
    method = "GET" if body is None else "POST"
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(text)}\r\n\r\n".encode() + text


@dataclass
class Load:
    """Requests that come as fast as they are answered, and what was seen of them.

    Attributes:
        name: what is asked of whom.
        port: of the server.
        process: of the server.
        requests: asked in turn.
        connections: that ask at once.
        costs: processor time of the server, microseconds a request; one a round.
        rates: requests a second.
    """

    name: str
    port: int
    process: int
    requests: Sequence[bytes]
    connections: int
    costs: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def run(self, seconds: float) -> None:
        """Ask for so long."""
        before = processor_seconds(self.process)
        count = asyncio.run(saturated(self.port, self.requests, self.connections, seconds))
        self.costs.append((processor_seconds(self.process) - before) / count * 1e6)
        self.rates.append(count / seconds)

    @property
    def cost(self) -> float:
        """Processor time of a request, in the quietest round."""
        return min(self.costs)

    @property
    def rate(self) -> float:
        """Requests a second, likewise."""
        return max(self.rates)


def measure(model: str, categories: int, numbers: int, options: argparse.Namespace) -> None:
    """Print what is measured of a model."""
    one, rows = predictor(model, categories, numbers)
    alone = float(np.median(times(lambda: one.predict(rows[0]), 0.5))) / 1e3
    print(f"{model} of {categories} categories: one row in this process {alone:.2f} ms")
    asked = [request("/v1/models/model:predict", {"rows": [row]}) for row in rows]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_bundle(folder / "model", one.model, one.transform, ModelSection(name=model, dim=16))
        with server(folder) as joined, server(folder, "--batch", "1") as single:
            found = asyncio.run(at_a_rate(joined[0], asked, options.rate, options.seconds))
            own = at_its_pace(one, rows, options.rate, options.seconds)
            print(
                f"  {options.rate:g} a second: in this process median {np.median(own):.2f} ms, 99th percentile "
                f"{np.percentile(own, 99):.2f}"
            )
            for what, share in (("median", 50), ("99th percentile", 99)):
                value, paced = np.percentile(found, share), np.percentile(own, share)
                print(
                    f"  requests: {what} {value:.2f} ms, {value - alone:.2f} above the model in a loop, "
                    f"{value - paced:.2f} at that rate"
                )
            loads = [
                Load("joined", *joined, asked, options.connections),
                Load("one by one", *single, asked, options.connections),
                Load("one connection", *single, asked, 1),
                Load("no model", *joined, [request("/healthz")], options.connections),
            ]
            for load in loads:
                asyncio.run(saturated(load.port, load.requests, load.connections, 0.3))
            for _ in range(options.rounds):
                for load in loads:
                    load.run(options.seconds / options.rounds)
    for load in loads:
        print(
            f"  {load.name:15} {load.rate:7,.0f} requests a second, {load.cost:6,.0f} us of processor time each"
        )
    joined_load, *others, bare = loads
    for load in others:
        print(
            f"  of {load.name}: {joined_load.rate / load.rate:.1f} x the requests, "
            f"{load.cost / joined_load.cost:.1f} x by processor time; {bare.rate / load.rate:.1f} x and "
            f"{load.cost / bare.cost:.1f} x were there no model"
        )


def main() -> None:
    """Print the measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "models", nargs="*", default=["deepfm:10:3", "dlrm:26:13", "dlrm_dcn:26:13"]
    )
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--seconds", type=float, default=5, help="of each load")
    parser.add_argument("--rounds", type=int, default=10, help="in which loads take turns")
    parser.add_argument("--connections", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for text in options.models:
        model, categories, numbers = text.split(":")
        measure(model, int(categories), int(numbers), options)


if __name__ == "__main__":
    main()
