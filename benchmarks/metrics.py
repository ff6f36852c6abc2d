"""Measures metrics beside another Python with the same API: ten of them, five tasks, batches of 4096, one thread.

``python -m benchmarks.metrics --peer /path/to/python`` times an update and a full ``local_compute`` in each mode. Both
sides take turns, round after round, in processes of their own; ratios are medians over rounds.
Wanted is 5 times the peer's speed. The window is of 100 batches and full, so that the AUC is one of 409,600 samples.
``--step`` tells instead which share of a training step of DLRM (26 tables of 100,000 x 64, batches of 4096, one thread)
such an update takes: wanted is 1 %.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TASKS, BATCH, BATCHES = 5, 4096, 100
METRICS = [
    "ne", "ctr", "calibration", "mse", "mae", "accuracy", "precision", "recall", "weighted_avg", "auc",
]  # fmt: skip
MODES = [
    "FUSED_TASKS_COMPUTATION",
    "UNFUSED_TASKS_COMPUTATION",
    "FUSED_TASKS_AND_STATES_COMPUTATION",
]
WANTED = 5.0


def measure() -> dict[str, dict[str, float]]:
    """Return milliseconds of an update and of a computation, by mode."""
    import torch

    torch.set_num_threads(1)
    return {mode: _measure_mode(mode) for mode in MODES}


def _measure_mode(mode: str) -> dict[str, float]:
    import torch

    module = _module(mode)
    draw = torch.Generator().manual_seed(0)
    out = {}
    for i in range(TASKS):
        out[f"l{i}"] = torch.rand(BATCH, generator=draw).round()
        out[f"p{i}"] = torch.rand(BATCH, generator=draw)
        out[f"w{i}"] = torch.rand(BATCH, generator=draw)
    updates = []
    for _ in range(BATCHES):
        # Other predictions each time: a window of copies of one batch would be one of ties.
        for i in range(TASKS):
            out[f"p{i}"] = torch.rand(BATCH, generator=draw)
        updates.append(_milliseconds(lambda: module.update(out)))
    computes = [_milliseconds(module.local_compute) for _ in range(5)]
    return {
        "update": statistics.median(updates[10:]),
        "local_compute": statistics.median(computes),
    }


def step_share() -> tuple[float, float]:
    """Return milliseconds of a training step of DLRM and of an update, each the median of several by turns."""
    import torch

    from benchmarks.models import batches, make_model, optimizer_in_backward, training_step

    torch.set_num_threads(1)
    train = training_step(make_model("dlrm", optimizer_in_backward()))
    module, data = _module(MODES[0]), batches(BATCH)
    out = {f"{kind}{i}": torch.rand(BATCH).round() for i in range(TASKS) for kind in "lw"}
    steps, updates = [], []
    for turn in range(30):
        out.update((f"p{i}", torch.rand(BATCH)) for i in range(TASKS))
        steps.append(_milliseconds(lambda turn=turn: train(data[turn % len(data)])))
        updates.append(_milliseconds(lambda: module.update(out)))
    return statistics.median(steps[5:]), statistics.median(updates[5:])


def _milliseconds(work: Any) -> float:
    begin = time.perf_counter()
    work()
    return (time.perf_counter() - begin) * 1e3


def _module(mode: str) -> Any:
    import torch

    from torchrec.metrics.metric_module import RecMetricModule, generate_metric_module
    from torchrec.metrics.metrics_config import (
        MetricsConfig,
        RecComputeMode,
        RecMetricDef,
        RecMetricEnum,
        RecTaskInfo,
        ThroughputDef,
    )

    tasks = [
        RecTaskInfo(name=f"t{i}", label_name=f"l{i}", prediction_name=f"p{i}", weight_name=f"w{i}")
        for i in range(TASKS)
    ]
    definition = RecMetricDef(rec_tasks=tasks, window_size=BATCHES * BATCH)
    return generate_metric_module(
        RecMetricModule,
        MetricsConfig(
            rec_tasks=tasks,
            rec_metrics={RecMetricEnum(name): definition for name in METRICS},
            rec_compute_mode=RecComputeMode[mode],
            throughput_metric=ThroughputDef(),
        ),
        batch_size=BATCH,
        world_size=1,
        my_rank=0,
        state_metrics_mapping={},
        device=torch.device("cpu"),
    )


def _in_process(python: str) -> dict[str, dict[str, float]]:
    command = [python, "-W", "ignore", str(Path(__file__).resolve()), "--worker"]
    # From a folder without a package of the same name, so that each side imports its own.
    root = str(Path(__file__).resolve().parents[1])
    environment = {name: x for name, x in os.environ.items() if name != "PYTHONPATH"}
    if python == sys.executable:
        environment["PYTHONPATH"] = root
    found = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd="/", env=environment
    )
    if found.returncode:
        raise SystemExit(f"{python} failed:\n{found.stderr}")
    answer: dict[str, dict[str, float]] = json.loads(found.stdout.splitlines()[-1])
    return answer


def main() -> None:
    """Print a table of both sides."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="another Python with the same API")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--step", action="store_true", help="the share of a training step")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure()))
        return
    if options.step:
        step, update = step_share()
        print(f"update {update:.3f} ms of a step of {step:.1f} ms: {update / step:.2%}, wanted 1 %")
        return
    ours, theirs = [], []
    for _ in range(options.rounds):
        ours.append(_in_process(sys.executable))
        if options.peer:
            theirs.append(_in_process(options.peer))
    print("| mode | what | peer, ms | ours, ms | peer / ours | wanted |")
    print("|---|---|---|---|---|---|")
    for mode in MODES:
        for what in ("update", "local_compute"):
            own = [round_[mode][what] for round_ in ours]
            other = [round_[mode][what] for round_ in theirs]
            row = [mode, what, "", f"{statistics.median(own):.3f}", "", f"{WANTED}"]
            if other:
                ratio = statistics.median(b / a for a, b in zip(own, other, strict=True))
                row[2], row[4] = f"{statistics.median(other):.3f}", f"{ratio:.1f}"
            print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
