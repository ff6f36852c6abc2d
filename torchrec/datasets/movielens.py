"""The rows of the MovieLens data sets, 20M and 25M, as GroupLens distributes them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import IterDataPipe

from torchrec.datasets.utils import LoadFiles, ReadLinesFromCSV, safe_cast

RATINGS_FILENAME = "ratings.csv"
MOVIES_FILENAME = "movies.csv"

DEFAULT_RATINGS_COLUMN_NAMES: list[str] = ["userId", "movieId", "rating", "timestamp"]
DEFAULT_MOVIES_COLUMN_NAMES: list[str] = ["movieId", "title", "genres"]
DEFAULT_COLUMN_NAMES: list[str] = DEFAULT_RATINGS_COLUMN_NAMES + DEFAULT_MOVIES_COLUMN_NAMES[1:]


def _integer(value: str) -> int:
    return safe_cast(value, int, 0)


def _number(value: str) -> float:
    return safe_cast(value, float, 0.0)


COLUMN_TYPE_CASTERS: list[Callable[[str], int | float | str]] = [
    _integer, _integer, _number, _integer, str, str,
]  # fmt: skip


def _row_to_dict(row: list[str]) -> dict[str, int | float | str]:
    """Name and convert the columns of a row; it has the movie's columns, or it ends before them."""
    return {
        name: cast(value)
        for name, cast, value in zip(DEFAULT_COLUMN_NAMES, COLUMN_TYPE_CASTERS, row, strict=False)
    }


class _Rows(IterDataPipe):  # type: ignore[type-arg]
    def __init__(
        self,
        root: str,
        include_movies_data: bool,
        row_mapper: Callable[[list[str]], Any] | None,
        open_kw: dict[str, Any],
    ) -> None:
        super().__init__()
        self.root = root
        self.include_movies_data = include_movies_data
        self.row_mapper = row_mapper
        self.open_kw = {"encoding": "utf-8", **open_kw}

    def _lines(self, name: str) -> ReadLinesFromCSV:
        files = LoadFiles([os.path.join(self.root, name)], mode="r", **self.open_kw)
        return ReadLinesFromCSV(files, skip_first_line=True)

    def __iter__(self) -> Iterator[Any]:
        movies: dict[str, list[str]] = {}
        if self.include_movies_data:
            movies = {movie[0]: movie[1:] for movie in self._lines(MOVIES_FILENAME)}
        for row in self._lines(RATINGS_FILENAME):
            if self.include_movies_data:
                if row[1] not in movies:
                    raise ValueError(
                        f"Movie {row[1]} of {RATINGS_FILENAME} should be in {MOVIES_FILENAME}. "
                        f"It is not."
                    )
                row = row + movies[row[1]]
            yield row if self.row_mapper is None else self.row_mapper(row)


def movielens_20m(
    root: str,
    *,
    include_movies_data: bool = False,
    row_mapper: Callable[[list[str]], Any] | None = _row_to_dict,
    **open_kw: Any,
) -> IterDataPipe[Any]:
    r"""The ratings of MovieLens 20M.

    Args:
        root: folder with ``ratings.csv`` and, where they are wanted, ``movies.csv``.
        include_movies_data: add title and genres to each rating. Default False.
        row_mapper: what becomes of a row, a list of strings. Default: a dictionary of converted
            values by column; None: the row as it is.
        **open_kw: further arguments of `open`.

    Raises:
        FileNotFoundError: a file is not there (when it is read).
        ValueError: a rating is of a movie that ``movies.csv`` does not have (when it is read).

    Example:
        >>> import pathlib, tempfile
        >>> from torchrec.datasets.movielens import movielens_20m
        >>> root = tempfile.mkdtemp()
        >>> _ = pathlib.Path(root, "ratings.csv").write_text(
        ...     "userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n")
        >>> next(iter(movielens_20m(root)))
        {'userId': 1, 'movieId': 2, 'rating': 3.5, 'timestamp': 1112486027}
    """
    return _Rows(root, include_movies_data, row_mapper, open_kw)


def movielens_25m(
    root: str,
    *,
    include_movies_data: bool = False,
    row_mapper: Callable[[list[str]], Any] | None = _row_to_dict,
    **open_kw: Any,
) -> IterDataPipe[Any]:
    r"""The ratings of MovieLens 25M; everything else as in :func:`movielens_20m`.

    Example:
        >>> import pathlib, tempfile
        >>> from torchrec.datasets.movielens import movielens_25m
        >>> root = tempfile.mkdtemp()
        >>> _ = pathlib.Path(root, "ratings.csv").write_text(
        ...     "userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n")
        >>> next(iter(movielens_25m(root, row_mapper=None)))
        ['1', '2', '3.5', '1112486027']
    """
    return _Rows(root, include_movies_data, row_mapper, open_kw)
