"""A server as a process, and what can be seen of it from outside."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(
    *arguments: str, log: Path | None = None
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start a server; give its address and the process, whose log is piped unless it goes to a file."""
    command = [sys.executable, "-m", "rowwise", "serve", "--port", "0", *arguments]
    with open(log or "/dev/null", "w") as file:
        errors = subprocess.PIPE if log is None else file
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                assert " on http://127.0.0.1:" in line, process.communicate()
                yield line.partition(" on ")[2].partition(";")[0], process
            finally:
                process.kill()


def megabytes_of(process: subprocess.Popen[str]) -> float:
    """Return the memory that a process has in use."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    (line,) = (one for one in lines if one.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024
