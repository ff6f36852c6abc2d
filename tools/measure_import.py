"""Report what starting costs, the median over fresh processes: the package, and the command line's help.

python tools/measure_import.py [--repeat 10]

Modules come from their bytecode, as they do where a package is installed, whatever the environment says. A pass of the
garbage collector over all of PyTorch's objects takes longer than everything else; whether one falls into the import
depends on how many objects came before it, so its time is said beside.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
ENVIRONMENT.pop("PYTHONDONTWRITEBYTECODE", None)
CODE = """
import gc, time, torch
passes = []
def note(phase, info):
    passes.append(time.perf_counter() if phase == "start" else passes.pop() - time.perf_counter())
gc.callbacks.append(note)
start = time.perf_counter()
import torchrec
print(time.perf_counter() - start, -sum(passes))
"""
LINES = ("--version", "--help", "train --help")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=10)
    repeat = parser.parse_args().repeat
    with tempfile.TemporaryDirectory() as folder:
        ENVIRONMENT["PYTHONPYCACHEPREFIX"] = folder
        _report(repeat)


def _report(repeat: int) -> None:
    runs = []
    for _ in range(repeat + 1):  # the first one writes the bytecode
        shown = subprocess.check_output([sys.executable, "-c", CODE], env=ENVIRONMENT, text=True)
        runs.append(list(map(float, shown.split())))
    total, collected = (statistics.median(column) * 1e3 for column in zip(*runs[1:], strict=True))
    print(
        f"import torchrec: {total:.1f} ms beyond import torch,"
        f" {collected:.1f} of them garbage collection"
    )
    for line in LINES:
        _processor_seconds(line)
        cost = statistics.median(_processor_seconds(line) for _ in range(repeat))
        print(f"torchrec {line}: {cost * 1e3:.0f} ms of processor time")


def _processor_seconds(line: str) -> float:
    """Return what a command costs, with the start of Python."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "rowwise", *line.split()],
        env=ENVIRONMENT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
