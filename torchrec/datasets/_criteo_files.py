"""The Criteo click logs as arrays on disk: from lines of text, through ids, to a shuffled set."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from torchrec.datasets.utils import safe_cast

INT_FEATURE_COUNT = 13
CAT_FEATURE_COUNT = 26
FREQUENCY_THRESHOLD = 3

_UNLABELLED = -1


def _rows_of_text(path: str, unlabelled: bool) -> Iterator[list[int]]:
    """Yield the numbers of each line: label, dense features, ids; what is missing is 0.

    Args:
        path: of the file.
        unlabelled: lines may come without a label, all of them or none; it is -1 then.
    """
    columns = 1 + INT_FEATURE_COUNT + CAT_FEATURE_COUNT
    bases = [10] * (1 + INT_FEATURE_COUNT) + [16] * CAT_FEATURE_COUNT
    wanted = None
    # What is not ASCII is no number either, and is shown in the message.
    with open(path, encoding="ascii", errors="backslashreplace") as lines:
        for number, line in enumerate(lines, start=1):
            row = line.rstrip("\n").split("\t")
            if wanted is None:
                wanted = len(row) if unlabelled and len(row) == columns - 1 else columns
            if len(row) != wanted:
                raise ValueError(
                    f"Line {number} of '{path}' should have {wanted} columns. Received {len(row)}."
                )
            row = row if wanted == columns else [str(_UNLABELLED), *row]
            try:
                yield [
                    int(value, base) if value else 0 for value, base in zip(row, bases, strict=True)
                ]
            except ValueError:
                raise ValueError(
                    f"Line {number} of '{path}' should have integers in its first columns and "
                    f"hexadecimal numbers in the last {CAT_FEATURE_COUNT}. "
                    f"Received {_first_odd(row, bases)!r}."
                ) from None


def _first_odd(row: list[str], bases: list[int]) -> str:
    """Return the first value of a row that is no number."""
    return next(
        value
        for value, base in zip(row, bases, strict=True)
        if safe_cast(value or "0", partial(int, base=base), None) is None
    )


def _require_folders(**paths: str) -> None:
    """Refuse folders to write to that are not there, before anything is read or written."""
    for name, path in paths.items():
        if not os.path.isdir(path or "."):
            raise FileNotFoundError(
                f"`{name}` should be in a folder that exists. Received '{path}'."
            )


class BinaryCriteoUtils:
    """Steps from the Criteo click logs to the arrays that `InMemoryBinaryCriteoIterDataPipe` reads.

    1. `tsv_to_npys`: lines of text to three arrays a day.
    2. `sparse_to_contiguous`: raw ids to consecutive numbers.
    3. `shuffle`: all days but the last in one random order.
    """

    @staticmethod
    def tsv_to_npys(
        in_file: str,
        out_dense_file: str,
        out_sparse_file: str,
        out_labels_file: str,
        dataset_name: str = "criteo_1tb",
        path_manager_key: str = "torchrec",
    ) -> None:
        """Write the lines of a day as three arrays.

        Dense features are ``log(x - least + 2)``, where ``least`` is the smallest of the file, float32,
        ``(rows, 13)``; ids int64, ``(rows, 26)``, each the hexadecimal number of the file; labels
        int32, ``(rows, 1)``. What is missing counts as 0. Nothing is written before all is read.

        Args:
            in_file: tab-separated text: label, 13 integers, 26 hexadecimal categories. In
                ``test.txt`` of ``"criteo_kaggle"`` there is no label; it becomes -1.
            out_dense_file: where the dense features go.
            out_sparse_file: where the ids go.
            out_labels_file: where the labels go.
            dataset_name: ``"criteo_1tb"`` or ``"criteo_kaggle"``.
            path_manager_key: taken for compatibility.

        Raises:
            ValueError: ``dataset_name`` is another, a line has not 40 columns, a number is none.
            FileNotFoundError: ``in_file`` is not there, nor a folder to write to.
        """
        if dataset_name not in ("criteo_1tb", "criteo_kaggle"):
            raise ValueError(
                f"`dataset_name` should be 'criteo_1tb' or 'criteo_kaggle'. Received {dataset_name!r}."
            )
        outputs = {
            "out_dense_file": out_dense_file,
            "out_sparse_file": out_sparse_file,
            "out_labels_file": out_labels_file,
        }
        _require_folders(**{name: os.path.dirname(path) for name, path in outputs.items()})
        columns = 1 + INT_FEATURE_COUNT + CAT_FEATURE_COUNT
        rows = np.array(
            list(_rows_of_text(in_file, unlabelled=dataset_name == "criteo_kaggle")), np.int64
        ).reshape(-1, columns)
        labels, dense, sparse = np.split(rows, [1, 1 + INT_FEATURE_COUNT], axis=1)
        dense = dense.astype(np.float32)
        # The shift is the file's own, as in arrays that others have made of these files.
        dense = np.log(dense - (dense.min(initial=np.inf) - 2))
        for path, array in (
            (out_dense_file, dense),
            (out_sparse_file, sparse),
            (out_labels_file, labels.astype(np.int32)),
        ):
            with open(path, "wb") as file:
                np.save(file, array)

    @staticmethod
    def get_shape_from_npy(path: str, path_manager_key: str = "torchrec") -> tuple[int, ...]:
        """Return the shape of an array on disk without reading the array."""
        shape: tuple[int, ...] = np.load(path, mmap_mode="r").shape
        return shape

    @staticmethod
    def get_file_row_ranges_and_remainder(
        lengths: list[int],
        rank: int,
        world_size: int,
        start_row: int = 0,
        last_row: int | None = None,
    ) -> tuple[dict[int, tuple[int, int]], int]:
        """Say which rows of which files a rank reads.

        The rows of all files, one after the other, are divided into one run a rank; where they do
        not divide evenly, the first ranks have one row more.

        Args:
            lengths: rows of each file.
            rank: the rank.
            world_size: number of ranks.
            start_row: first row in use. Default 0.
            last_row: last row in use. Default: the last one there is.

        Returns:
            The first and last row, both included, by number of the file; and how many rows were
            left over in the division.

        Raises:
            ValueError: there is no such rank, or there are no such rows.

        Example:
            >>> from torchrec.datasets.criteo import BinaryCriteoUtils
            >>> BinaryCriteoUtils.get_file_row_ranges_and_remainder([14, 17, 20], 1, 4)
            ({0: (13, 13), 1: (0, 11)}, 3)
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"`rank` should be from 0 to {world_size - 1}. Received {rank}.")
        total = sum(lengths)
        last = total - 1 if last_row is None else last_row
        if not 0 <= start_row <= last + 1 <= total:
            raise ValueError(
                f"Rows should be from 0 to {total - 1}. Received {start_row} to {last}."
            )
        share, remainder = divmod(last + 1 - start_row, world_size)
        first = start_row + rank * share + min(rank, remainder)
        stop = first + share + (rank < remainder)
        ranges, file_start = {}, 0
        for number, length in enumerate(lengths):
            low, high = max(first, file_start), min(stop, file_start + length)
            if low < high:
                ranges[number] = (low - file_start, high - 1 - file_start)
            file_start += length
        return ranges, remainder

    @staticmethod
    def load_npy_range(
        fname: str,
        start_row: int,
        num_rows: int,
        path_manager_key: str = "torchrec",
        mmap_mode: bool = False,
    ) -> NDArray[np.generic]:
        """Read some rows of a two-dimensional array on disk.

        Args:
            fname: path of the array.
            start_row: first row.
            num_rows: number of rows.
            path_manager_key: taken for compatibility.
            mmap_mode: return a view of the file, which is read where it is used. Default False.

        Raises:
            ValueError: the array has not these rows, or not two dimensions.
        """
        array = np.load(fname, mmap_mode="r")
        if array.ndim != 2:
            raise ValueError(f"'{fname}' should have two dimensions. Received {array.ndim}.")
        if start_row < 0 or num_rows < 0 or start_row + num_rows > len(array):
            raise ValueError(
                "`start_row` and `num_rows` should be at least 0, and together at most the rows of "
                f"'{fname}' ({len(array)}). "
                f"Received {start_row} + {num_rows}."
            )
        rows = array[start_row : start_row + num_rows]
        return rows if mmap_mode else np.array(rows)

    @staticmethod
    def sparse_to_contiguous(
        in_files: list[str],
        output_dir: str,
        frequency_threshold: int = FREQUENCY_THRESHOLD,
        columns: int = CAT_FEATURE_COUNT,
        path_manager_key: str = "torchrec",
        output_file_suffix: str = "_contig_freq.npy",
    ) -> None:
        """Number the ids of each column from 2 on, in the order in which they first appear.

        Ids that appear less often than ``frequency_threshold`` in all files together become 1.

        Args:
            in_files: arrays of ids, ``(rows, columns)``.
            output_dir: where the new arrays go, under the name of the old one without ``.npy``.
            frequency_threshold: how often an id must appear to have a number of its own. Default 3.
            columns: columns of the arrays. Default 26.
            path_manager_key: taken for compatibility.
            output_file_suffix: end of the new names. Default ``"_contig_freq.npy"``.

        Raises:
            ValueError: an array has another number of columns, or two have one name.
            FileNotFoundError: a file or ``output_dir`` is not there.
        """
        _require_folders(output_dir=output_dir)
        names = [os.path.basename(path).removesuffix(".npy") for path in in_files]
        if len(set(names)) != len(names):
            raise ValueError(
                f"`in_files` should have different names: results are named by them. Received {names}."
            )
        arrays = [np.load(path) for path in in_files]
        for path, array in zip(in_files, arrays, strict=True):
            if array.ndim != 2 or array.shape[1] != columns:
                raise ValueError(
                    f"'{path}' should have shape (rows, {columns}). Received {array.shape}."
                )
        for column in range(columns):
            ids = np.concatenate([array[:, column] for array in arrays])
            _, first, inverse, counts = np.unique(
                ids, return_index=True, return_inverse=True, return_counts=True
            )
            numbers = np.ones(len(counts), ids.dtype)
            frequent = np.flatnonzero(counts >= frequency_threshold)
            numbers[frequent[np.argsort(first[frequent])]] = np.arange(2, 2 + len(frequent))
            renumbered = np.split(numbers[inverse], np.cumsum([len(a) for a in arrays])[:-1])
            for array, values in zip(arrays, renumbered, strict=True):
                array[:, column] = values
        for name, array in zip(names, arrays, strict=True):
            np.save(os.path.join(output_dir, name + output_file_suffix), array)

    @staticmethod
    def shuffle(
        input_dir_labels_and_dense: str,
        input_dir_sparse: str,
        output_dir_shuffled: str,
        rows_per_day: dict[int, int],
        output_dir_full_set: str | None = None,
        days: int = 24,
        int_columns: int = INT_FEATURE_COUNT,
        sparse_columns: int = CAT_FEATURE_COUNT,
        path_manager_key: str = "torchrec",
        random_seed: int = 0,
    ) -> None:
        """Bring the rows of all days but the last, the training data, into one random order.

        The last day is copied as it is. Files are ``day_<number>_{dense,sparse,labels}.npy``. All
        files are looked at before the first one is written.

        Args:
            input_dir_labels_and_dense: folder of dense features and labels.
            input_dir_sparse: folder of ids; ``day_<number>_sparse_contig_freq.npy`` is read where
                it exists.
            output_dir_shuffled: folder of the result, another than those.
            rows_per_day: rows of each day. Files of the days in it are checked against it.
            output_dir_full_set: where ``full.npy`` goes, dense features, ids and labels of all days
                side by side in the old order. Default: it is not written.
            days: number of days. Default 24.
            int_columns: number of dense features. Default 13.
            sparse_columns: number of ids a row. Default 26.
            path_manager_key: taken for compatibility.
            random_seed: the same order for the same seed, that of `numpy.random.RandomState`.
                Default 0.

        Raises:
            ValueError: a day has another number of rows or columns, there is no day, or the result
                would be written over what is read.
            FileNotFoundError: a file or a folder is not there.
        """
        if days < 1:
            raise ValueError(f"`days` should be at least 1. Received {days}.")
        _require_folders(output_dir_shuffled=output_dir_shuffled)
        if output_dir_full_set is not None:
            _require_folders(output_dir_full_set=output_dir_full_set)
        for folder in (input_dir_labels_and_dense, input_dir_sparse):
            if os.path.realpath(folder) == os.path.realpath(output_dir_shuffled):
                raise ValueError(
                    f"`output_dir_shuffled` should be another folder than that of the input. "
                    f"Received '{output_dir_shuffled}'."
                )
        files = _DayFiles(input_dir_labels_and_dense, input_dir_sparse, rows_per_day)
        widths = {"dense": int_columns, "sparse": sparse_columns, "labels": 1}
        parts = files.load(widths, days)
        last = days - 1
        ends = np.cumsum([0, *(len(array) for array in parts["labels"][:last])])
        order = np.random.RandomState(random_seed).permutation(int(ends[-1]))
        for part, arrays in parts.items():
            rows = np.concatenate(arrays[:last]) if last else arrays[0]
            for day in range(last):
                target = os.path.join(output_dir_shuffled, f"day_{day}_{part}.npy")
                np.save(target, rows[order[ends[day] : ends[day + 1]]])
            target = os.path.join(output_dir_shuffled, f"day_{last}_{part}.npy")
            shutil.copyfile(files.path(part, last), target)
        if output_dir_full_set is not None:
            full = np.concatenate([np.concatenate(arrays) for arrays in parts.values()], axis=1)
            np.save(os.path.join(output_dir_full_set, "full.npy"), full)


