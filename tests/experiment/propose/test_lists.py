"""What lists are to a model: vectors, ids with weights, bags of all that lists in lists hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec.datasets.features import AnyFeature, MultiHotFeature, VectorFeature
from torchrec.experiment.propose import infer_features

pytestmark = pytest.mark.once

ROWS = 300


def feature_of(folder: Path, values: list[object]) -> AnyFeature:
    path = folder / "data.parquet"
    clicks = np.random.default_rng(0).integers(2, size=len(values))
    pq.write_table(pa.table({"x": values, "click": clicks}), path)
    return infer_features(path, "click").features["x"]


@pytest.mark.parametrize("write", [list, repr], ids=["list", "text"])
def test_vectors(tmp_path: Path, write: Callable[[list[float]], object]) -> None:
    vectors = np.random.default_rng(1).normal(size=(ROWS, 3)).round(3).tolist()
    found = feature_of(tmp_path, [None, *map(write, vectors[1:])])
    assert found == VectorFeature(size=3, separator=None if write is list else "[]")


def test_ids_with_weights(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    found = feature_of(
        tmp_path,
        [
            "|".join(f"{random.integers(7)}:{weight:.2f}" for weight in random.random(i % 3 + 1))
            for i in range(ROWS)
        ],
    )
    assert isinstance(found, MultiHotFeature)
    assert (found.separator, found.weight_separator, found.rows) == ("|", ":", 7)


def test_lists_of_lists(tmp_path: Path) -> None:
    found = feature_of(tmp_path, [[[i % 5], [3, i % 7]] for i in range(ROWS)])
    assert (found.type, getattr(found, "rows", None)) == ("multi_hot", 7)
