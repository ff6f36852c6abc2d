"""Kill ranks of a run under torchrun with ``kill -9`` at random moments, and compare what it ends with.

    python -m tests.training.killing_ranks FOLDER TRIALS SEED [TORCHRUN_OPTIONS...]

Each trial kills one of two ranks once or twice, at random moments from the first reading to the end; torchrun starts
them again. Prints a line of JSON: how many kills met a run, and what differed from a run that was left alone.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import load_file

from tests.training.killing import write_clicks

ROOT = Path(__file__).parents[2]
EXPERIMENT = """
data: {train: clicks.parquet, label: click, shuffle_window: 700}
model: {name: deepfm, dim: 4, layers: [16], dense_layers: [8], dropout: 0.1}
training:
  {epochs: 3, batch_size: 64, checkpoint_every: 7, evaluate_every: 10, log_every: 5, accumulate: 2, seed: 5,
   early_stopping: {metric: logloss, patience: 3}, schedule: {warmup_steps: 5, decay: cosine}, baselines: false}
distributed: {timeout: 30}
"""
STANDALONE = ("--standalone", "--nproc-per-node", "2")


def start(
    data: Path, run: Path, options: tuple[str, ...] = STANDALONE, *overrides: str
) -> subprocess.Popen[bytes]:
    """Start torchrun with a run of two ranks."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", *options]
    command = [*torchrun, "--max-restarts", "9", "-m", "torchrec", "train", "experiment.yaml"]
    with open(f"{run}.log", "ab") as log:
        return subprocess.Popen(
            [*command, "-o", str(run), *overrides],
            cwd=data,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )


def ranks_of(agent: int) -> dict[int, int]:
    """Return the processes that a torchrun has started, by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (path / "environ").read_bytes().split(b"\0") if parent == agent else []
        except (OSError, IndexError):
            continue  # it has ended
        found |= {int(v[5:]): int(path.name) for v in environment if v.startswith(b"RANK=")}
    return found


def kill_one(agent: int, rank: int) -> bool:
    """Kill a rank, and return whether it was there."""
    process = ranks_of(agent).get(rank)
    if process is None:
        return False
    os.kill(process, signal.SIGKILL)
    return True


def differing(run: Path, expected: Path) -> list[str]:
    """Return what a run ended with that another did not."""
    weights = [load_file(each / "model" / "weights.safetensors") for each in (run, expected)]
    found = [name for name, value in weights[1].items() if not value.equal(weights[0][name])]
    results = [json.loads((each / "result.json").read_text()) for each in (run, expected)]
    names = ("valid", "test", "steps", "samples", "best_step")
    return found + [name for name in names if results[0][name] != results[1][name]]


def main(folder: Path, trials: int, seed: int, options: tuple[str, ...] = STANDALONE) -> None:
    """Run all trials and print what came of them."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    write_clicks(folder / "clicks.parquet")
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    whole, began = folder / "whole", time.monotonic()
    assert start(folder, whole, options).wait() == 0
    duration = time.monotonic() - began
    met, different = 0, list[str]()
    for trial in range(trials):
        run = folder / f"trial-{trial}"
        process = start(folder, run, options)
        for _ in range(draw.choice([1, 1, 2])):
            time.sleep(draw.uniform(0.3, 1.0) * duration)
            met += process.poll() is None and kill_one(process.pid, draw.randrange(2))
        if process.wait() != 0:
            different.append(f"trial {trial}: exit code {process.returncode}")
            continue
        different += [f"trial {trial}: {what}" for what in differing(run, whole)]
        shutil.rmtree(run)
        print(f"trial {trial}: {met} kills so far, {len(different)} differences", file=sys.stderr)
    print(json.dumps({"met": met, "different": different}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), tuple(sys.argv[4:]) or STANDALONE)
