"""Report what starting costs, the median over fresh processes: the package, and the command line's help.

python tools/measure_import.py [--repeat 10]
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
CODE = (
    "import time, torch; start = time.perf_counter(); import torchrec;"
    "print(time.perf_counter() - start)"
)
LINES = ("--version", "--help", "train --help")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=10)
    repeat = parser.parse_args().repeat
    seconds = [
        float(subprocess.check_output([sys.executable, "-c", CODE], env=ENVIRONMENT))
        for _ in range(repeat)
    ]
    print(f"import torchrec: {statistics.median(seconds) * 1e3:.1f} ms beyond import torch")
    for line in LINES:
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
