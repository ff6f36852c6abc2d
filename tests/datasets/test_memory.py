"""Training from files several times larger than the memory that it takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv
from pyarrow import parquet as pq

pytestmark = pytest.mark.once

COLUMNS = 32

SCRIPT = """
import resource, sys
import torch
from torchrec import KeyedJaggedTensor
from torchrec.datasets.loader import Loader
from torchrec.datasets.source import TableSource
from torchrec.datasets.utils import Batch

model = torch.nn.EmbeddingBag(1000, 8, mode="sum")
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

def transform(table):
    ids = torch.stack([torch.tensor(column.to_numpy()) for column in table.columns])
    keys = table.column_names
    lengths = torch.ones(ids.numel(), dtype=torch.int32)
    return Batch(torch.zeros(len(table), 1), KeyedJaggedTensor(keys, ids.flatten(), lengths=lengths), ids[0])

def peak():
    # Of this process alone: what getrusage says began as the size of the one that started it.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

def train(path):
    rows = 0
    for batch in Loader(TableSource(path), transform, 1024, shuffle_window=4096):
        rows += batch.labels.numel()
        if rows % 20 == 0:  # a step now and then: this is about memory
            ids = batch.sparse_features.values().view(len(batch.sparse_features.keys()), -1).T % 1000
            loss = model(ids).square().mean()
            optimizer.zero_grad(); loss.backward(); optimizer.step()
    return rows

train(sys.argv[1])  # what libraries take once
before = peak()
print(train(sys.argv[2]), peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("format", ["parquet", "csv.zst"])
def test_a_file_larger_than_memory_is_trained_from(tmp_path: Path, format: str) -> None:
    rows = 1_000_000 if format == "parquet" else 400_000
    small, large = tmp_path / f"small.{format}", tmp_path / f"large.{format}"
    sizes = [write(path, count) for path, count in ((small, 60_000), (large, rows))]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(small), str(large)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen, grown = map(int, done.stdout.split())
    assert seen == rows
    assert grown < sizes[1] / 3


def write(path: Path, rows: int) -> int:
    """Write a table and return its size, without compression of any kind."""
    ids = np.random.default_rng(0).integers(0, 2**40, (COLUMNS, rows))
    table = pa.table({f"c{i}": column for i, column in enumerate(ids)})
    if path.suffix == ".parquet":  # as one row group: a whole one need not fit either
        pq.write_table(table, path, use_dictionary=False, compression="none", row_group_size=rows)
        return table.nbytes
    with pa.CompressedOutputStream(str(path), "zstd") as compressed:
        csv.write_csv(table, compressed)
    return rows * COLUMNS * len("123456789012,")
