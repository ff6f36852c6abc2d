"""Counts of ids and values: each told once, by the split that had them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec.experiment.files import check_experiment
from torchrec.training import Observer
from torchrec.training.run import run_experiment

pytestmark = pytest.mark.once

ROWS = {"train": 60, "valid": 12, "test": 9}
MISSING = {"train": 7, "valid": 5, "test": 3}
EPOCHS = 2


class Stop(Observer):
    def stepped(self, step: int, samples: int) -> None:
        if step == 13:
            raise KeyboardInterrupt


def run(folder: Path, interrupted: bool, model: dict[str, object] | None = None) -> Path:
    data: dict[str, object] = {"label": "click"}
    for split, rows in ROWS.items():
        price = [None] * MISSING[split] + [1.0] * (rows - MISSING[split])
        user, click = [100 + i for i in range(rows)], [i % 2 for i in range(rows)]
        path = folder / f"{split}.parquet"
        pq.write_table(pa.table({"user": user, "price": price, "click": click}), path)
        data[split] = [str(path)]
    values = {
        "data": data,
        "features": {"user": {"type": "sparse", "rows": 10}, "price": {"type": "dense"}},
        "model": {"dim": 4, "layers": [4], "dense_layers": [4]} if model is None else model,
        # Steps that no record of training has told come before every evaluation and checkpoint.
        "training": {
            "epochs": EPOCHS,
            "batch_size": 6,
            "log_every": 4,
            "evaluate_every": 3,
            "checkpoint_every": 7,
        },
        "output": "unused",
    }
    what = check_experiment(values, "experiment.yaml")
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            run_experiment(what, folder / "run", observers=[Stop()])
    run_experiment(what, folder / "run", resume=interrupted, observers=[Observer()])
    return folder / "run"


@pytest.mark.parametrize("interrupted", [False, True], ids=["in one go", "resumed"])
def test_each_is_told_once_by_its_split(tmp_path: Path, interrupted: bool) -> None:
    folder = run(tmp_path, interrupted)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    ids = {split: [line["ids"] for line in lines if line["split"] == split] for split in ROWS}
    assert sum(one["hashed"] for one in ids["train"]) == EPOCHS * ROWS["train"]
    assert [one["hashed"] for one in ids["train"][:2]] == [4 * 6, 4 * 6]
    for split in ("valid", "test"):
        for one in ids[split]:
            assert (one["hashed"], one["missing"]) == (ROWS[split], MISSING[split])
    if not interrupted:  # else batches that waited for training were read twice
        assert sum(one["missing"] for one in ids["train"]) == EPOCHS * MISSING["train"]
    (table,) = json.loads((folder / "report.json").read_text())["tables"]
    assert table["hashed"] == EPOCHS * ROWS["train"]


def test_weights_beside_vectors_do_not_count_ids_twice(tmp_path: Path) -> None:
    folder = run(tmp_path, False, {"name": "deepfm", "linear": True, "layers": [4]})
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    ids = {split: [line["ids"] for line in lines if line["split"] == split] for split in ROWS}
    assert sum(one["hashed"] for one in ids["train"]) == EPOCHS * ROWS["train"]
    for split in ROWS:
        assert all(one["out_of_range"] == 0 for one in ids[split])
    tables = json.loads((folder / "report.json").read_text())["tables"]
    assert [table["name"] for table in tables] == ["user", "user_linear"]
    assert [table["dim"] for table in tables] == [16, 1]
    for table in tables:
        assert (table["hashed"], table["out_of_range"]) == (EPOCHS * ROWS["train"], 0)
