"""Measures one scenario with whichever ``torchrec`` this Python has.

``python -m benchmarks.worker WORK`` builds what ``benchmarks.work`` makes of the JSON, prints "ready", and for each
line of input, a number of threads, measures for a moment and prints a line of JSON: the median time of a step and the
processor's time for it, in milliseconds, and its minor page faults. So several such processes can have their turns
without building anew.
"""

from __future__ import annotations

import gc
import json
import resource
import statistics
import sys
import time

import torch

from benchmarks.work import MAKERS, Work

SECONDS, LEAST, WARM = 0.4, 3, 3


def minor_faults() -> int:
    """Return how many pages the system has handed to this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def measure(work: Work) -> dict[str, float]:
    """Measure for `SECONDS`, after a few steps to wake threads and caches."""
    for _ in range(WARM * work.unit):
        work.step(next(work.inputs))
    gc.disable()
    wall: list[float] = []
    processor, faults = 0.0, 0
    while len(wall) < LEAST or sum(wall) < SECONDS * 1e3 / work.unit:
        passed = 0.0
        for _ in range(work.unit):
            given = next(work.inputs)
            faults -= minor_faults()
            processor -= time.process_time()
            start = time.perf_counter()
            work.step(given)
            passed += time.perf_counter() - start
            processor += time.process_time()
            faults += minor_faults()
        wall.append(passed * 1e3 / work.unit)
    gc.enable()
    steps = len(wall) * work.unit
    return {
        "wall": statistics.median(wall),
        "processor": processor * 1e3 / steps,
        "faults": faults / steps,
    }


def main() -> None:
    name, *arguments = json.loads(sys.argv[1])
    work = {maker.__name__: maker for maker in MAKERS}[name](*arguments)
    print("ready", flush=True)
    for line in sys.stdin:
        torch.set_num_threads(int(line))
        print(json.dumps(measure(work)), flush=True)


if __name__ == "__main__":
    main()
