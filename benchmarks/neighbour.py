"""Measures what a busy neighbour costs: another process that spins on a processor, or streams memory.

``python -m benchmarks.neighbour`` runs look-up, training steps, a DLRM step and predictions alone and beside such a
neighbour, on one thread, on all, and on the number that the trainer chooses; predictions choose their own. It prints
mean times, and how many times as slow each is as alone; in brackets the fair share: with ``n`` threads and a neighbour
on ``c`` processors, the scheduler owes us ``n / (n + 1)`` of them. Wanted: at most twice that. A neighbour that streams
takes its share of the memory too: the first rows say what it leaves of ``memcpy`` and of reads.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable

from benchmarks.processes import Workplace, workplace
from benchmarks.scenarios import SCENARIOS

WORK: dict[str, list[object]] = {
    scenario.name: scenario.work
    for scenario in SCENARIOS
    if scenario.name
    in ("look-up, B=4096", "training step, B=2048, 1 id", "DLRM, training step, B=2048")
} | {
    "100 predictions": ["predictions", 100],
    "8,192 predictions": ["predictions", 8192],
}
NEIGHBOURS = ("spin", "stream")
WANTED = 2.0
CHOSEN = 0

Times = dict[str, list[float]]  # neighbour, or "" alone -> a mean in each round


def fair(threads: int, processors: int) -> float:
    """Return how many times as slow as alone the scheduler makes us, if it is fair to each thread."""
    alone = min(threads, processors)
    return alone / min(alone, processors * threads / (threads + 1))


def turns(place: Workplace, ask: Callable[[], dict[str, float]], rounds: int) -> dict[str, Times]:
    """Ask alone and beside each neighbour; return for each number answered its times."""
    found: dict[str, Times] = {}
    for _ in range(rounds):
        for neighbour in ("", *NEIGHBOURS):
            process = place.limit([neighbour]) if neighbour else None
            for name, value in ask().items():
                found.setdefault(name, {}).setdefault(neighbour, []).append(value)
            if process:
                process.end()
    return found


def row(name: str, threads: str, times: Times, owed: float | None) -> str:
    """Return a row of the table."""
    alone = statistics.median(times[""])
    cells = [name, threads, f"{alone:.3g}"]
    for neighbour in NEIGHBOURS:
        slower = statistics.median(b / a for a, b in zip(times[""], times[neighbour], strict=True))
        text = f"{statistics.median(times[neighbour]):.3g} | {slower:.2f}"
        if owed is not None:
            text += f" ({owed:.2g}) {'✓' if slower <= WANTED * owed else '✗'}"
        cells.append(text)
    return "| " + " | ".join(cells) + " |"


def measure(place: Workplace, python: str, name: str, work: list[object], rounds: int) -> None:
    """Print the rows of some work."""
    processors = len(os.sched_getaffinity(0))
    process = place.worker(python, work)
    numbers = [CHOSEN] if work[0] == "predictions" else [*numbers_of(processors), CHOSEN]
    for threads in numbers:
        found = turns(place, lambda n=threads: {"": process.ask(n)["mean"]}, rounds)
        owed = fair(threads or processors, processors)
        print(row(name, f"{threads}" if threads else "chosen", found[""], owed), flush=True)
    process.close()


def numbers_of(processors: int) -> list[int]:
    return [1, processors] if processors > 1 else [1]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.neighbour", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="what has this in its name")
    parser.add_argument("--python", default=sys.executable, help="of another state of ours")
    options = parser.parse_args()
    print("| ms | threads | alone |" + "".join(f" {n}s | slower |" for n in NEIGHBOURS))
    print("|---|---|---|" + "---|---|" * len(NEIGHBOURS))
    with workplace() as place:
        if not options.only:
            memory = place.limit(["memory"])
            for threads in numbers_of(len(os.sched_getaffinity(0))):
                rates = turns(place, lambda n=threads: memory.ask(n), options.rounds)
                for name, gigabytes in rates.items():
                    per_gigabyte = {n: [1e3 / rate for rate in r] for n, r in gigabytes.items()}
                    print(row(f"{name}, 1 GB", f"{threads}", per_gigabyte, None), flush=True)
            memory.close()
        for name, work in WORK.items():
            if options.only in name:
                measure(place, options.python, name, work, options.rounds)


if __name__ == "__main__":
    main()
