"""Measures the library, and beside it another Python with the same API.

``make bench PEER=/path/to/python`` runs every scenario under our Python and the peer's in turn,
several rounds, and writes the medians and their ratios to ``benchmarks/results``. Every number in
a row comes from one run on one machine: trust the ratios. Maps of ids are measured too, and alone
by ``python -m benchmarks.collision``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import collision
from benchmarks.worker import FORWARD, SCENARIOS, SPARSE, TRAINING

HERE = Path(__file__).parent
WORKER = HERE / "worker.py"

# The ratio that is wanted of each: peer / ours, all cores.
TARGETS = {
    "forward, B=1": 4,
    "forward, B=64": 4,
    "forward, B=4096": 3,
    "forward, B=2048, 20 ids a bag": 1.3,
    "forward, 8 x 1M x 128, 50 ids a bag": 1.3,
    "training step, B=2048, 1 id a bag": 2.5,
    "training step, B=2048, 20 ids a bag": 2,
    "split": 2,
    "to_dict": 2,
    "permute": 1.2,
    "concat": 1.2,
    "[]": 1.2,
    "KeyedTensor.regroup": 1.5,
    "import torchrec": 15,
}
LARGE = [
    name
    for name in [*FORWARD, *TRAINING]
    if "B=1" not in name.split(", ")[1:2] and "B=64" not in name
]
Samples = dict[str, dict[str, list[float]]]


def run(python: str, scenario: str, threads: int) -> dict[str, float]:
    """Return the median time of each variant of a scenario under a Python, in milliseconds."""
    finished = subprocess.run(
        [python, str(WORKER), scenario, str(threads)],
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode != 0:
        raise SystemExit(f"{scenario!r} failed under {python}:\n{finished.stderr}")
    times = json.loads(finished.stdout.splitlines()[-1])
    return {name: statistics.median(samples) for name, samples in times.items()}


def import_times(python: str) -> dict[str, float]:
    """Return what ``import torchrec`` costs beyond ``import torch``, in milliseconds."""
    code = (
        "import time; import torch; s = time.perf_counter(); import torchrec; "
        "print((time.perf_counter() - s) * 1e3)"
    )
    with tempfile.TemporaryDirectory() as elsewhere:  # not here, where our package lies
        out = subprocess.run(
            [python, "-W", "ignore", "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=elsewhere,
        )
    return {"import torchrec": float(out.stdout.splitlines()[-1])}


def measure(pythons: dict[str, str], scenario: str, rounds: int, threads: int) -> Samples:
    """Run a scenario in turn under each Python; return side -> variant -> a median a round."""
    samples: Samples = {side: {} for side in pythons}
    for number in range(rounds):
        sides = list(pythons) if number % 2 == 0 else list(pythons)[::-1]
        for side in sides:
            python = pythons[side]
            found = import_times(python) if scenario == "import" else run(python, scenario, threads)
            for variant, value in found.items():
                samples[side].setdefault(variant, []).append(value)
        print(f"  {scenario}: round {number + 1} of {rounds}", file=sys.stderr)
    return samples


def ratio_row(label: str, ours: list[float], peer: list[float] | None) -> str:
    """Return a row of the table; the ratio is the median of the ratios of the rounds."""
    mine = f"{statistics.median(ours):.4g}"
    if peer is None:
        return f"| {label} | {mine} | | | |"
    ratio = statistics.median(p / o for p, o in zip(peer, ours, strict=True))
    target = TARGETS.get(label.split(" (")[0])
    met = "" if target is None else f"{target:g} {'✓' if ratio >= target else '✗'}"
    return f"| {label} | {mine} | {statistics.median(peer):.4g} | {ratio:.2f} | {met} |"


def rows_of(scenario: str, samples: Samples) -> list[str]:
    """Return the rows of a scenario. Training compares our collection with each way of the peer."""
    ours, peer = samples["ours"], samples.get("peer")
    if scenario in FORWARD or scenario == "import":
        name = next(iter(ours))
        label = scenario if scenario in FORWARD else name
        return [ratio_row(label, ours[name], peer[name] if peer else None)]
    if scenario == SPARSE:
        return [ratio_row(n, ours[n], peer[n] if peer else None) for n in ours]
    mine = ours["EmbeddingBagCollection"]
    if not peer:
        return [ratio_row(scenario, mine, None)]
    return [ratio_row(f"{scenario} (peer: {way})", mine, times) for way, times in peer.items()]


def scaling_rows(python: str, rounds: int, threads: int) -> list[str]:
    """Return how much faster all threads are than one, on the large scenarios."""
    rows = []
    for scenario in LARGE:
        one, all_ = [], []
        for _ in range(rounds):
            one.append(run(python, scenario, 1)["EmbeddingBagCollection"])
            all_.append(run(python, scenario, threads)["EmbeddingBagCollection"])
        gain = statistics.median(a / b for a, b in zip(one, all_, strict=True))
        rows.append(
            f"| {scenario} | {statistics.median(one):.4g} | {statistics.median(all_):.4g} | {gain:.2f} |"
        )
    return rows


def bandwidth_rows(python: str, rounds: int, threads: int) -> list[str]:
    """Return the bytes a second of look-ups, of a plain loop over the same rows, and of memcpy."""
    compiler = os.environ.get("CXX", "c++")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "gather")
        command = [compiler, "-O3", "-march=native", "-fopenmp", "-std=c++17"]
        subprocess.run([*command, str(HERE / "gather.cpp"), "-o", program], check=True)
        for scenario, (tables, size, dim, batch, length, _) in FORWARD.items():
            if scenario not in LARGE:
                continue
            mine, plain, copy = [], [], []
            for _ in range(rounds):
                moved = tables * batch * (length + 1) * dim * 4
                mine.append(moved / run(python, scenario, threads)["EmbeddingBagCollection"] / 1e6)
                arguments = [str(n) for n in (tables, size, dim, batch, length, threads)]
                out = subprocess.run(
                    [program, *arguments], capture_output=True, text=True, check=True
                )
                found = [float(x) / 1e9 for x in out.stdout.split()]
                plain.append(found[0])
                copy.append(found[1])
            numbers = [statistics.median(x) for x in (mine, plain, copy)]
            share = statistics.median(m / p for m, p in zip(mine, plain, strict=True))
            rows.append(
                f"| {scenario} | " + " | ".join(f"{n:.3g}" for n in numbers) + f" | {share:.0%} |"
            )
    return rows


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), "")


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--peer", help="Python of an environment with another torchrec")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each scenario, in turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", help="scenarios whose name contains this")
    parser.add_argument("--output", type=Path, help="file to write; default benchmarks/results")
    arguments = parser.parse_args()
    pythons = {"ours": sys.executable}
    if arguments.peer:
        pythons["peer"] = arguments.peer
    wanted = [s for s in [*SCENARIOS, "import"] if not arguments.only or arguments.only in s]
    rounds, threads = arguments.rounds, arguments.threads
    lines = ["| ms | ours | peer | peer / ours | wanted |", "|---|---|---|---|---|"]
    for scenario in wanted:
        lines += rows_of(scenario, measure(pythons, scenario, rounds, threads))
    if not arguments.only:
        lines += ["", "| ms | 1 thread | all | gain |", "|---|---|---|---|"]
        lines += scaling_rows(sys.executable, rounds, threads)
        lines += ["", "| GB/s | look-up | plain loop | memcpy | share |", "|---|---|---|---|---|"]
        lines += bandwidth_rows(sys.executable, rounds, threads)
        lines += ["", *collision.table(arguments.peer, rounds, threads)]
    today = datetime.date.today().isoformat()
    head = [
        f"# {today}",
        "",
        f"{processor()}, {threads} threads, Python {platform.python_version()}, ",
    ]
    head[-1] += f"medians of {rounds} rounds, both sides in turn."
    text = "\n".join([*head, "", *lines]) + "\n"
    path = arguments.output or HERE / "results" / f"{today}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(text)
    print(f"Written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
