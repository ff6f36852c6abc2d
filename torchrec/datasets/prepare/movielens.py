"""MovieLens-1M as a click problem: did somebody like the film or not?"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

from torchrec.datasets.parquet_writer import ParquetWriter

LABEL = "label"
_SEPARATOR = "\x1f"  # stands for "::", which no CSV reader takes, and occurs in no title
_RATINGS = {
    "user_id": pa.int64(),
    "movie_id": pa.int64(),
    "rating": pa.int8(),
    "timestamp": pa.int64(),
}
_USERS = {
    "user_id": pa.int64(),
    "gender": pa.string(),
    "age": pa.int64(),
    "occupation": pa.int64(),
    "zip": pa.string(),
}
_MOVIES = {"movie_id": pa.int64(), "title": pa.string(), "genres": pa.string()}
_ROW_GROUP = 65_536


def prepare_movielens(
    folder: str | os.PathLike[str], output: str | os.PathLike[str], *, drop_neutral: bool = False
) -> int:
    """Join ratings, users and movies of MovieLens-1M to one Parquet file, in order of the ratings.

    Columns: ``user_id``, ``movie_id``, ``rating``, ``timestamp`` (seconds), ``gender``, ``age``,
    ``occupation``, ``zip``, ``title``, ``genres`` (a list), ``year`` (of release, from the title) and
    ``label``, which is 1 for a rating of 4 or 5. ``rating`` decides the label: it is no feature.

    Args:
        folder: the unpacked data set, with ``ratings.dat``, ``users.dat`` and ``movies.dat``.
        output: the Parquet file.
        drop_neutral: leave ratings of 3 out, as https://arxiv.org/abs/1810.11921 does.

    Returns:
        The number of rows.

    Raises:
        ValueError: naming the file, if one is missing, is not of this form, or if a rating is of a
            user or a movie that is not there.
    """
    source = Path(folder)
    ratings = _read(source / "ratings.dat", _RATINGS)
    users = _read(source / "users.dat", _USERS)
    movies = _with_year(_read(source / "movies.dat", _MOVIES))
    if drop_neutral:
        ratings = ratings.filter(pc.not_equal(ratings["rating"], 3))
    table = _look_up(_look_up(ratings, users, "user_id"), movies, "movie_id")
    label = pc.cast(pc.greater(table["rating"], 3), pa.int8())
    table = table.append_column(LABEL, label)
    with ParquetWriter(output, table.schema) as file:
        for start in range(0, table.num_rows, _ROW_GROUP):
            file.write(table[start : start + _ROW_GROUP])
        return file.rows


def _read(path: Path, types: dict[str, pa.DataType]) -> pa.Table:
    if not path.is_file():
        raise ValueError(
            f"'{path.parent}' should hold ratings.dat, users.dat and movies.dat of MovieLens-1M. "
            f"Received a folder without {path.name}."
        )
    text = path.read_text(encoding="iso-8859-1").replace("::", _SEPARATOR)
    try:
        return csv.read_csv(
            io.BytesIO(text.encode()),
            read_options=csv.ReadOptions(column_names=list(types)),
            parse_options=csv.ParseOptions(delimiter=_SEPARATOR, quote_char=False),
            convert_options=csv.ConvertOptions(column_types=types),
        )
    except pa.ArrowInvalid as error:
        reason = str(error).split("\n")[0].replace(_SEPARATOR, "::")
        raise ValueError(
            f"'{path}' should have lines of the form {'::'.join(types)}. Received: {reason}"
        ) from error


def _with_year(movies: pa.Table) -> pa.Table:
    """Split the genres, and take the year of release from titles such as ``Heat (1995)``."""
    years = [re.search(r"\((\d{4})\)\s*$", title) for title in movies["title"].to_pylist()]
    year = pa.array([int(found[1]) if found else None for found in years], pa.int64())
    genres = pc.split_pattern(movies["genres"], "|")
    index = movies.column_names.index("genres")
    return movies.set_column(index, "genres", genres).append_column("year", year)


def _look_up(ratings: pa.Table, others: pa.Table, key: str) -> pa.Table:
    """Append the other columns of the row with the same key, keeping the order of the ratings."""
    rows = pc.index_in(ratings[key], others[key].combine_chunks())
    if rows.null_count:
        position = pc.index(pc.is_null(rows), True).as_py()
        raise ValueError(
            f"Every `{key}` of the ratings should be among the {others.num_rows} of its own file. "
            f"Received {ratings[key][position].as_py()}."
        )
    found = others.take(rows)
    for name in others.column_names:
        if name != key:
            ratings = ratings.append_column(name, found[name])
    return ratings
