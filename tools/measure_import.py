"""Report what ``import torchrec`` costs beyond ``import torch``: the median over fresh processes.

python tools/measure_import.py [--repeat 10]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CODE = (
    "import time, torch; start = time.perf_counter(); import torchrec;"
    "print(time.perf_counter() - start)"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=10)
    repeat = parser.parse_args().repeat
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    seconds = [
        float(subprocess.check_output([sys.executable, "-c", CODE], env=environment))
        for _ in range(repeat)
    ]
    print(f"import torchrec: {statistics.median(seconds) * 1e3:.1f} ms beyond import torch")


if __name__ == "__main__":
    main()
