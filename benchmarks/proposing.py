"""Measures `torchrec init`: the look at the data beside one pass of the transform that it proposes.

``python -m benchmarks.proposing`` writes 20 x 300,000 numbers as CSV and as Parquet, and a log of clicks as
Parquet of 480 MB, or takes ``--file FILE --label LABEL``. Of each it prints, in turn and on one thread, what
the command takes without the start of Python, and what it takes to read and transform the same rows once by the
experiment that was written, fitted before. Wanted: 1.5 times as long at most.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pyarrow import csv, parquet

from rowwise.cli.init import init
from torchrec.datasets.transform import FeatureTransform
from torchrec.experiment.build import new_transform
from torchrec.experiment.files import load_experiment
from torchrec.experiment.sources import sources_of

NUMBERS, ROWS = 20, 300_000
LOG_ROWS, GROUP = 5_400_000, 450_000
CITIES, SHOPS, USERS, ITEMS, QUERIES = 200, 5_000, 800_000, 120_000, 60_000


def write_numbers(path: Path) -> None:
    """Write numbers that all differ, and a label."""
    random = np.random.default_rng(0)
    columns = {f"number_{i}": random.normal(size=ROWS) for i in range(NUMBERS)}
    table = pa.table({**columns, "click": random.integers(0, 2, ROWS)})
    if path.suffix == ".csv":
        csv.write_csv(table, path)
    else:
        parquet.write_table(table, path)


def write_log(path: Path) -> None:
    """Write clicks with ids as integers and as text, quantities, a label and a time; some are missing."""
    random = np.random.default_rng(0)
    writer = None
    for start in range(0, LOG_ROWS, GROUP):
        part = log_part(random, start, GROUP)
        writer = writer or parquet.ParquetWriter(path, part.schema)
        writer.write_table(part)
    if writer is not None:
        writer.close()


def log_part(random: np.random.Generator, start: int, rows: int) -> pa.Table:
    def skewed(number: int) -> np.ndarray:
        return (number * random.random(rows) ** 3).astype(np.int64)

    def text(prefix: str, ids: np.ndarray) -> pa.Array:
        return pc.binary_join_element_wise(prefix, pa.array(ids).cast(pa.string()), "")

    seconds = 1_700_000_000 + (start + np.arange(rows)) // 4
    columns = {
        "time": pa.array(seconds).cast(pa.timestamp("s")),
        "user": skewed(USERS),
        "item": skewed(ITEMS) * 8191 + 1_000_000_000,
        "shop": text("shop-", skewed(SHOPS)),
        "session": text("", random.integers(0, 1 << 39, rows)),
        "query": text("q", skewed(QUERIES)),
        "city": pa.array(skewed(CITIES), mask=random.random(rows) < 0.05),
        "device": pa.array(["phone", "tablet", "desktop", "tv"]).take(pa.array(skewed(4))),
        "position": random.integers(1, 40, rows),
        "age": pa.array(random.integers(14, 90, rows), mask=random.random(rows) < 0.2),
        **{f"price_{i}": random.lognormal(3, 1, rows).round(2) for i in range(2)},
        **{f"score_{i}": random.normal(size=rows) for i in range(5)},
        "ctr": pa.array(random.random(rows), mask=random.random(rows) < 0.1),
        **{f"count_{i}": random.poisson(20, rows) for i in range(4)},
        "click": (random.random(rows) < 0.1).astype(np.int8),
    }
    return pa.table(columns)


def propose(data: Path, label: str, output: Path) -> None:
    """Run the command."""
    with redirect_stdout(StringIO()):
        init([str(data)], label=label, output=output, overwrite=True)


def fitted(output: Path) -> Callable[[], None]:
    """Return what reads and transforms all rows once, as the experiment says."""
    experiment = load_experiment(output, ["data.split.valid=0", "data.split.test=0"])
    assert experiment.features is not None
    source = sources_of(experiment).train
    transform: FeatureTransform = new_transform(experiment, experiment.features)
    transform.fit(source.scan(transform.input_columns))

    def read_once() -> None:
        for table in source.scan(transform.columns):
            transform.transform(table)

    return read_once


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Return processor time and time of a piece of work."""
    start, used = time.perf_counter(), time.process_time()
    work()
    return time.process_time() - used, time.perf_counter() - start


def report(path: Path, label: str, rounds: int) -> None:
    output = path.parent / "experiment.yaml"
    propose(path, label, output)
    read_once = fitted(output)
    found = [(timed(lambda: propose(path, label, output)), timed(read_once)) for _ in range(rounds)]
    looking, reading = (
        [statistics.median(each) for each in zip(*side, strict=True)]
        for side in zip(*found, strict=True)
    )
    ratio = statistics.median(look[0] / read[0] for look, read in found)
    print(
        f"{path.name:16} | {os.path.getsize(path) / 1e6:4.0f} | {looking[0]:7.2f} ({looking[1]:.2f}) | "
        f"{reading[0]:7.2f} ({reading[1]:.2f}) | {ratio:5.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--file", type=Path, help="a file of one's own")
    parser.add_argument("--label", default="click", help="of that file")
    parser.add_argument("--folder", type=Path, help="keeps the files here, or takes those from it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    print(f"processor time, s (time), one thread; load {os.getloadavg()[0]:.1f}")
    print("file             |   MB | init           | one pass       | ratio (wanted: 1.5)")
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        writers = {
            folder / "numbers.csv": write_numbers,
            folder / "numbers.parquet": write_numbers,
            folder / "clicks.parquet": write_log,
        }
        if options.file is not None:
            link = Path(made) / options.file.name  # the experiment is written beside it
            link.symlink_to(options.file.absolute())
            report(link, options.label, options.rounds)
            return
        for path, write in writers.items():
            if not path.exists():
                write(path)
            report(path, "click", options.rounds)


if __name__ == "__main__":
    main()
