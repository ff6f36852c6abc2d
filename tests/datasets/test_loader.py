"""Batches from files: every row once, one order whoever works on it, and back to where it was."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet as pq

from torchrec import KeyedJaggedTensor
from torchrec.datasets import csv_reader
from torchrec.datasets import loader as loader_module
from torchrec.datasets.loader import Loader
from torchrec.datasets.source import TableSource
from torchrec.datasets.split import FractionSplit
from torchrec.datasets.utils import Batch

pytestmark = pytest.mark.once

ROWS = 1_000


def transform(table: pa.Table) -> Batch:
    """Make a batch of which every part says which row it is."""
    ids = table["x"].to_pylist()
    return Batch(
        torch.tensor(ids, dtype=torch.float32)[:, None].repeat(1, 2),
        KeyedJaggedTensor.from_lists({"one": ids, "some": [[x] * (x % 3) for x in ids]}),
        torch.tensor(ids),
    )


def rows_of(batch: Batch) -> list[int]:
    """Return the rows in a batch, having checked that its parts agree."""
    rows: list[int] = batch.labels.tolist()
    assert batch.dense_features.tolist() == [[x, x] for x in rows]
    assert batch.sparse_features.to_lists() == {
        "one": [[x] for x in rows],
        "some": [[x] * (x % 3) for x in rows],
    }
    return rows


def epoch_of(loader: Loader) -> list[list[int]]:
    return [rows_of(batch) for batch in loader]


@pytest.fixture(scope="module", params=["parquet", "csv", "csv.gz"])
def paths(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three files of row numbers, in row groups or blocks of 70 rows or so."""
    return write_files(tmp_path_factory.mktemp("data"), request.param)


