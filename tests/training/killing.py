"""Kill runs with ``kill -9``, go on with them, and compare what they end with.

    python -m tests.training.killing FOLDER TRIALS SEED

Each trial kills its run up to three times: after a random time, or at a random call of those that
write (files, names, folders), just before or after it. Then the run goes on to its end. Processes
are forked from one that has everything imported, so a trial takes about a second. Prints one line
of JSON: how often each way of killing met a run, and what differed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import safe_open

from torchrec.experiment.files import check_experiment
from torchrec.experiment.schema import Experiment
from torchrec.files import parse_json
from torchrec.training.observers import Observer
from torchrec.training.run import run_experiment

ROWS = 3000
WRITING = (
    (os, "fsync"),
    (os, "rename"),
    (os, "replace"),
    (os, "truncate"),
    (os, "mkdir"),
    (os, "rmdir"),
    (os, "unlink"),
    (safetensors.torch, "save_file"),
)


def write_clicks(path: Path) -> None:
    """Write a small click log with numbers, ids and lists."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = random.Random(0)
    user = [draw.randrange(100) for _ in range(ROWS)]
    price = [draw.gauss(0, 1) for _ in range(ROWS)]
    tags = [[draw.randrange(20) for _ in range(draw.randrange(4))] for _ in range(ROWS)]
    city = [draw.choice(["rome", "oslo", "lima", None]) for _ in range(ROWS)]
    click = [int(draw.gauss(u % 5 - 2 + p, 1) > 0) for u, p in zip(user, price, strict=True)]
    columns = {"user": user, "price": price, "tags": tags, "city": city, "click": click}
    pq.write_table(pa.table(columns), path, row_group_size=500)


def experiment(data: Path) -> Experiment:
    """An experiment with a checkpoint every few steps, dropout, and early stopping."""
    training = {
        "epochs": 3,
        "batch_size": 64,
        "checkpoint_every": 7,
        "evaluate_every": 10,
        "log_every": 5,
        "accumulate": 2,
        "early_stopping": {"metric": "logloss", "patience": 3},
        "schedule": {"warmup_steps": 5, "decay": "cosine"},
        "seed": 5,
        "threads": 1,
    }
    values = {
        "data": {"train": [str(data)], "label": "click", "shuffle_window": 700},
        "model": {"name": "deepfm", "dim": 4, "layers": [16], "dense_layers": [8], "dropout": 0.1},
        "training": training,
        "output": "unused",
    }
    return check_experiment(values, "experiment.yaml")


def die_at(number: int, after: bool) -> None:
    """Kill this process at the so-many-th call that writes."""
    calls = 0

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            mine = calls
            if mine == number and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            if mine == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for module, name in WRITING:
        setattr(module, name, dying(getattr(module, name)))


def run(folder: Path, data: Path, die: tuple[int, bool] | None = None) -> int:
    """Run, or go on with, the experiment in a process of its own; return its number."""
    process = os.fork()
    if process:
        return process
    try:
        if die is not None:
            die_at(*die)
        run_experiment(experiment(data), folder, resume=True, observers=[Observer()])
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def wait(process: int) -> int:
    """Wait for a process, and return its exit code; of a killed one, minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def ending(folder: Path) -> dict[str, object]:
    """Return all that a run ended with, but for times."""
    found: dict[str, object] = {}
    result = parse_json((folder / "result.json").read_text())
    for name in ("seconds", "samples_per_second", "peak_rss_bytes", "threads", "experiment"):
        del result[name]
    found["result"] = result
    lines = [parse_json(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for name in ("seconds", "samples_per_second", "time", "ids"):
            line.pop(name, None)
    found["metrics"] = lines
    found["names"] = sorted(path.name for path in (folder / "checkpoints").iterdir())
    weights = [folder / "model" / "weights.safetensors"]
    last = max((folder / "checkpoints").glob("step-*"))
    for path in [*weights, last / "tensors.safetensors"]:
        with safe_open(path, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                found[f"{path.name} {name}"] = tensors.get_tensor(name).numpy().tobytes()
    report = parse_json((folder / "report.json").read_text())
    found["report"] = report
    return found


def main(folder: Path, trials: int, seed: int) -> None:
    """Run all trials and print what came of them."""
    draw = random.Random(seed)
    data = folder / "clicks.parquet"
    write_clicks_apart(data)
    whole = folder / "whole"
    began = time.monotonic()
    assert wait(run(whole, data)) == 0
    duration = time.monotonic() - began
    expected = ending(whole)
    met: Counter[str] = Counter()
    different: list[str] = []
    for trial in range(trials):
        mine = folder / f"trial-{trial}"
        for _ in range(draw.randrange(1, 4)):
            if draw.random() < 0.5:
                way, process = "at a time", run(mine, data)
                time.sleep(draw.uniform(0.02, duration))
                if os.waitpid(process, os.WNOHANG) != (0, 0):
                    continue
                os.kill(process, signal.SIGKILL)
            else:
                way = "at a call"
                process = run(mine, data, (draw.randrange(1, 250), draw.random() < 0.5))
            code = wait(process)
            met[way] += code == -signal.SIGKILL
            if code > 0:
                different.append(f"trial {trial}: failed when it went on")
        if wait(run(mine, data)) != 0:
            different.append(f"trial {trial}: failed in the end")
            continue
        found = ending(mine)
        different += [f"trial {trial}: {k}" for k in expected if found.get(k) != expected[k]]
        shutil.rmtree(mine)
    print(json.dumps({"met": met, "different": different, "compared": len(expected)}))


def write_clicks_apart(path: Path) -> None:
    """Write the data in a process of its own: this one must have no threads when it forks."""
    process = os.fork()
    if not process:
        write_clicks(path)
        os._exit(0)
    assert wait(process) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