@dataclass(frozen=True)
class _DayFiles:
    """The arrays of days on disk, and how many rows they should have."""

    dense_and_labels: str
    sparse: str
    rows_per_day: Mapping[int, int]

    def path(self, part: str, day: int) -> str:
        folder = self.sparse if part == "sparse" else self.dense_and_labels
        renumbered = os.path.join(folder, f"day_{day}_sparse_contig_freq.npy")
        if part == "sparse" and os.path.exists(renumbered):
            return renumbered
        return os.path.join(folder, f"day_{day}_{part}.npy")

    def load(self, widths: Mapping[str, int], days: int) -> dict[str, list[NDArray[np.generic]]]:
        """Return the arrays of each part by day, mapped to memory, once all have fit together."""
        parts: dict[str, list[NDArray[np.generic]]] = {part: [] for part in widths}
        for day in range(days):
            rows = self.rows_per_day.get(day)
            for part, width in widths.items():
                path = self.path(part, day)
                array: NDArray[np.generic] = np.load(path, mmap_mode="r")
                rows = len(array) if rows is None and array.ndim else rows
                if array.shape != (rows, width):
                    raise ValueError(
                        f"'{path}' should have shape {(rows, width)}. Received {array.shape}."
                    )
                parts[part].append(array)
        return parts
