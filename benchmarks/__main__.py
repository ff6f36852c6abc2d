"""Measures the library beside the limit that the machine sets, and beside another Python with the same API.

``make bench PEER=/path/to/python`` gives every scenario its turn under our Python, the peer's and as a plain loop,
round after round, all in processes that are built already, and writes medians, and medians of the ratios within a
round, to ``benchmarks/results``. Times move with the machine and its load; ratios of one round do so less.
``python -m benchmarks --quick --only "look-up, B=4096"`` answers in half a minute.

The limits are measured in the same rounds on as many threads (``limits.cpp``, compiled there and then):

- Look-ups and training steps: the bytes that have to move. These are the rows that the batch reads, each once, the
  ids, and the pooled vectors written; in training also their gradients, the rows once more, written as well, and the
  state in whole cache lines. What is written goes, with as much of what is read, at the rate of ``memcpy``, the rest at
  that of plain reads, of 256 MB each. No loop is faster, unless the last cache holds a part of the tables.
- The look-up with 20 ids a bag: ``loop``, as it reads rows again that the cache may hold. The loop is C++ that knows
  the dimension while it is compiled, checks nothing and fetches rows ahead. It is shown for the others too: what a loop
  gets of the limit. In training it finds its ids sorted.
- Models: their FP32 matrix products alone, forward and, in training, both backward products of each layer, each in the
  fastest way that PyTorch has for its shape. A step has to do them all, whatever else it does. "Memory kept": on all
  sides the system keeps the memory that a step frees for the next, as our trainer has it.
- Managed collision: ids asked from an open-addressed table of 16-byte slots that is at most half full, fetched ahead,
  each counted, nothing evicted, on one thread.

Calls of the sparse types and of small batches have no limit but those of Python's calls.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.processes import HERE, Process, Workplace, workplace
from benchmarks.scenarios import SCENARIOS, Scenario
from torchrec.threads import usable_processors

Round = dict[str, dict[str, float]]  # side -> what it answered
HEAD = "peer|ours|peer / ours|wanted|limit|limit / ours|wanted|loop|processor|faults"
IMPORT = "import torchrec"
IMPORT_RATIO = 15
FAULTS = 50  # minor page faults a step that are wanted at most


def sides_of(
    scenario: Scenario, place: Workplace, others: dict[str, str]
) -> Iterator[tuple[str, Process]]:
    """Start, one after another, what has its turns in this scenario."""
    for side, python in {"ours": sys.executable, **others}.items():
        yield side, place.worker(python, scenario.work, scenario.environment)
    if scenario.products:
        yield "products", place.worker(sys.executable, scenario.products, scenario.environment)
    if scenario.loop:
        yield "loop", place.limit(scenario.loop)
    if scenario.moved:
        yield "memory", place.limit(["memory"])


def measure(
    scenario: Scenario, place: Workplace, others: dict[str, str], rounds: int, threads: int
) -> list[Round]:
    """Give each side its turn in each round, in this order and in the reverse."""
    sides = dict(sides_of(scenario, place, others))
    answers: list[Round] = []
    for number in range(rounds):
        order = list(sides.items())[:: 1 if number % 2 == 0 else -1]
        answers.append({side: process.ask(threads) for side, process in order})
        if scenario.scaling and threads > 1:
            for side in ("ours", "memory"):
                if side in sides:
                    answers[-1][f"{side}, 1"] = sides[side].ask(1)
    for process in sides.values():
        process.close()
    return answers


def limit_of(scenario: Scenario, found: Round) -> float | None:
    """Return the time of the limit in a round, in milliseconds."""
    if scenario.moved:
        read, written = scenario.moved
        rates = found["memory"]
        return (2 * written / rates["copy"] + (read - written) / rates["read"]) / 1e6
    side = "products" if scenario.products else "loop"
    return found[side]["wall"] if side in found else None


def median(values: list[float]) -> str:
    return f"{statistics.median(values):.3g}" if values else ""


def against(ratios: list[float], wanted: float | None, form: str) -> list[str]:
    """Return the median of the ratios and what is wanted, and whether it is so."""
    if not ratios:
        return ["", "" if wanted is None else form.format(wanted)]
    ratio = statistics.median(ratios)
    met = "" if wanted is None else f"{form.format(wanted)} {'✓' if ratio >= wanted else '✗'}"
    return [form.format(ratio), met]


def row_of(scenario: Scenario, rounds: list[Round], others: list[str]) -> str:
    """Return the row of a scenario."""
    walls = {
        side: [found[side]["wall"] for found in rounds]
        for side in ("ours", "loop", *others)
        if side in rounds[0]
    }
    limits = [limit for found in rounds if (limit := limit_of(scenario, found)) is not None]
    shares = [limit / ours for limit, ours in zip(limits, walls["ours"], strict=False)]
    ratios = {
        side: [o / m for o, m in zip(walls[side], walls["ours"], strict=True)] for side in others
    }
    faults = statistics.median(found["ours"]["faults"] for found in rounds)
    cells = [
        scenario.name,
        median(walls.get("peer", [])),
        median(walls["ours"]),
        *against(ratios.get("peer", []), scenario.ratio, "{:.3g}"),
        median(limits),
        *against(shares, scenario.share, "{:.0%}"),
        median(walls.get("loop", [])),
        median([found["ours"]["processor"] for found in rounds]),
        f"{faults:.0f}" + (" ✗" if faults > FAULTS else ""),
    ]
    if "before" in walls:
        cells += [median(walls["before"]), median(ratios["before"])]
    return "| " + " | ".join(cells) + " |"


def scaling_rows(measured: list[tuple[Scenario, list[Round]]]) -> Iterator[str]:
    """Return how much faster all threads are than one: memory first, then what uses it."""
    one_and_all = [r for _, rounds in measured for r in rounds if "memory, 1" in r]
    for rate, name in (("copy", "memcpy, GB/s"), ("read", "reads, GB/s")):
        if one_and_all:
            one = [found["memory, 1"][rate] for found in one_and_all]
            several = [found["memory"][rate] for found in one_and_all]
            gain = [b / a for a, b in zip(one, several, strict=True)]
            yield f"| {name} | {median(one)} | {median(several)} | {median(gain)} |"
    for scenario, rounds in measured:
        if "ours, 1" in rounds[0]:
            one = [found["ours, 1"]["wall"] for found in rounds]
            several = [found["ours"]["wall"] for found in rounds]
            gain = [a / b for a, b in zip(one, several, strict=True)]
            yield f"| {scenario.name} | {median(one)} | {median(several)} | {median(gain)} |"


def import_row(others: dict[str, str], rounds: int, width: int) -> str:
    """Return the row of what ``import torchrec`` costs beyond ``import torch``.

    Compiled files are kept from a first import that does not count, and what PyTorch has left for the collector of
    garbage is collected before: 90 ms, which otherwise fall to whoever allocates next, or do not.
    """
    code = (
        "import gc, time; import torch; gc.collect(); s = time.perf_counter(); import torchrec; "
        "print((time.perf_counter() - s) * 1e3)"
    )
    times: dict[str, list[float]] = {}
    inherited = {n: v for n, v in os.environ.items() if n != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as elsewhere:  # not here, where our package lies
        environment = inherited | {"PYTHONPYCACHEPREFIX": f"{elsewhere}/compiled"}
        for number in range(rounds + 1):
            for side, python in {"ours": sys.executable, **others}.items():
                out = subprocess.run(
                    [python, "-W", "ignore", "-c", code],
                    capture_output=True,
                    text=True,
                    check=True,
                    cwd=elsewhere,
                    env=environment,
                )
                if number:
                    times.setdefault(side, []).append(float(out.stdout.splitlines()[-1]))
    ratios = [p / o for p, o in zip(times.get("peer", []), times["ours"], strict=False)]
    cells = [IMPORT, median(times.get("peer", [])), median(times["ours"])]
    cells += against(ratios, IMPORT_RATIO, "{:.3g}")
    return "| " + " | ".join([*cells, *[""] * (width - len(cells))]) + " |"


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), "")


def report(
    wanted: list[Scenario], others: dict[str, str], rounds: int, threads: int, imports: bool
) -> Iterator[str]:
    """Measure, and yield the lines of the report as they come to be known."""
    began = time.perf_counter()
    yield f"# {datetime.date.today().isoformat()}\n"
    yield f"{processor()}, {threads} threads, Python {platform.python_version()}, load {load()} before."
    yield f"Milliseconds, medians of {rounds} rounds, all sides in turn. Wanted: at most {FAULTS} faults a step.\n"
    head = ["scenario", *HEAD.split("|")]
    head += ["before", "before / ours"] if "before" in others else []
    yield "| " + " | ".join(head) + " |\n|" + "---|" * len(head)
    measured = []
    with workplace() as place:
        for scenario in wanted:
            measured.append((scenario, measure(scenario, place, others, rounds, threads)))
            yield row_of(*measured[-1], list(others))
    if imports:
        yield import_row(others, rounds, len(head))
    rows = list(scaling_rows(measured))
    if rows:
        yield f"\n| | 1 thread | {threads} threads | gain |\n|---|---|---|---|"
        yield from rows
    passed = (time.perf_counter() - began) / 60
    yield f"\nIt took {passed:.0f} minutes; load {load()} at the end, which is ours but for what was there before."


def load() -> str:
    """Return how many processes wanted to run, in the last minute."""
    return f"{os.getloadavg()[0]:.1f}"


def unused(path: Path) -> Path:
    """Return the path, or with the first number behind it that no file has yet: somebody may have added notes."""
    numbered = (path.with_stem(f"{path.stem}-{i}") for i in itertools.count(2))
    return path if not path.exists() else next(p for p in numbered if not p.exists())


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--peer", help="Python of an environment with another torchrec")
    parser.add_argument("--before", help="Python with another state of ours")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--threads", type=int, default=usable_processors())
    parser.add_argument("--only", action="append", help="scenarios whose name contains this")
    parser.add_argument("--quick", action="store_true", help="three rounds, nothing written")
    parser.add_argument("--output", type=Path, help="file to write; default benchmarks/results")
    options = parser.parse_args()
    others = {
        side: python
        for side, python in (("peer", options.peer), ("before", options.before))
        if python
    }
    parts = options.only or [""]
    wanted = [s for s in SCENARIOS if any(part in s.name for part in parts)]
    imports = any(part in IMPORT for part in parts)
    rounds = 3 if options.quick else options.rounds
    lines = report(wanted, others, rounds, options.threads, imports)
    if options.quick:
        for line in lines:
            print(line, flush=True)
        return
    today = HERE / "results" / f"{datetime.date.today().isoformat()}.md"
    path = options.output or unused(today)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:  # line by line: what was measured stays, whatever comes
        for line in lines:
            print(line, flush=True)
            print(line, file=file, flush=True)
    print(f"Written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
