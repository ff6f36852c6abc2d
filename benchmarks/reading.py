"""Measures the way from a file to a trained model: reading, training, and both at once.

``python -m benchmarks.reading`` writes a log of clicks (13 numbers, 26 ids, as integers or with
``--strings`` as text) to Parquet, or with ``--csv`` to CSV, and prints samples a second of reading and
transforming alone, of training DLRM on batches in memory, and of training it from the file. Wanted:
reading at 3 times the speed of training, and training from the file in 1.1 times the time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from pyarrow import csv, parquet

from benchmarks.models import DENSE, KEYS, E, make_model, optimizer_in_backward
from torchrec.datasets.features import DenseFeature, SparseFeature
from torchrec.datasets.loader import Loader
from torchrec.datasets.source import TableSource
from torchrec.datasets.transform import FeatureTransform
from torchrec.datasets.utils import Batch
from torchrec.models.dlrm import DLRMTrain

NUMBERS = [f"number_{i}" for i in range(DENSE)]


def write(path: Path, rows: int, strings: bool) -> None:
    """Write clicks with skewed ids; about half of the numbers are integers, some are missing."""
    random = np.random.default_rng(0)
    columns: dict[str, object] = {"click": random.integers(0, 2, rows)}
    for i, name in enumerate(NUMBERS):
        values = random.lognormal(1, 1, rows)
        missing = random.random(rows) < 0.1 if i % 3 == 0 else None
        columns[name] = pa.array(values.astype(int) if i % 2 else values, mask=missing)
    for key in KEYS:
        ids = np.minimum(random.zipf(1.2, rows), E) - 1
        columns[key] = pa.array(ids).cast(pa.string()) if strings else ids
    table = pa.table(columns)
    if path.suffix == ".csv":
        csv.write_csv(table, path)
    else:
        parquet.write_table(table, path)


def fitted_transform(source: TableSource) -> FeatureTransform:
    strings = pa.types.is_string(source.schema.field(KEYS[0]).type)
    features = {name: DenseFeature(log=True) for name in NUMBERS}
    features |= {key: SparseFeature(rows=E, ids="hash" if strings else "plain") for key in KEYS}
    transform = FeatureTransform(features, label="click")
    return transform.fit(source.scan(transform.columns))


def trainer(strings: bool) -> Callable[[Batch], None]:
    model = make_model("dlrm", optimizer_in_backward())
    trained = DLRMTrain(model)
    parts = (model.dense_arch, model.inter_arch, model.over_arch)
    optimizer = torch.optim.SGD([p for part in parts for p in part.parameters()], lr=0.01)

    def train(batch: Batch) -> None:
        if strings:  # the table would do this
            batch.sparse_features.values().remainder_(E)
        loss, _ = trained(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return train


def speed(batches: Iterable[Batch], work: Callable[[Batch], object]) -> tuple[float, float]:
    """Return samples a second, and microseconds of processor time a sample."""
    samples, start, used = 0, time.perf_counter(), time.process_time()
    for batch in batches:
        work(batch)
        samples += batch.labels.size(0)
    return samples / (time.perf_counter() - start), (time.process_time() - used) / samples * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--strings", action="store_true", help="ids are text")
    parser.add_argument("--csv", action="store_true", help="a CSV file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clicks.csv" if options.csv else "clicks.parquet")
        write(path, options.rows, options.strings)
        source = TableSource(path)
        transform = fitted_transform(source)
        print(f"{options.rows} rows, {os.path.getsize(path) / 1e6:.0f} MB, {path.suffix[1:]}")

        def loader() -> Loader:
            return Loader(source, transform, options.batch, workers=options.workers)

        train = trainer(options.strings)
        in_memory = list(loader())
        speed(in_memory[:10], train)
        rounds = [
            (
                speed(loader(), lambda batch: None),
                speed(in_memory, train),
                speed(loader(), train),
            )
            for _ in range(options.rounds)
        ]
        reading, memory, file = (
            statistics.median(s for s, _ in column) for column in zip(*rounds, strict=True)
        )
        processor = statistics.median(used for (_, used), _, _ in rounds)
        print(
            f"reading alone        {reading:12,.0f} samples/s, {processor:.2f} µs of processor each"
        )
        print(f"training from memory {memory:12,.0f} samples/s")
        print(f"training from file   {file:12,.0f} samples/s")
        print(f"reading / training {reading / memory:.1f} (wanted: 3 or more)")
        ratio = statistics.median(m / f for _, (m, _), (f, _) in rounds)
        print(f"time from file / from memory {ratio:.3f} (wanted: 1.1 or less)")


if __name__ == "__main__":
    main()
