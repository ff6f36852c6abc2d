"""Small models that were really trained, to be reported on and compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec.experiment.schema import Experiment
from torchrec.runs import RunFolder
from torchrec.training.run import run_experiment

ROWS = 6_000


def _table(rows: int, seed: int) -> pa.Table:
    """Clicks that depend on user and price, hardly on tags, and not at all on noise."""
    random = np.random.default_rng(seed)
    user = random.zipf(1.4, rows).clip(max=400)
    price = random.exponential(size=rows).astype(np.float32)
    logit = np.where(user % 2 == 0, 1.5, -1.5) - price
    return pa.table(
        {
            "user": [f"u{n}" for n in user],
            "country": pa.array(random.choice(["de", "fr", None], rows)),
            "tags": [[f"t{n}" for n in range(m)] for m in random.integers(0, 4, rows)],
            "price": price,
            "noise": random.normal(size=rows),
            "click": (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int8),
        }
    )


FEATURES = {
    "user": {"type": "sparse", "ids": "hash", "rows": 2_000},
    "country": {"type": "sparse", "ids": "vocabulary"},
    "tags": {"type": "multi_hot", "ids": "vocabulary"},
    "price": {"type": "dense"},
    "noise": {"type": "dense"},
}


def train(
    folder: Path, name: str, data: dict[str, object] | None = None, **training: object
) -> RunFolder:
    """Train a small model on generated clicks, in a folder of its own with its data."""
    for part, number in (("train", 0), ("test", 1), ("valid", 2)):
        path = folder / f"{part}.parquet"
        if not path.exists():
            pq.write_table(_table(ROWS if number == 0 else 2_000, number), path)
    experiment = Experiment.model_validate(
        {
            "data": {
                "train": str(folder / "train.parquet"),
                "valid": str(folder / "valid.parquet"),
                "test": str(folder / "test.parquet"),
                "label": "click",
                **(data or {}),
            },
            "features": FEATURES,
            "model": {"name": "deepfm", "dim": 4},
            "training": {
                "epochs": 2,
                "batch_size": 256,
                "learning_rate": 0.01,
                "log_every": 5,
                **training,
            },
        }
    )
    run_experiment(experiment, folder / name, observers=[])
    return RunFolder(folder / name)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(tmp_path_factory.mktemp("trained"), "first")


@pytest.fixture(scope="session")
def poor_run(run: RunFolder) -> RunFolder:
    """Return a run on the same data that learned next to nothing."""
    return train(run.path.parent, "poor", learning_rate=1e-5, epochs=1)


@pytest.fixture(scope="session")
def like_run(run: RunFolder) -> RunFolder:
    """Return a run that differs in nothing that matters."""
    return train(run.path.parent, "like", batch_size=240)


@pytest.fixture(scope="session")
def elsewhere_run(run: RunFolder) -> RunFolder:
    """Return a run that was tested on other rows."""
    path = str(run.path.parent / "valid.parquet")
    return train(run.path.parent, "elsewhere", {"test": path})


@pytest.fixture(scope="session")
def seeds_run(run: RunFolder) -> RunFolder:
    """Return a run with two seeds, and a model of both."""
    return train(run.path.parent, "seeds", seeds=2, ensemble=True, epochs=1)
