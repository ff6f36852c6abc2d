"""A small model of clicks, as it lies on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from torchrec.bundle import save_bundle
from torchrec.datasets.features import AnyFeature, DenseFeature, MultiHotFeature, SparseFeature
from torchrec.datasets.transform import FeatureTransform, Target
from torchrec.models.registry import build_model, find

FEATURES: dict[str, AnyFeature] = {
    "user": SparseFeature(ids="vocabulary"),
    "shop": SparseFeature(ids="plain", rows=20),
    "price": DenseFeature(log=True),
    "tags": MultiHotFeature(rows=50),
}
TASKS = {"click": Target("click"), "stars": Target("stars", "multiclass", 3)}


def rows(number: int, seed: int = 0) -> list[dict[str, object]]:
    """Return rows as JSON has them, some values missing."""
    random = np.random.default_rng(seed)
    return [
        {
            "user": None if random.random() < 0.1 else f"user-{random.integers(40)}",
            "shop": int(random.integers(20)),
            "price": None if random.random() < 0.1 else float(random.exponential()),
            "tags": [f"tag-{tag}" for tag in random.integers(0, 9, random.integers(4))],
        }
        for _ in range(number)
    ]


def save(folder: Path, seed: int = 0, tasks: bool = False) -> Path:
    """Save a model that has learned nothing; other seeds, other predictions."""
    table = pa.Table.from_pylist(rows(200))
    outcomes = np.random.default_rng(0).integers(0, 2, 200)
    table = table.append_column("click", pa.array(outcomes)).append_column(
        "stars", pa.array(outcomes)
    )
    transform = FeatureTransform(
        FEATURES, None if tasks else "click", TASKS if tasks else None
    ).fit([table])
    section = find("shared_bottom" if tasks else "deepfm").section(dim=4)
    torch.manual_seed(seed)
    save_bundle(folder, build_model(section, transform), transform, section)
    return folder
