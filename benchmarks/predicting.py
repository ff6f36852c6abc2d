"""Measures the prediction of few rows: how long one takes, and how long when several threads ask at once.

``python -m benchmarks.predicting`` makes a model of ten categories and three numbers, and prints the microseconds
of one `Predictor.predict` for rows as dicts, and of the model alone; then the median and the 99th percentile where
so many threads predict one row each as fast as they can, and how many rows a second of processor time. Wanted:
300 for one row, a 99th percentile within 5 medians of eight threads, and as many rows as of one.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch

from torchrec.datasets.features import AnyFeature, DenseFeature, SparseFeature
from torchrec.datasets.transform import FeatureTransform
from torchrec.inference import Predictor
from torchrec.models.registry import ModelSection, build_model

ROWS = 5_000


def predictor(
    model: str, categories: int = 10, numbers: int = 3
) -> tuple[Predictor, list[dict[str, object]]]:
    """Return an untrained model's predictor and rows to predict for."""
    random = np.random.default_rng(0)
    features: dict[str, AnyFeature] = {}
    columns: dict[str, object] = {}
    for i in range(categories):
        features[f"category_{i}"] = SparseFeature(ids="vocabulary" if i % 2 else "hash", rows=1000)
        columns[f"category_{i}"] = [f"value {k}" for k in random.integers(0, 500, ROWS)]
    for i in range(numbers):
        features[f"number_{i}"] = DenseFeature(log=i == 0)
        columns[f"number_{i}"] = random.exponential(size=ROWS)
    table = pa.table(columns)
    transform = FeatureTransform(features).fit([table])
    torch.manual_seed(0)
    built = build_model(ModelSection(name=model, dim=16), transform)
    return Predictor(None, transform, built), table.slice(0, 256).to_pylist()


def times(function: Callable[[], object], seconds: float) -> list[float]:
    """Return how long calls take, in microseconds, made one after another for so long."""
    found = []
    end = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        function()
        now = time.perf_counter()
        found.append((now - start) * 1e6)
        if now > end:
            return found


def together(function: Callable[[], object], threads: int, seconds: float) -> list[float]:
    """Return the times of calls that several threads make at once."""
    found: list[list[float]] = []
    ready = threading.Barrier(threads)

    def run() -> None:
        ready.wait()
        found.append(times(function, seconds))

    workers = [threading.Thread(target=run) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [one for some in found for one in some]


def main() -> None:
    """Print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="deepfm")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2, 4, 8])
    options = parser.parse_args()
    one, rows = predictor(options.model)
    for size in (1, 2, 8, 32, 64):
        some: object = rows[0] if size == 1 else rows[:size]
        one.predict(some)
        batch = one.transform.encode(
            {name: [row[name] for row in rows[:size]] for name in one.input_columns}, size
        )
        with torch.inference_mode():
            model = times(lambda: one.model(batch.dense_features, batch.sparse_features), 0.3)  # noqa: B023
        whole = times(lambda: one.predict(some), 0.3)  # noqa: B023
        print(
            f"{size:3} rows: {np.median(whole):6.0f} us, the model alone {np.median(model):6.0f} us"
        )
    for threads in options.threads:
        used = time.process_time()
        found = together(lambda: one.predict(rows[0]), threads, options.seconds)
        used = time.process_time() - used
        median, high = np.percentile(found, [50, 99])
        print(
            f"{threads:3} threads: {len(found) / options.seconds:7.0f} a second, median {median:6.0f} us, "
            f"99th percentile {high:6.0f} us = {high / median:.1f} medians; "
            f"{len(found) / used:5.0f} a second of processor time"
        )


if __name__ == "__main__":
    main()
