"""Measures what a busy neighbour costs: another process that spins on a processor, or streams memory.

``python -m benchmarks.neighbour`` runs look-up, training steps, a DLRM step and predictions alone and beside such a
neighbour: on one thread; on all, as a program does, and as the command ``torchrec`` does, whose threads wait awake for
a moment only (``GOMP_SPINCOUNT``); and there on the number that the trainer chooses. Predictions choose their own. It
prints mean times, and how many times as slow each is as alone; in brackets the fair share: with ``n`` threads and a
neighbour on ``c`` processors, the scheduler owes us ``n / (n + 1)`` of them, and of the memory that a neighbour streams
through, what ``memcpy`` gets (the first rows). Wanted: at most twice that.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable

from benchmarks.processes import Workplace, workplace
from benchmarks.scenarios import SCENARIOS
from torchrec.threads import usable_processors

OF_MEMORY = ("look-up, B=4096", "training step, B=2048, 1 id")
WORK: dict[str, list[object]] = {
    scenario.name: scenario.work
    for scenario in SCENARIOS
    if scenario.name in (*OF_MEMORY, "DLRM, training step, B=2048")
} | {
    "100 predictions": ["predictions", 100],
    "8,192 predictions": ["predictions", 8192],
}
NEIGHBOURS = ("spin", "stream")
WANTED = 2.0
CHOSEN = 0  # what a worker takes for the number of threads that the trainer chooses
COMMAND = {"GOMP_SPINCOUNT": "4000"}

Times = dict[str, list[float]]  # neighbour, or "" alone -> a mean in each round


def fair(threads: int, processors: int) -> float:
    """Return how many times as slow as alone the scheduler makes us, if it is fair to each thread."""
    alone = min(threads, processors)
    return alone / min(alone, processors * threads / (threads + 1))


def turns(place: Workplace, rounds: int, ask: Callable[[], float]) -> Times:
    """Ask alone and beside each neighbour, round after round."""
    found: Times = {}
    for _ in range(rounds):
        for neighbour in ("", *NEIGHBOURS):
            process = place.limit([neighbour]) if neighbour else None
            found.setdefault(neighbour, []).append(ask())
            if process:
                process.end()
    return found


def slowdown(times: Times, neighbour: str) -> float:
    return statistics.median(b / a for a, b in zip(times[""], times[neighbour], strict=True))


def row(name: str, threads: str, times: Times, owed: dict[str, float]) -> str:
    """Return a row of the table."""
    cells = [name, threads, f"{statistics.median(times['']):.3g}"]
    for neighbour in NEIGHBOURS:
        slower = slowdown(times, neighbour)
        text = f"{statistics.median(times[neighbour]):.3g} | {slower:.2f}"
        if neighbour in owed:
            met = slower <= WANTED * owed[neighbour]
            text += f" ({owed[neighbour]:.2g}) {'✓' if met else '✗'}"
        cells.append(text)
    return "| " + " | ".join(cells) + " |"


def of_memory(place: Workplace, threads: int, rounds: int) -> dict[str, float]:
    """Print how long ``memcpy`` takes for 1 GB, and return how many times as slow it becomes."""
    memory = place.limit(["memory"], COMMAND)
    times = turns(place, rounds, lambda: 1e3 / memory.ask(threads)["copy"])
    memory.close()
    print(row("memcpy, 1 GB", f"{threads}", times, {}), flush=True)
    return {neighbour: slowdown(times, neighbour) for neighbour in NEIGHBOURS}


def measure(
    place: Workplace, python: str, name: str, rounds: int, copies: dict[int, dict[str, float]]
) -> None:
    """Print the rows of some work."""
    most = max(copies)
    program = place.worker(python, WORK[name])
    command = place.worker(python, WORK[name], COMMAND)
    ways = [("chosen", program, CHOSEN)]
    if WORK[name][0] != "predictions":
        ways = [(f"{threads}", program, threads) for threads in copies]
        ways += [(f"{most}, command", command, most), ("chosen, command", command, CHOSEN)]
    for label, process, threads in ways:
        times = turns(place, rounds, lambda p=process, n=threads: p.ask(n)["mean"])
        owed = dict.fromkeys(NEIGHBOURS, fair(threads or most, most))
        if name in OF_MEMORY:
            owed["stream"] = max(owed["stream"], copies[threads or most]["stream"])
        print(row(name, label, times, owed), flush=True)
    for process in (program, command):
        process.close()


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
        copies = {
            threads: of_memory(place, threads, options.rounds)
            for threads in sorted({1, usable_processors()})
        }
        for name in WORK:
            if options.only in name:
                measure(place, options.python, name, options.rounds, copies)


if __name__ == "__main__":
    main()
