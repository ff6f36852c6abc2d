"""Measures one scenario with whichever ``torchrec`` this Python has.

``python -m benchmarks.worker WORK`` builds what ``benchmarks.work`` makes of the JSON, prints "ready", and for each
line of input, a number of threads, measures for a moment and prints a line of JSON: the median and the mean time of a
step and the processor's time for it, in milliseconds, and its minor page faults. So several such processes can have
their turns without building anew. 0 threads: as many as our trainer would choose, after it has chosen.
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


def choosing(work: Work) -> Work:
    """Return the work on the number of threads that is faster here and now."""
    from torchrec.threads import ThreadChooser

    chooser = ThreadChooser()

    def step(given: object) -> None:
        with chooser.step():
            work.step(given)

    while chooser.most > 1 and chooser.choice is None:
        step(next(work.inputs))
    return Work(work.inputs, step, work.unit)


def measure(work: Work) -> dict[str, float]:
    """Measure for `SECONDS`, after a few steps to wake threads and caches."""
    for _ in range(WARM * work.unit):
        work.step(next(work.inputs))
    gc.disable()
    wall: list[float] = []
    processor, faults, end = 0.0, 0, time.perf_counter() + SECONDS
    while len(wall) < LEAST or time.perf_counter() < end:
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
        "mean": statistics.fmean(wall),
        "processor": processor * 1e3 / steps,
        "faults": faults / steps,
    }


def main() -> None:
    name, *arguments = json.loads(sys.argv[1])
    work = {maker.__name__: maker for maker in MAKERS}[name](*arguments)
    most = torch.get_num_threads()
    print("ready", flush=True)
    for line in sys.stdin:
        threads = int(line)
        torch.set_num_threads(threads or most)
        print(json.dumps(measure(work if threads else choosing(work))), flush=True)


if __name__ == "__main__":
    main()
