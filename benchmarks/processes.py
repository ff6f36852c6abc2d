"""Processes that measure when they are asked: what has its turn is built already."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent


class Process:
    """Prints "ready", and a line of JSON for each number of threads that it is given.

    Raises:
        SystemExit: if it ends before it has answered, which it has explained itself.
    """

    def __init__(
        self, command: list[str], folder: Path, environment: dict[str, str] | None = None
    ) -> None:
        self._command = command
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={n: v for n, v in os.environ.items() if n != "PYTHONPATH"} | (environment or {}),
        )
        while self._line().strip() != "ready":
            pass

    def ask(self, threads: int) -> dict[str, float]:
        self._process.stdin.write(f"{threads}\n")
        self._process.stdin.flush()
        return json.loads(self._line())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def end(self) -> None:
        """End it, whatever it does."""
        self._process.terminate()
        self.close()

    def _line(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self._command)} ended early.")
        return line


class Workplace:
    """A folder to run workers in: it has our benchmarks, and no torchrec but that of the Python."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "benchmarks").symlink_to(HERE, target_is_directory=True)
        self._limits = folder / "limits"
        compiler = os.environ.get("CXX", "c++")
        command = [compiler, "-O3", "-march=native", "-fopenmp", "-std=c++17"]
        subprocess.run([*command, str(HERE / "limits.cpp"), "-o", str(self._limits)], check=True)

    def worker(
        self, python: str, work: list[object], environment: dict[str, str] | None = None
    ) -> Process:
        """Start what measures this work under this Python."""
        command = [python, "-W", "ignore", "-m", "benchmarks.worker", json.dumps(work)]
        return Process(command, self.folder, environment)

    def limit(self, arguments: list[str], environment: dict[str, str] | None = None) -> Process:
        """Start a plain loop."""
        return Process([str(self._limits), *arguments], self.folder, environment)


@contextmanager
def workplace() -> Iterator[Workplace]:
    with tempfile.TemporaryDirectory() as folder:
        yield Workplace(Path(folder))
