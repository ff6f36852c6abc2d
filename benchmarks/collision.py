"""Managed collision: a step of an id map with LFU eviction, beside another torchrec.

``python -m benchmarks.collision --peer /path/to/python`` runs itself under both Pythons in turn and prints a table of
milliseconds per step, evictions included. The stream is skewed and drifts: ranks are log-uniform, and which ids are the
popular ones moves on a little with every step, so that there is always something to evict. On a machine that others use
too, ``--cpu`` measures the processor's time on one thread, which they disturb less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

INTERVAL = 5
# name: (rows, ids a batch, evictions that are measured)
SCENARIOS = {
    "100,000 rows, 20,000 ids": (100_000, 20_000, 40),
    "10,000,000 rows, 1,000,000 ids": (10_000_000, 1_000_000, 5),
}
# The ratio that is wanted of each: peer / ours.
TARGETS = {"100,000 rows, 20,000 ids": 3, "10,000,000 rows, 1,000,000 ids": 5}
DRIFT = 0.002  # of the rows, by which the ranks move on in a step


class Stream:
    """Batches of ids, the same for everyone."""

    def __init__(self, rows: int, batch: int) -> None:
        self.rows, self.batch = rows, batch
        self.generator = torch.Generator().manual_seed(0)
        self.step = 0

    def filling(self) -> torch.Tensor:
        """Return ids of which none came before."""
        self.step += 1
        return self.scrambled(10**12 + self.step * self.batch + torch.arange(self.batch))

    def next(self) -> torch.Tensor:
        self.step += 1
        uniform = torch.rand(self.batch, generator=self.generator, dtype=torch.float64)
        ranks = ((4 * self.rows) ** uniform).long()
        return self.scrambled(ranks + int(self.step * self.rows * DRIFT))

    def scrambled(self, ranks: torch.Tensor) -> torch.Tensor:
        return (ranks * 2654435761) % 2**61


def operators(rows: int) -> Callable[[torch.Tensor], object]:
    """Return a step of the operators alone, as the module calls them."""
    from torchrec.ops import collision

    id_map, history = collision.new_id_map(rows - 1), collision.new_history(1)
    counts = torch.zeros(rows - 1, dtype=torch.int64)
    totals = torch.zeros(3, dtype=torch.int64)
    now = 0

    def step(ids: torch.Tensor) -> torch.Tensor:
        nonlocal history, now
        now += 1
        history = collision.reserve(history, ids.numel())
        found = collision.count_ids(
            id_map, history, ids, now, totals, counts=counts, missing=rows - 1
        )
        if now % INTERVAL:
            return found
        size = int(history.size)
        done = collision.replace_ids(id_map, counts, history.ids[:size], history.counts[:size])
        counts[done.rows] = history.counts[done.chosen]
        collision.clear_history(history)
        return collision.find_ids(id_map, ids, rows - 1)

    return step


def module(rows: int) -> Callable[[torch.Tensor], object]:
    """Return a training step of ``MCHManagedCollisionModule``."""
    from torchrec.modules.mc_modules import LFU_EvictionPolicy, MCHManagedCollisionModule
    from torchrec.sparse.jagged_tensor import JaggedTensor

    collisions = MCHManagedCollisionModule(
        zch_size=rows,
        device=torch.device("cpu"),
        eviction_policy=LFU_EvictionPolicy(),
        eviction_interval=INTERVAL,
        input_hash_size=2**62,
    )
    collisions.train()

    def step(ids: torch.Tensor) -> object:
        features = {"f": JaggedTensor(ids, lengths=torch.tensor([ids.numel()]))}
        result = collisions(features)
        collisions.evict()
        return result

    return step


VARIANTS = {"operators": operators, "module": module}


def measure(variant: str, scenario: str, threads: int) -> list[float]:
    """Return the mean time of a step, in milliseconds, of each interval from one eviction to the next.

    With no threads given (0): of the processor, on one.
    """
    torch.set_num_threads(threads or 1)
    clock = time.perf_counter if threads else time.process_time
    rows, batch, evictions = SCENARIOS[scenario]
    stream, step = Stream(rows, batch), VARIANTS[variant](rows)
    for _ in range(-(-rows // (batch * INTERVAL)) * INTERVAL):
        step(stream.filling())
    for _ in range(2 * INTERVAL):
        step(stream.next())
    times = []
    for _ in range(evictions):
        spent = 0.0
        for _ in range(INTERVAL):
            ids = stream.next()
            start = clock()
            step(ids)
            spent += clock() - start
        times.append(spent * 1e3 / INTERVAL)
    return times


def run(python: str, variant: str, scenario: str, threads: int) -> float:
    """Measure in a process of its own, and return the median."""
    command = [python, "-W", "ignore", str(Path(__file__)), "--worker", variant, scenario]
    environment = dict(os.environ)
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [*command, "--threads", str(threads)], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return statistics.median(json.loads(done.stdout.splitlines()[-1]))


def table(peer: str | None, rounds: int, threads: int, only: str = "") -> list[str]:
    """Measure each side in turn, and return a table of the medians; threads as in `measure`."""
    sides = {"operators": (sys.executable, "operators"), "module": (sys.executable, "module")}
    if peer:
        sides["peer"] = (peer, "module")
    rows = [
        "| ms a step | " + " | ".join([*sides, "peer / ours", "wanted"]) + " |",
        "|" + "---|" * (len(sides) + 3),
    ]
    for scenario, wanted in TARGETS.items():
        if only not in scenario:
            continue
        found: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(rounds):
            for side, (python, variant) in sides.items():
                found[side].append(run(python, variant, scenario, threads))
        cells = [f"{statistics.median(times):.3g}" for times in found.values()]
        if "peer" in found:
            ratio = statistics.median(
                theirs / ours for theirs, ours in zip(found["peer"], found["module"], strict=True)
            )
            cells += [f"{ratio:.2f}", f"{wanted:g} {'✓' if ratio >= wanted else '✗'}"]
        else:
            cells += ["", ""]
        rows.append(f"| {scenario} | " + " | ".join(cells) + " |")
    return rows


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.collision", description=__doc__)
    parser.add_argument("--peer", help="Python of an environment with another torchrec")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side, in turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--cpu",
        dest="threads",
        action="store_const",
        const=0,
        help="measure the processor's time, on one thread",
    )
    parser.add_argument("--only", default="", help="scenarios whose name contains this")
    parser.add_argument("--worker", nargs=2, metavar=("VARIANT", "SCENARIO"))
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(*arguments.worker, arguments.threads)))
        return
    rows = table(arguments.peer, arguments.rounds, arguments.threads, arguments.only)
    print("\n".join(rows))


if __name__ == "__main__":
    main()
