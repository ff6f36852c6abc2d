"""The Criteo click logs as arrays on disk: from lines of text, through ids, to a shuffled set."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

INT_FEATURE_COUNT = 13
CAT_FEATURE_COUNT = 26
FREQUENCY_THRESHOLD = 3

_CHUNK_ROWS = 65_536


def _rows_of_text(path: str) -> Iterator[tuple[list[int], list[int], int]]:
    """Yield the dense numbers, the ids and the label of each line; what is missing is 0."""
    columns = 1 + INT_FEATURE_COUNT + CAT_FEATURE_COUNT
    with open(path, encoding="ascii") as lines:
        for number, line in enumerate(lines, start=1):
            row = line.rstrip("\n").split("\t")
            if len(row) != columns:
                raise ValueError(
                    f"Line {number} of '{path}' should have {columns} columns. Received {len(row)}."
                )
            dense = [int(value) if value else 0 for value in row[1 : 1 + INT_FEATURE_COUNT]]
            ids = [int(value, 16) if value else 0 for value in row[1 + INT_FEATURE_COUNT :]]
            yield dense, ids, int(row[0])


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

        Dense features are ``log(x + 3)``, float32, ``(rows, 13)``; ids int64, ``(rows, 26)``, each
        the hexadecimal number of the file; labels int32, ``(rows, 1)``. What is missing counts as 0.

        Args:
            in_file: tab-separated text: label, 13 integers, 26 hexadecimal categories.
            out_dense_file: where the dense features go.
            out_sparse_file: where the ids go.
            out_labels_file: where the labels go.
            dataset_name: ``"criteo_1tb"`` or ``"criteo_kaggle"``; both have the same columns.
            path_manager_key: taken for compatibility.

        Raises:
            ValueError: ``dataset_name`` is another, a line has not 40 columns, a number is below -2.
            FileNotFoundError: ``in_file`` is not there.
        """
        if dataset_name not in ("criteo_1tb", "criteo_kaggle"):
            raise ValueError(
                f"`dataset_name` should be 'criteo_1tb' or 'criteo_kaggle'. Received {dataset_name!r}."
            )
        rows = list(_rows_of_text(in_file))
        dense = np.array([row[0] for row in rows], np.float32).reshape(-1, INT_FEATURE_COUNT)
        if dense.size and dense.min() < -2:
            raise ValueError(
                f"Dense features of '{in_file}' should be at least -2: the logarithm of x + 3 is "
                f"taken. Received {dense.min():.0f}."
            )
        sparse = np.array([row[1] for row in rows], np.int64).reshape(-1, CAT_FEATURE_COUNT)
        labels = np.array([row[2] for row in rows], np.int32).reshape(-1, 1)
        for path, array in (
            (out_dense_file, np.log(dense + 3)),
            (out_sparse_file, sparse),
            (out_labels_file, labels),
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
        if start_row < 0 or start_row + num_rows > len(array):
            raise ValueError(
                f"`start_row` + `num_rows` should be at most the rows of '{fname}' ({len(array)}). "
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
            ValueError: an array has another number of columns.
        """
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
        for path, array in zip(in_files, arrays, strict=True):
            name = os.path.basename(path).removesuffix(".npy") + output_file_suffix
            np.save(os.path.join(output_dir, name), array)

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

        The last day is copied as it is. Files are ``day_<number>_{dense,sparse,labels}.npy``.

        Args:
            input_dir_labels_and_dense: folder of dense features and labels.
            input_dir_sparse: folder of ids; ``day_<number>_sparse_contig_freq.npy`` is read where
                it exists.
            output_dir_shuffled: folder of the result.
            rows_per_day: rows of each day.
            output_dir_full_set: where ``full.npy`` goes, dense features, ids and labels of all days
                side by side in the old order. Default: it is not written.
            days: number of days. Default 24.
            int_columns: number of dense features. Default 13.
            sparse_columns: number of ids a row. Default 26.
            path_manager_key: taken for compatibility.
            random_seed: the same order for the same seed. Default 0.

        Raises:
            ValueError: a day has another number of rows or columns.
            FileNotFoundError: a file is not there.
        """
        widths = {"dense": int_columns, "sparse": sparse_columns, "labels": 1}

        def source(part: str, day: int) -> str:
            folder = input_dir_sparse if part == "sparse" else input_dir_labels_and_dense
            renumbered = os.path.join(folder, f"day_{day}_sparse_contig_freq.npy")
            if part == "sparse" and os.path.exists(renumbered):
                return renumbered
            return os.path.join(folder, f"day_{day}_{part}.npy")

        def load(part: str, day: int) -> NDArray[np.generic]:
            path = source(part, day)
            array: NDArray[np.generic] = np.load(path, mmap_mode="r")
            if array.shape != (rows_per_day[day], widths[part]):
                raise ValueError(
                    f"'{path}' should have shape {(rows_per_day[day], widths[part])}. "
                    f"Received {array.shape}."
                )
            return array

        training_days = range(days - 1)
        ends = np.cumsum([rows_per_day[day] for day in training_days])
        order = np.random.default_rng(random_seed).permutation(int(ends[-1]) if days > 1 else 0)
        for part in widths:
            if days > 1:
                rows = np.concatenate([load(part, day) for day in training_days])
            for day, stop in zip(training_days, ends, strict=True):
                chosen = order[stop - rows_per_day[day] : stop]
                target = os.path.join(output_dir_shuffled, f"day_{day}_{part}.npy")
                np.save(target, rows[chosen])
            last = os.path.join(output_dir_shuffled, f"day_{days - 1}_{part}.npy")
            load(part, days - 1)
            shutil.copyfile(source(part, days - 1), last)
        if output_dir_full_set is not None:
            parts = [np.concatenate([load(part, day) for day in range(days)]) for part in widths]
            np.save(os.path.join(output_dir_full_set, "full.npy"), np.concatenate(parts, axis=1))
