"""The Criteo click logs: rows of the text files, and batches from arrays on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, IterDataPipe, get_worker_info

from torchrec.datasets._criteo_files import (
    CAT_FEATURE_COUNT,
    FREQUENCY_THRESHOLD,
    INT_FEATURE_COUNT,
    BinaryCriteoUtils,
)
from torchrec.datasets.utils import Batch, LoadFiles, ReadLinesFromCSV, safe_cast
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

__all__ = [
    "CAT_FEATURE_COUNT",
    "COLUMN_TYPE_CASTERS",
    "DAYS",
    "DEFAULT_CAT_NAMES",
    "DEFAULT_COLUMN_NAMES",
    "DEFAULT_INT_NAMES",
    "DEFAULT_LABEL_NAME",
    "FREQUENCY_THRESHOLD",
    "INT_FEATURE_COUNT",
    "TOTAL_TRAINING_SAMPLES",
    "BinaryCriteoUtils",
    "CriteoIterDataPipe",
    "InMemoryBinaryCriteoIterDataPipe",
    "criteo_kaggle",
    "criteo_terabyte",
]

DAYS = 24
TOTAL_TRAINING_SAMPLES = 4_195_197_692  # rows of the first 23 days of the 1 TB logs
DEFAULT_LABEL_NAME = "label"
DEFAULT_INT_NAMES: list[str] = [f"int_{i}" for i in range(INT_FEATURE_COUNT)]
DEFAULT_CAT_NAMES: list[str] = [f"cat_{i}" for i in range(CAT_FEATURE_COUNT)]
DEFAULT_COLUMN_NAMES: list[str] = [DEFAULT_LABEL_NAME, *DEFAULT_INT_NAMES, *DEFAULT_CAT_NAMES]

_STAGES = ("train", "val", "test")


def _integer(value: str) -> int:
    return safe_cast(value, int, 0)


COLUMN_TYPE_CASTERS: list[Callable[[str], int | str]] = [
    _integer,
    *[_integer] * INT_FEATURE_COUNT,
    *[str] * CAT_FEATURE_COUNT,
]


def _row_to_dict(row: list[str]) -> dict[str, int | str]:
    """Name and convert the columns of a row; a missing number is 0, a missing category ``""``."""
    columns = len(DEFAULT_COLUMN_NAMES)
    if len(row) not in (columns, columns - 1):
        raise ValueError(
            f"A row of the Criteo logs should have {columns} columns, or {columns - 1} without the "
            f"label. Received {len(row)}: {', '.join(map(repr, row[:3]))}."
        )
    first = columns - len(row)  # the label, which a row for prediction has not
    return {
        name: cast(value)
        for name, cast, value in zip(
            DEFAULT_COLUMN_NAMES[first:], COLUMN_TYPE_CASTERS[first:], row, strict=True
        )
    }


class CriteoIterDataPipe(IterDataPipe):  # type: ignore[type-arg]
    r"""The rows of files of the Criteo click logs; with several workers each reads some files.

    Args:
        paths: tab-separated text: label, 13 integers, 26 hexadecimal categories. A row may be
            without the label, as in ``test.txt``; its dictionary is, too.
        row_mapper: what becomes of a row, a list of strings. Default: a dictionary by column,
            numbers converted; None: the row as it is.
        **open_kw: further arguments of `open`.

    Example:
        >>> import pathlib, tempfile
        >>> from torchrec.datasets.criteo import CriteoIterDataPipe
        >>> path = pathlib.Path(tempfile.mkdtemp(), "day_0")
        >>> _ = path.write_text("\t".join(["1", *["5"] * 13, *["68fd1e64"] * 26]))
        >>> row = next(iter(CriteoIterDataPipe([str(path)])))
        >>> row["label"], row["int_0"], row["cat_25"]
        (1, 5, '68fd1e64')
    """

    def __init__(
        self,
        paths: Iterable[str],
        *,
        row_mapper: Callable[[list[str]], Any] | None = _row_to_dict,
        **open_kw: Any,
    ) -> None:
        super().__init__()
        self.paths = paths
        self.row_mapper = row_mapper
        self.open_kw = open_kw

    def __iter__(self) -> Iterator[Any]:
        paths = list(self.paths)
        worker = get_worker_info()
        if worker is not None:
            paths = paths[worker.id :: worker.num_workers]
        rows = ReadLinesFromCSV(LoadFiles(paths, mode="r", **self.open_kw), delimiter="\t")
        yield from rows if self.row_mapper is None else map(self.row_mapper, rows)


def criteo_terabyte(
    paths: Iterable[str],
    *,
    row_mapper: Callable[[list[str]], Any] | None = _row_to_dict,
    **open_kw: Any,
) -> IterDataPipe[Any]:
    """The Criteo 1 TB click logs: a :class:`CriteoIterDataPipe` of the files of some days.

    Args:
        paths: files ``day_0`` to ``day_23``, or some of them.
        row_mapper: as in :class:`CriteoIterDataPipe`.
        **open_kw: further arguments of `open`.

    Example:
        >>> from torchrec.datasets.criteo import criteo_terabyte
        >>> rows = criteo_terabyte(f"day_{day}" for day in range(24))
    """
    return CriteoIterDataPipe(list(paths), row_mapper=row_mapper, **open_kw)


def criteo_kaggle(
    path: str,
    *,
    row_mapper: Callable[[list[str]], Any] | None = _row_to_dict,
    **open_kw: Any,
) -> IterDataPipe[Any]:
    """The Criteo display advertising data of 2014: a :class:`CriteoIterDataPipe` of one file.

    Args:
        path: ``train.txt``, or ``test.txt``, which has no labels.
        row_mapper: as in :class:`CriteoIterDataPipe`.
        **open_kw: further arguments of `open`.

    Example:
        >>> from torchrec.datasets.criteo import criteo_kaggle
        >>> rows = criteo_kaggle("train.txt", row_mapper=None)
    """
    return CriteoIterDataPipe([path], row_mapper=row_mapper, **open_kw)


class _Rows:
    """The rows of several two-dimensional arrays on disk, counted through."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths
        self.arrays = [np.load(path, mmap_mode="r") for path in paths]
        self.starts = np.cumsum([0, *(len(array) for array in self.arrays)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.generic]:
        """Copy rows, in the given order, into memory."""
        files = np.searchsorted(self.starts, rows, side="right") - 1
        taken = np.empty((len(rows), self.arrays[0].shape[1]), self.arrays[0].dtype)
        for number in np.unique(files):
            here = files == number
            taken[here] = self.arrays[number][rows[here] - self.starts[number]]
        return taken


class InMemoryBinaryCriteoIterDataPipe(IterableDataset[Batch]):
    """Batches of the Criteo click logs from arrays on disk, made by :class:`BinaryCriteoUtils`.

    Ranks take batches in turn, so every rank has equally many. Rows beyond the last full round are
    divided evenly, as a batch of their own or, where there are fewer of them than ranks, as rows
    more in the last batch.

    Args:
        stage: ``"train"``: all rows; ``"val"``: the first half of them; ``"test"``: the second.
        dense_paths: arrays of dense features, ``(rows, 13)`` floating.
        sparse_paths: arrays of ids, ``(rows, 26)`` integer.
        labels_paths: arrays of labels, ``(rows, 1)``.
        batch_size: samples a batch, B.
        rank: this rank.
        world_size: number of ranks.
        drop_last: leave the rows beyond the last full round out. Default False.
        shuffle_batches: bring the rows of each batch into a new random order every time, with
            PyTorch's generator. Default False.
        shuffle_training_set: deal the rows of all files out in a random order, in stage
            ``"train"``. Default False.
        shuffle_training_set_random_seed: the same order for the same seed. Default 0.
        mmap_mode: read rows when they are asked for, not on construction. Default False.
        hashes: for each of the 26 features a number of rows; ids are taken modulo it. Default:
            ids stay as they are.
        path_manager_key: taken for compatibility.

    Raises:
        ValueError: the stage is another, the files do not belong together, or a rank or size is
            impossible.

    Example:
        >>> import numpy, pathlib, tempfile
        >>> from torchrec.datasets.criteo import InMemoryBinaryCriteoIterDataPipe
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> paths = [folder / f"day_0_{part}.npy" for part in ("dense", "sparse", "labels")]
        >>> for path, width, dtype in zip(paths, (13, 26, 1), ("f4", "i8", "i4")):
        ...     numpy.save(path, numpy.ones((5, width), dtype))
        >>> batches = InMemoryBinaryCriteoIterDataPipe(
        ...     "train", *([str(path)] for path in paths), batch_size=2, rank=0, world_size=1)
        >>> [batch.labels.tolist() for batch in batches]
        [[1, 1], [1, 1], [1]]
    """

    def __init__(
        self,
        stage: str,
        dense_paths: list[str],
        sparse_paths: list[str],
        labels_paths: list[str],
        batch_size: int,
        rank: int,
        world_size: int,
        drop_last: bool | None = False,
        shuffle_batches: bool = False,
        shuffle_training_set: bool = False,
        shuffle_training_set_random_seed: int = 0,
        mmap_mode: bool = False,
        hashes: list[int] | None = None,
        path_manager_key: str = "torchrec",
    ) -> None:
        super().__init__()
        if stage not in _STAGES:
            raise ValueError(f"`stage` should be one of {', '.join(_STAGES)}. Received {stage!r}.")
        if batch_size < 1:
            raise ValueError(f"`batch_size` should be at least 1. Received {batch_size}.")
        if not 0 <= rank < world_size:
            raise ValueError(f"`rank` should be from 0 to {world_size - 1}. Received {rank}.")
        if hashes is not None and len(hashes) != CAT_FEATURE_COUNT:
            raise ValueError(
                f"`hashes` should have {CAT_FEATURE_COUNT} entries. Received {len(hashes)}."
            )
        self._parts = [_Rows(paths) for paths in (dense_paths, sparse_paths, labels_paths)]
        self._check_parts()
        self._shuffle_batches = shuffle_batches
        self._hashes = None if hashes is None else np.array(hashes)[None]
        order = self._rows_of_stage(stage)
        if shuffle_training_set and stage == "train":
            order = np.random.default_rng(shuffle_training_set_random_seed).permutation(order)
        self._rows = _deal(order, batch_size, rank, world_size, bool(drop_last))
        self._batches: Sequence[Callable[[], list[NDArray[np.generic]]]]
        if mmap_mode:
            self._batches = [partial(self._load, rows) for rows in self._rows]
        else:
            self._batches = [partial(list, self._load(rows)) for rows in self._rows]
        self.keys: list[str] = DEFAULT_CAT_NAMES

    def __iter__(self) -> Iterator[Batch]:
        for load in self._batches:
            dense, sparse, labels = load()
            if self._shuffle_batches:
                order = torch.randperm(len(labels)).numpy()
                dense, sparse, labels = dense[order], sparse[order], labels[order]
            yield self._batch(dense, sparse, labels)

    def __len__(self) -> int:
        return len(self._batches)

    def _check_parts(self) -> None:
        names = ("dense_paths", "sparse_paths", "labels_paths")
        widths = (INT_FEATURE_COUNT, CAT_FEATURE_COUNT, 1)
        for name, part, width in zip(names, self._parts, widths, strict=True):
            if not part.arrays:
                raise ValueError(f"`{name}` should have at least one path. Received 0.")
            for path, array in zip(part.paths, part.arrays, strict=True):
                if array.ndim != 2 or array.shape[1] != width:
                    raise ValueError(
                        f"'{path}' of `{name}` should have shape (rows, {width}). "
                        f"Received {array.shape}."
                    )
            if part.starts.tolist() != self._parts[0].starts.tolist():
                raise ValueError(
                    f"Files of `{name}` should have as many rows as those of `dense_paths` "
                    f"({np.diff(self._parts[0].starts).tolist()}). "
                    f"Received {np.diff(part.starts).tolist()}."
                )

    def _rows_of_stage(self, stage: str) -> NDArray[np.int64]:
        rows = np.arange(len(self._parts[0]))
        half = (len(rows) + 1) // 2
        return {"train": rows, "val": rows[:half], "test": rows[half:]}[stage]

    def _load(self, rows: NDArray[np.int64]) -> list[NDArray[np.generic]]:
        dense, sparse, labels = (part.take(rows) for part in self._parts)
        if self._hashes is not None:
            sparse = sparse % self._hashes
        return [dense, sparse, labels]

    def _batch(
        self,
        dense: NDArray[np.generic],
        sparse: NDArray[np.generic],
        labels: NDArray[np.generic],
    ) -> Batch:
        samples = len(labels)
        ids = torch.from_numpy(np.ascontiguousarray(sparse.T).reshape(-1))
        return Batch(
            dense_features=torch.from_numpy(dense),
            sparse_features=KeyedJaggedTensor(
                keys=self.keys,
                values=ids,
                lengths=torch.ones(CAT_FEATURE_COUNT * samples, dtype=torch.int32),
                offsets=torch.arange(CAT_FEATURE_COUNT * samples + 1, dtype=torch.int32),
                stride=samples,
                length_per_key=[samples] * CAT_FEATURE_COUNT,
            ),
            labels=torch.from_numpy(labels.reshape(-1)),
        )


def _deal(
    rows: NDArray[np.int64], batch_size: int, rank: int, world_size: int, drop_last: bool
) -> list[NDArray[np.int64]]:
    """Return the rows of each batch of a rank."""
    a_round = batch_size * world_size
    rounds = len(rows) // a_round
    rest = len(rows) - rounds * a_round
    # Fewer rows than ranks are no batch for everyone: the last round is made longer instead.
    longer = not drop_last and 0 < rest < world_size and rounds > 0
    starts = [number * a_round for number in range(rounds - longer)]
    batches = [rows[start:][rank * batch_size : (rank + 1) * batch_size] for start in starts]
    if not drop_last and rest:
        end = np.array_split(rows[len(starts) * a_round :], world_size)
        batches.append(end[rank])
    return batches