def write_files(folder: Path, format: str, rows: int = ROWS) -> list[Path]:
    found = []
    for i, (start, stop) in enumerate(
        ((0, rows // 2), (rows // 2, rows // 2 + 7), (rows // 2 + 7, rows))
    ):
        path = folder / f"{i}.{format}"
        if format == "parquet":
            pq.write_table(pa.table({"x": range(start, stop)}), path, row_group_size=70)
        else:
            text = "".join(f"{x}\n" for x in ["x", *range(start, stop)]).encode()
            path.write_bytes(pa.compress(text, "gzip", asbytes=True) if "gz" in format else text)
        found.append(path)
    return found


@pytest.fixture(autouse=True, scope="module")
def _small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_reader, "CHUNK_BYTES", 250)
        patch.setattr(loader_module, "CHUNK_ROWS", 70)
        yield


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_the_order_of_the_files_is_kept_without_shuffling(paths: list[Path], workers: int) -> None:
    loader = Loader(TableSource(paths), transform, 64, shuffle_window=0, workers=workers)
    batches = epoch_of(loader)
    assert [x for batch in batches for x in batch] == list(range(ROWS))
    assert [len(batch) for batch in batches] == [64] * 15 + [40]


@pytest.mark.parametrize("window", [100, 10_000])
def test_workers_do_not_change_the_order(paths: list[Path], window: int) -> None:
    source = TableSource(paths)
    epochs = [
        epoch_of(Loader(source, transform, 64, shuffle_window=window, seed=3, workers=workers))
        for workers in range(5)
    ]
    assert all(epoch == epochs[0] for epoch in epochs)
    assert sorted(x for batch in epochs[0] for x in batch) == list(range(ROWS))
    assert [len(batch) for batch in epochs[0]] == [64] * 15 + [40]


def test_epochs_and_seeds_have_orders_of_their_own(paths: list[Path]) -> None:
    source = TableSource(paths)
    loader = Loader(source, transform, 50, shuffle_window=200)
    first = epoch_of(loader)
    assert epoch_of(loader) == first
    loader.epoch = 1
    second = epoch_of(loader)
    other = epoch_of(Loader(source, transform, 50, shuffle_window=200, seed=1))
    for epoch in (first, second, other):
        assert sorted(x for batch in epoch for x in batch) == list(range(ROWS))
    assert first != second != other != first
    loader.epoch = 0
    assert epoch_of(loader) == first


def test_rows_are_shuffled_within_a_window(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": range(10_000)}), tmp_path / "a.parquet")
    loader = Loader(TableSource(tmp_path), transform, 500, shuffle_window=1_000)
    rows = [x for batch in loader for x in batch.labels.tolist()]
    for start in range(0, 10_000, 1_000):
        window = rows[start : start + 1_000]
        assert sorted(window) == list(range(start, start + 1_000))
        assert abs(sum(window[:500]) / 500 - (start + 500)) < 40  # each half is from everywhere
        assert sum(x == start + i for i, x in enumerate(window)) < 10


@given(
    rows=st.integers(1, 300),
    group=st.integers(1, 100),
    batch=st.integers(1, 90),
    window=st.integers(0, 150),
    world=st.integers(1, 4),
    workers=st.integers(0, 2),
    drop_last=st.booleans(),
    kept=st.sampled_from(["all", "dropped", "split"]),
    epoch=st.integers(0, 2),
)
def test_ranks_and_batches_have_every_row_once(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    group: int,
    batch: int,
    window: int,
    world: int,
    workers: int,
    drop_last: bool,
    kept: str,
    epoch: int,
) -> None:
    path = tmp_path_factory.mktemp("data") / "a.parquet"
    pq.write_table(pa.table({"x": range(rows)}), path, row_group_size=group)
    split = FractionSplit(0.3, 0.2, seed=rows)
    source = TableSource(
        path,
        drop="x >= 40 and x < 90" if kept == "dropped" else None,
        split=split if kept == "split" else None,
    )
    wanted = [x for table in source.scan() for x in table["x"].to_pylist()]
    seen, lengths = [], []
    for rank in range(world):
        loader = Loader(
            source,
            transform,
            batch,
            shuffle_window=window,
            rank=rank,
            world_size=world,
            workers=workers,
            drop_last=drop_last,
        )
        loader.epoch = epoch
        batches = epoch_of(loader)
        sizes = [len(x) for x in batches]
        assert all(size == batch for size in sizes[:-1])
        assert not sizes or 0 < sizes[-1] <= batch
        assert not drop_last or all(size == batch for size in sizes)
        if kept != "dropped":
            assert len(loader) == len(batches)
            assert loader.samples == sum(sizes)
        lengths.append(sum(sizes))
        seen += [x for rows in batches for x in rows]
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(wanted)
    assert len(wanted) - len(seen) == (len(wanted) % (world * batch) if drop_last else 0)
    assert max(lengths) - min(lengths) <= 1


# ---- going on


@pytest.mark.parametrize("window", [0, 150])
@pytest.mark.parametrize("kept", ["all", "dropped", "ranks"])
def test_every_position_can_be_gone_back_to(paths: list[Path], window: int, kept: str) -> None:
    def make(workers: int) -> Loader:
        source = TableSource(paths, drop="x > 400 and x < 800" if kept == "dropped" else None)
        ranks = {"rank": 1, "world_size": 3} if kept == "ranks" else {}
        return Loader(
            source,
            transform,
            48 if ranks else 110,
            shuffle_window=window,
            workers=workers,
            seed=5,
            **ranks,
        )

    whole = make(2)
    whole.epoch = 2
    states = [json.dumps(whole.state_dict())]
    batches = []
    for batch in whole:
        batches.append(rows_of(batch))
        states.append(json.dumps(whole.state_dict()))
    states.append(json.dumps(whole.state_dict()))  # after the end
    assert len(batches) > 5
    for at, state in enumerate(states):
        again = make(at % 3)
        again.load_state_dict(json.loads(state))
        assert again.epoch == 2
        assert json.dumps(again.state_dict()) == state
        assert epoch_of(again) == batches[at:]
        assert epoch_of(again) == batches  # the next time it is a whole epoch again
    again.load_state_dict(json.loads(states[3]))
    again.epoch = 3
    whole.epoch = 3
    third = epoch_of(again)
    assert third == epoch_of(whole)
    assert (third != batches) == (window > 0)


@pytest.mark.parametrize("window", [0, 150], ids=["in order", "shuffled"])
@pytest.mark.parametrize("kept", ["all", "dropped", "split"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(2, 1, marks=pytest.mark.slow),
        (2, 3),
        pytest.param(1, 2, marks=pytest.mark.slow),
        pytest.param(3, 2, marks=pytest.mark.slow),
    ],
)
def test_any_number_of_ranks_goes_on(
    paths: list[Path], window: int, kept: str, before: int, after: int
) -> None:
    """Wherever all ranks stop, others give the rest of the epoch: no row is lost or seen twice."""
    source = TableSource(
        paths,
        drop="x > 400 and x < 800" if kept == "dropped" else None,
        split=FractionSplit(0.2, 0.2) if kept == "split" else None,
    )

    def make(rank: int, world_size: int) -> Loader:
        workers = (rank + world_size) % 3
        loader = Loader(
            source, transform, 23, shuffle_window=window, rank=rank, world_size=world_size,
            workers=workers, seed=5,
        )  # fmt: skip
        loader.epoch = 2
        return loader

    wanted = sorted(x for table in source.scan() for x in table["x"].to_pylist())
    for steps in (1, 2, 5, 1_000):
        loaders = [make(rank, before) for rank in range(before)]
        given = [list(itertools.islice(loader, steps)) for loader in loaders]
        states = [json.dumps(loader.state_dict()) for loader in loaders]
        assert states == states[:1] * before  # a position is that of all ranks
        rest = []
        for rank in range(after):
            loader = make(rank, after)
            loader.epoch = 0
            loader.load_state_dict(json.loads(states[rank % before]))
            rest.append(epoch_of(loader))
        first = [x for batches in given for batch in batches for x in rows_of(batch)]
        second = [x for batches in rest for batch in batches for x in batch]
        assert sorted(first + second) == wanted, steps
        assert len(first) == min(steps * before * 23, len(wanted))


@pytest.mark.parametrize("window", [0, 150], ids=["in order", "shuffled"])
@pytest.mark.parametrize(("size", "world_size"), [(64, 3), (37, 2), (333, 4), (999, 2)])
def test_ranks_share_the_batches_of_one(
    paths: list[Path], window: int, size: int, world_size: int
) -> None:
    """In as many steps, each with the very rows; of the last batch a rank may have none."""
    source = TableSource(paths)

    def make(rank: int, world_size: int) -> Loader:
        return Loader(
            source, transform, size, shuffle_window=window, rank=rank, world_size=world_size,
            share_batches=True,
        )  # fmt: skip

    whole = Loader(source, transform, size, shuffle_window=window)
    ranks = [make(rank, world_size) for rank in range(world_size)]
    shares = [epoch_of(loader) for loader in ranks]
    for step, batch in enumerate(epoch_of(whole)):
        of_ranks = [share[step] for share in shares]
        assert sorted(itertools.chain(*of_ranks)) == sorted(batch)
        assert max(map(len, of_ranks)) - min(map(len, of_ranks)) <= 1
    assert {len(share) for share in shares} == {step + 1}
    if source.rows is not None:
        assert {len(loader) for loader in ranks} == {step + 1}
        assert [loader.samples for loader in ranks] == [sum(map(len, share)) for share in shares]
    one = make(0, 1)
    stopped = make(0, world_size)
    next(iter(stopped))
    one.load_state_dict(stopped.state_dict())  # another number of ranks goes on behind the step
    assert epoch_of(one) == epoch_of(whole)[1:]


def test_the_steps_of_all_ranks_are_those_of_one(paths: list[Path]) -> None:
    """Together they take as many rows a step as one rank with larger batches, and the same ones."""
    source = TableSource(paths)
    one = epoch_of(Loader(source, transform, 48, shuffle_window=150))
    three = [
        epoch_of(Loader(source, transform, 16, shuffle_window=150, rank=rank, world_size=3))
        for rank in range(3)
    ]
    steps = [sorted(x for batch in step for x in batch) for step in zip(*three, strict=True)]
    assert steps == [sorted(batch) for batch in one]


def test_a_position_of_before_it_was_that_of_all_ranks_is_gone_to(paths: list[Path]) -> None:
    loader = Loader(TableSource(paths), transform, 48, shuffle_window=150)
    batches = iter(loader)
    for _ in range(4):
        next(batches)
    state: Any = loader.state_dict()
    rest = [rows_of(batch) for batch in batches]
    state |= {"version": 2, "batch": 4, "start": [*state["start"], 7]}
    state["settings"] |= {"rank": 0, "world_size": 1}
    again = Loader(TableSource(paths), transform, 48, shuffle_window=150)
    again.load_state_dict(json.loads(json.dumps(state)))
    assert epoch_of(again) == rest


def test_going_on_reads_nothing_of_what_was_before(tmp_path: Path) -> None:
    for i in range(4):
        pq.write_table(pa.table({"x": range(i * 100, i * 100 + 100)}), tmp_path / f"{i}.parquet")
    loader = Loader(TableSource(tmp_path), transform, 50, shuffle_window=0, workers=0)
    batches = iter(loader)
    for _ in range(7):
        next(batches)
    state = loader.state_dict()
    fresh = Loader(TableSource(tmp_path), seen := Counting(), 50, shuffle_window=0, workers=0)
    fresh.load_state_dict(state)
    assert epoch_of(fresh) == [list(range(350, 400))]
    assert seen.rows == 100


class Counting:
    """A transform that counts the rows that it is given."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, table: pa.Table) -> Batch:
        self.rows += table.num_rows
        return transform(table)


def test_other_arguments_or_files_are_refused(tmp_path: Path) -> None:
    write_files(tmp_path, "parquet")
    state = Loader(TableSource(tmp_path), transform, 48).state_dict()

    def refused(message: str, batch: int = 48, drop: str | None = None, **options: Any) -> None:
        loader = Loader(TableSource(tmp_path, drop=drop), transform, batch, **options)
        with pytest.raises(ValueError, match=message):
            loader.load_state_dict(state)

    refused(r"`batch_size` should be as it was when the state was saved \(48\)\. Received 49", 49)
    refused(r"`seed` should be as it was .*\(0\)\. Received 1", seed=1)
    refused(r"`shuffle_window` should be as it was .*\(131072\)\. Received 0", shuffle_window=0)
    refused(r"`drop` should be as it was", drop="x > 3")
    Loader(TableSource(tmp_path), transform, 48, workers=4).load_state_dict(state)

    changed = tmp_path / "1.parquet"
    content = changed.read_bytes()
    pq.write_table(pa.table({"x": range(7)}), changed)
    refused(r"Data file '.*1\.parquet' should be as '.*1\.parquet' was when the state was saved")
    changed.write_bytes(content)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "3.parquet")
    refused(r"There should be 3 data files, as when the state was saved\. Received 4")
    (tmp_path / "3.parquet").unlink()
    state["version"] = 1
    refused(r"The state of a loader should be of version 3, or 2 .* Received version 1: go on with")
    state["version"] = 2
    state["settings"]["world_size"] = 2
    refused(
        r"should be of version 3, .* Received version 2 of several ranks: go on with the version"
    )


# ---- lengths, arguments


def test_the_number_of_batches_is_known_for_parquet_alone(tmp_path: Path) -> None:
    paths = write_files(tmp_path, "parquet")
    assert len(Loader(TableSource(paths), transform, 64)) == 16
    assert len(Loader(TableSource(paths), transform, 64, drop_last=True)) == 15
    for source in (
        TableSource(paths, drop="x > 3"),
        TableSource(write_files(tmp_path, "csv")),
    ):
        loader = Loader(source, transform, 64)
        assert loader.samples is None
        with pytest.raises(TypeError, match=r"The number of batches is known for Parquet files"):
            len(loader)
        assert len(list(loader)) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"`batch_size` should be 1 or more\. Received 0"),
        ({"shuffle_window": -1}, r"`shuffle_window` should be 0 or more\. Received -1"),
        ({"rank": 2, "world_size": 2}, r"`rank` should be in \[0, 2\)\. Received 2"),
        (
            {"world_size": 3, "share_batches": True},
            "`batch_size` should be a row for each of 3 ranks at least, which share it. Received 2",
        ),
        ({"workers": -1}, r"`workers` should be 0 or more\. Received -1"),
    ],
)
def test_arguments_out_of_range_are_refused(
    tmp_path: Path, options: dict[str, int], message: str
) -> None:
    source = TableSource(write_files(tmp_path, "parquet"))
    with pytest.raises(ValueError, match=message):
        Loader(source, transform, **{"batch_size": 2, **options})


def test_a_transform_that_wants_another_column_is_refused(tmp_path: Path) -> None:
    wants = Counting()
    wants.columns = ["xs"]  # type: ignore[attr-defined]
    with pytest.raises(
        ValueError, match=r"The transform should name columns of the data\. Received 'xs'"
    ):
        Loader(TableSource(write_files(tmp_path, "parquet")), wants, 2)


def test_nothing_left_of_the_rows_gives_no_batch(paths: list[Path]) -> None:
    assert epoch_of(Loader(TableSource(paths, drop="x >= 0"), transform, 8)) == []


# ---- threads


def failing_at(row: int, error: Exception) -> Callable[[pa.Table], Batch]:
    def fail(table: pa.Table) -> Batch:
        if row in table["x"].to_pylist():
            raise error
        return transform(table)

    return fail


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_errors_of_the_transform_come_in_their_place(paths: list[Path], workers: int) -> None:
    fail = failing_at(500, ValueError("`x` should be small. Received 500."))
    loader = Loader(TableSource(paths), fail, 10, shuffle_window=0, workers=workers)
    batches = iter(loader)
    for start in range(0, 400, 10):
        assert rows_of(next(batches)) == list(range(start, start + 10))
    message = (
        rf"^`x` should be small\. Received 500\. Found in '{paths[0].parent}/.*'( or after)?\.$"
    )
    with pytest.raises(ValueError, match=message):
        list(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_other_errors_are_passed_on_as_they_are(paths: list[Path], workers: int) -> None:
    loader = Loader(TableSource(paths), failing_at(500, KeyError("x")), 10, workers=workers)
    with pytest.raises(KeyError, match="x"):
        list(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_a_file_name_it(tmp_path: Path, workers: int) -> None:
    paths = write_files(tmp_path, "csv")
    paths[2].write_text(paths[2].read_text() + "many\n")
    loader = Loader(TableSource(paths), transform, 10, workers=workers)
    with pytest.raises(ValueError, match=r"'.*2\.csv', line 495, column 'x', should .*'many'"):
        list(loader)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("batches", [0, 1, 3])
def test_stopping_early_leaves_no_thread(paths: list[Path], workers: int, batches: int) -> None:
    loader = Loader(TableSource(paths), transform, 20, shuffle_window=100, workers=workers)
    iterator = iter(loader)
    for _ in range(batches):
        next(iterator)
    del iterator
    assert not [t for t in threading.enumerate() if t.name.startswith("reader")]
    with pytest.raises(RuntimeError, match="enough"):  # noqa: PT012
        for _ in loader:
            raise RuntimeError("enough")


def test_few_windows_are_made_ahead(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": range(3_000)}), tmp_path / "a.parquet")
    counting = Counting()
    loader = Loader(TableSource(tmp_path), counting, 100, shuffle_window=100, workers=2)
    for _ in loader:
        time.sleep(0.05)
        assert counting.rows <= 100 * 4
        if counting.rows == 400:
            break


def test_work_is_done_while_the_consumer_is_busy(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": range(800)}), tmp_path / "a.parquet")
    begun = threading.Semaphore(0)

    def told(table: pa.Table) -> Batch:
        begun.release()
        return transform(table)

    loader = Loader(TableSource(tmp_path), told, 100, shuffle_window=100, workers=2)
    assert not begun.acquire(blocking=False)
    for number, _ in enumerate(loader):
        # All up to the batch at hand, and the one after it, which nobody has asked for.
        for _ in range(2 if number == 0 else number < 7):
            assert begun.acquire(timeout=30)


SCRIPT = """
import sys
from tests.datasets.test_loader import Loader, TableSource, transform
iterator = iter(Loader(TableSource(sys.argv[1]), transform, 10, shuffle_window=50))
print(len(next(iterator).labels))
"""


def test_leaving_the_program_early_does_not_hang(tmp_path: Path) -> None:
    write_files(tmp_path, "parquet")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "10\n", "")


@pytest.mark.parametrize("world_size", [1, 2])
def test_rows_of_a_split_are_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    source = TableSource(write_files(tmp_path, "parquet"), split=FractionSplit(0.3, 0.2))
    loaders = [
        Loader(source, transform, 64, rank=r, world_size=world_size) for r in range(world_size)
    ]
    expected = [sum(len(batch.labels) for batch in loader) for loader in loaders]
    calls = []
    count = FractionSplit.count

    def counting(self: FractionSplit, *arguments: Any) -> int:
        calls.append(arguments)
        return count(self, *arguments)

    monkeypatch.setattr(FractionSplit, "count", counting)
    assert [loader.samples for loader in loaders] == expected
    first = len(calls)
    loaders[0].epoch = 1
    assert [len(loader) for loader in loaders] == [-(-rows // 64) for rows in expected]
    assert len(calls) == first > 0


def test_targets_weights_and_groups_are_shuffled_with_their_rows(tmp_path: Path) -> None:
    """Across windows, of which one ends within a batch."""

    def several(table: pa.Table) -> Batch:
        plain = transform(table)
        rows = plain.labels
        targets = {"twice": 2 * rows, "half": rows / 2}
        parts = (plain.dense_features, plain.sparse_features)
        return Batch(*parts, targets=targets, weights=rows + 0.5, groups={"user": rows // 10})

    source = TableSource(write_files(tmp_path, "parquet"))
    seen: list[int] = []
    for batch in Loader(source, several, 64, shuffle_window=150, seed=3):
        rows = batch.dense_features[:, 0]
        assert batch.weights is not None
        assert torch.equal(batch.targets["twice"], 2 * rows.long())
        assert torch.equal(batch.targets["half"], rows / 2)
        assert torch.equal(batch.weights, rows + 0.5)
        assert torch.equal(batch.groups["user"], rows.long() // 10)
        seen += rows.long().tolist()
    assert seen != sorted(seen)
    assert sorted(seen) == list(range(ROWS))
