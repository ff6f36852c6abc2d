"""Write the folder of a run that never was, to be reported on."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

CONFIGURATION = """\
data:
  train: [clicks/train.parquet]
  label: click
model:
  name: dlrm_dcn
  dim: 16
training:
  epochs: 1
  batch_size: 1024
output: runs/fake
"""


def write_fake_run(folder: Path, steps: int = 120, tables: int = 6, seed: int = 0) -> Path:
    """Write metrics, result, tables and configuration as training does."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for n in range(1, steps + 1):
        learned = 1 - math.exp(-n / (steps / 4 + 1))
        lines.append(_line(n, "train", learned + rng.gauss(0, 0.02), rng))
        if n % 20 == 0:
            lines.append(_line(n, "valid", learned * 0.96, rng))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    scores = {
        split: {"auc": auc, "ne": 0.765, "logloss": 0.4313, "calibration": 1.004}
        for split, auc in (("train", 0.8251), ("valid", 0.8142), ("test", 0.8177))
    }
    facts = {"samples_per_second": 61_250.0, "seconds": 97.3, "peak_rss_bytes": 912_000_000}
    (folder / "result.json").write_text(json.dumps({**scores, **facts}))
    (folder / "report.json").write_text(
        json.dumps({"tables": [_table(n, rng) for n in range(tables)], "curves": _curves()})
    )
    (folder / "experiment.yaml").write_text(CONFIGURATION)
    return folder


def _line(n: int, split: str, learned: float, rng: random.Random) -> dict[str, object]:
    line: dict[str, object] = {
        "step": n * 50,
        "epoch": 0,
        "samples": n * 51_200,
        "seconds": n * 0.8,
        "split": split,
        "loss": 0.55 - 0.12 * learned,
        "ne": 0.96 - 0.2 * learned,
        "auc": 0.6 + 0.22 * learned,
        "logloss": 0.55 - 0.12 * learned,
        "calibration": 1.0 + rng.gauss(0, 0.01),
    }
    if split == "train":
        line |= {
            "learning_rate": 0.001 * min(1.0, n / 15) * (1 - n / 400),
            "samples_per_second": 61_000 + rng.gauss(0, 1500),
            "time": {"reading": 0.04, "lookup": 0.27, "dense": 0.46, "optimizer": 0.23},
            "ids": {"item: unknown": 12, "price: missing": 2560},
        }
    return line


def _table(n: int, rng: random.Random) -> dict[str, object]:
    rows = int(10 ** rng.uniform(1, 6))
    return {
        "name": ("user", "item", "tags", "category", "country", "device")[n] if n < 6 else f"t{n}",
        "rows": rows,
        "dim": 16,
        "bytes": rows * 64,
        "ids_seen": int(rows * 0.8),
        "occupancy": 0.8,
        "out_of_range": 0,
        "hashed": rows * 3,
        "norm_mean": 0.71,
        "norm_max": 2.9,
        "dead_rows": rows // 5,
    }


def _curves() -> dict[str, object]:
    middles = [(n + 0.5) / 40 for n in range(40)]
    counts = [40_000 * math.exp(-4 * middle) for middle in middles]
    groups = [0.02, 0.04, 0.06, 0.09, 0.13, 0.17, 0.22, 0.28, 0.36, 0.47, 0.61, 0.83]
    return {
        "histogram_edges": [n / 40 for n in range(41)],
        "positives": [count * middle for count, middle in zip(counts, middles, strict=True)],
        "negatives": [count * (1 - middle) for count, middle in zip(counts, middles, strict=True)],
        "predicted": groups,
        "observed": [predicted**1.04 for predicted in groups],
        "group_weight": [100.0] * len(groups),
    }
