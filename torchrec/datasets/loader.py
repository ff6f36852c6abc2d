"""Batches from files: shuffled, shared between ranks, made ahead of whoever trains, and resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple, TypedDict

import torch

from torchrec.datasets._batch import Batch, join
from torchrec.datasets._chunks import CHUNK_ROWS, Chunk, ChunkStart, Reading
from torchrec.datasets._prefetcher import Prefetcher
from torchrec.datasets.data_error import DataError
from torchrec.datasets.source import TableSource

_LARGEST_CHUNK = 2 * CHUNK_ROWS
_FINGERPRINT_BYTES = 1 << 28  # read of all files together, to know them again
# 1: splits by chance went by the number of a file, not by its name. 2: a place in the share of one rank,
# which for one rank alone is what it is now.
_VERSION = 3


class LoaderState(TypedDict):
    """Where all ranks are, in JSON: ``Loader.state_dict`` makes it.

    ``row`` rows of the window of that number, in its order, have been given; ``start`` is where the
    window starts in the files.
    """

    version: int
    epoch: int
    window: int
    row: int
    start: list[int]
    settings: dict[str, int | str | bool]
    files: list[list[str]]


class Window(NamedTuple):
    """Rows that are transformed at once, and shuffled among themselves."""

    number: int
    start: ChunkStart
    chunks: list[Chunk]


class _Position(NamedTuple):
    """Where in an epoch all ranks are: that many rows into a window."""

    window: int = 0
    row: int = 0
    start: ChunkStart = ChunkStart()


class Loader:
    r"""Batches of the rows of a source, one epoch an iteration.

    Rows are read in windows, and each window is transformed at once in a worker thread, ahead of the
    consumer. Batches take rows of the window in an order drawn for it; row groups (of text, files) are
    read in another order each epoch. The batches of an epoch depend on the arguments and on ``epoch``
    alone, not on ``workers`` nor on how fast anybody is.

    Rank and world size select: all ranks see the same rows in the same order, and of each ``world_size *
    batch_size`` of them a rank gives every ``world_size``-th. So ranks make the same steps, without
    overlap or loss, and the position after a step is that of all of them: a loader of any rank and
    world size can go on from it. Each rank reads and transforms all rows for that.

    Args:
        source: the rows.
        transform: makes a ``Batch`` of a table; its ``columns``, if it has them, are all that is read.
            Called from several threads.
        batch_size: B.
        shuffle_window: rows that are shuffled among themselves, counted before any are dropped or split;
            0 keeps the order of the files. Default 131072.
        seed: another seed, another order. Default 0.
        rank, world_size: which of the rows, of how many ranks. Default: all rows.
        workers: threads that read and transform; 0 does both when a batch is asked for. Default 2.
        drop_last: whether to leave out last batches of fewer than B rows. Without, those of ranks
            differ by one row at most, and a rank without a row gives none. Default False.
        share_batches: B is of all ranks together: each gives its share of the batches that one rank would,
            whatever the number of ranks; of the last one perhaps no row. Default False.

    Raises:
        ValueError: a number is out of its range, or the transform wants a column that is not there.

    Example:
        >>> import pathlib, tempfile
        >>> from torchrec import KeyedJaggedTensor
        >>> def transform(table):
        ...     users = KeyedJaggedTensor.from_arrow(table.select(["user"]))
        ...     clicks = torch.tensor(table["click"].to_pylist())
        ...     return Batch(torch.zeros(len(table), 0), users, clicks)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "data.csv")
        ...     _ = path.write_text("user,click\n7,1\n8,0\n9,1\n")
        ...     loader = Loader(TableSource(path), transform, 2, shuffle_window=0)
        ...     [batch.labels for batch in loader]
        [tensor([1, 0]), tensor([1])]
    """

    def __init__(
        self,
        source: TableSource,
        transform: Callable[[Any], Batch],
        batch_size: int,
        *,
        shuffle_window: int = 131_072,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 2,
        drop_last: bool = False,
        share_batches: bool = False,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("shuffle_window", shuffle_window, 0),
            ("workers", workers, 0),
        ):
            if value < least:
                raise ValueError(f"`{name}` should be {least} or more. Received {value}.")
        if not 0 <= rank < world_size:
            raise ValueError(f"`rank` should be in [0, {world_size}). Received {rank}.")
        if share_batches and batch_size < world_size:
            raise ValueError(
                f"`batch_size` should be a row for each of {world_size} ranks at least, which share it. "
                f"Received {batch_size}."
            )
        self.source = source
        self.transform = transform
        self.batch_size = batch_size
        self.workers = workers
        wanted = getattr(transform, "columns", source.schema.names)
        self.columns: list[str] = list(dict.fromkeys(wanted))
        self._shuffle_window = shuffle_window
        self._seed = seed
        self._rank, self._world_size = rank, world_size
        self._drop_last = drop_last
        self._share_batches = share_batches
        # Of a step of all ranks.
        self._step_rows = batch_size if share_batches else world_size * batch_size
        self._epoch = 0
        self._position = _Position()
        self._resume: _Position | None = None
        self._files: list[list[str]] | None = None
        self._rows: tuple[int | None] | None = None  # of all ranks, once they were counted
        source.require(self.columns, "The transform")

    @property
    def epoch(self) -> int:
        """Number of the epoch that the next iteration gives; set it before each."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        if epoch != self._epoch:
            self._epoch, self._position, self._resume = epoch, _Position(), None

    @property
    def samples(self) -> int | None:
        """Number of rows of an epoch on this rank; None where only reading tells."""
        if self._rows is None:
            self._rows = (self.source.rows,)
        if self._rows[0] is None:
            return None
        steps, rest = divmod(self._rows[0], self._step_rows)
        return steps * self._share_of(self._step_rows) + (
            0 if self._drop_last else self._share_of(rest)
        )

    def _share_of(self, rows: int) -> int:
        """Return how many of the rows of a step are for this rank."""
        return max(-(-(rows - self._rank) // self._world_size), 0)

    def __len__(self) -> int:
        """Return the number of batches of an epoch on this rank.

        Raises:
            TypeError: only reading tells.
        """
        samples = self.samples
        if samples is None:
            raise TypeError(
                "The number of batches is known for Parquet files of which no rows are dropped or "
                "split by time. Received others."
            )
        if self._share_batches and self._rows is not None and self._rows[0] is not None:
            steps, rest = divmod(self._rows[0], self._step_rows)
            return steps + (rest > 0 and not self._drop_last)
        return -(-samples // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Give the batches of one epoch; after ``load_state_dict``, those that are left of it."""
        self._position, self._resume = self._resume or _Position(), None
        return self._batches(self._position)

    def state_dict(self) -> LoaderState:
        """Return where all ranks are, behind the last step that this one gave a batch of, as JSON takes it."""
        position = self._position
        return {
            "version": _VERSION,
            "epoch": self._epoch,
            "window": position.window,
            "row": position.row,
            "start": list(position.start),
            "settings": self._settings(),
            "files": self._fingerprints(),
        }

    def load_state_dict(self, state: LoaderState) -> None:
        """Go to where another loader of the same arguments was; the next iteration goes on from there.

        Rank and world size may be others: what is left of the epoch is shared among those that there
        are now. Of Parquet files nothing before that place is read, but for the row group that it is in.

        Args:
            state: from ``state_dict`` of any rank, after the same step on all.

        Raises:
            ValueError: an argument differs, or a file is another one or was changed.
        """
        self.check_state_dict(state)
        self._epoch = state["epoch"]
        start = ChunkStart(*state["start"][: len(ChunkStart._fields)])
        self._position = _Position(state["window"], state["row"], start)
        self._resume = self._position

    def check_state_dict(self, state: LoaderState) -> None:
        """Check that a state is of the same arguments and files as this loader has.

        Args:
            state: from ``state_dict``.

        Raises:
            ValueError: an argument differs, or a file is another one or was changed.
        """
        alone = state["settings"].get("world_size", 1) == 1
        if state["version"] not in ((2, _VERSION) if alone else (_VERSION,)):
            raise ValueError(
                f"The state of a loader should be of version {_VERSION}, or 2 of one rank alone. Received "
                f"version {state['version']}{'' if alone else ' of several ranks'}: go on with the "
                "version of this library that wrote it."
            )
        for name, mine in self._settings().items():
            theirs = state["settings"].get(name)
            if theirs != mine:
                raise ValueError(
                    f"`{name}` should be as it was when the state was saved ({theirs}). "
                    f"Received {mine}."
                )
        self._require_same_files(state["files"])

    def _settings(self) -> dict[str, int | str | bool]:
        drop = self.source.drop
        return {
            "batch_size": self.batch_size,
            "shuffle_window": self._shuffle_window,
            "seed": self._seed,
            "drop_last": self._drop_last,
            "drop": "" if drop is None else drop.text,
            "split": repr(self.source.split),
        }

    def _fingerprints(self) -> list[list[str]]:
        if self._files is None:
            files = self.source.files
            most = _FINGERPRINT_BYTES // len(files)
            self._files = [[file.path, file.fingerprint(most)] for file in files]
        return self._files

    def _require_same_files(self, saved: list[list[str]]) -> None:
        mine = self._fingerprints()
        if len(saved) != len(mine):
            raise ValueError(
                f"There should be {len(saved)} data files, as when the state was saved. "
                f"Received {len(mine)}."
            )
        for (path, fingerprint), (old_path, old) in zip(mine, saved, strict=True):
            if fingerprint != old:
                raise ValueError(
                    f"Data file '{path}' should be as '{old_path}' was when the state was saved. "
                    "Received another content: start anew, or bring the file back."
                )

    def _reading(self) -> Reading:
        window = self._shuffle_window
        return Reading(
            seed_of(self._seed, self._epoch) if window else None,
            min(window or _LARGEST_CHUNK, _LARGEST_CHUNK),
        )

    def _batches(self, position: _Position) -> Iterator[Batch]:
        epoch = self._epoch
        rank, world_size, step_rows = self._rank, self._world_size, self._step_rows
        begun: list[Batch] = []  # parts of a batch that goes on in the next window
        missing = step_rows  # rows of this step, of all ranks, that were not given yet
        with closing(self._windows(position)) as windows:
            for window, rows in windows:
                count = 0 if rows is None else rows.dense_features.size(0)
                row = position.row if window.number == position.window else 0
                if rows is None or row == count:
                    continue
                sizes = _cut(count - row, missing, step_rows)
                order = self._order(epoch, window.number, count)[row:]
                # Of each step every world_size-th row, also where it began in another window.
                given = (step_rows - missing) % world_size
                own = [
                    part[(rank - (0 if number else given)) % world_size :: world_size]
                    for number, part in enumerate(order.split(sizes))
                ]
                parts = iter(rows.select_batches(torch.cat(own), [len(p) for p in own if len(p)]))
                if self._share_batches and len(own[-1]) == 0:
                    (nothing,) = rows.select_batches(own[-1], [0])
                del rows
                for size, mine in zip(sizes, own, strict=True):
                    if len(mine):
                        begun.append(next(parts))
                    row, missing = row + size, missing - size
                    if missing == 0:
                        # Before the batch is given: who takes it asks then where the loader is.
                        self._position = _Position(window.number, row, window.start)
                        yield join(begun)
                        begun, missing = [], step_rows
        if missing < step_rows and not self._drop_last:
            self._position = _Position(window.number, row, window.start)
            if begun:
                yield join(begun)
            elif self._share_batches:
                yield nothing  # of the last window, which had no row of this step for this rank

    def _order(self, epoch: int, window: int, count: int) -> torch.Tensor:
        if self._shuffle_window == 0:
            return torch.arange(count)
        seed = seed_of(self._seed, epoch, 0, window)  # 0: where there was a rank once
        return torch.randperm(count, generator=torch.Generator().manual_seed(seed))

    def _windows(self, position: _Position) -> Generator[tuple[Window, Batch | None], None, None]:
        """Give the windows from a place on; each with its rows, None if none is left of them."""
        windows, load = self._read(position), partial(self._load, epoch=self._epoch)
        if self.workers == 0:
            for window in windows:
                yield load(window)
            return
        with closing(Prefetcher(windows, load, self.workers)) as loaded:
            yield from loaded

    def _read(self, position: _Position) -> Generator[Window, None, None]:
        wanted = self._shuffle_window or CHUNK_ROWS
        chunks: list[Chunk] = []
        rows, index = 0, position.window
        for chunk in self.source.chunks(
            self.columns, self._reading(), position.start, use_threads=self.workers > 2
        ):
            chunks.append(chunk)
            rows += chunk.rows
            if rows >= wanted:
                yield Window(index, chunks[0].start, chunks)
                chunks, rows, index = [], 0, index + 1
        if chunks:
            yield Window(index, chunks[0].start, chunks)

    def _load(self, window: Window, epoch: int) -> tuple[Window, Batch | None]:
        import pyarrow as pa

        tables = [self.source.decode(chunk, self.columns, epoch) for chunk in window.chunks]
        tables = [table for table in tables if table.num_rows]
        if not tables:
            return window, None
        try:
            return window, self.transform(pa.concat_tables(tables))
        except (ValueError, TypeError, IndexError) as error:
            paths = sorted({self.source.files[chunk.file].path for chunk in window.chunks})
            named = f"{error} Found in '{paths[0]}'" + (" or after." if len(paths) > 1 else ".")
            if isinstance(error, DataError):
                raise DataError(named, error.remedy) from error
            if type(error) in (ValueError, TypeError, IndexError):
                raise type(error)(named) from error
            raise


def _cut(rows: int, first: int, size: int) -> list[int]:
    """Cut rows to batches: one of ``first``, then those of ``size``, then what is left; none is empty."""
    sizes = [min(first, rows)] + [size] * ((rows - first) // size)
    return [size for size in [*sizes, rows - sum(sizes)] if size]


def seed_of(*numbers: int) -> int:
    """Mix numbers to a seed of 63 bits."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
