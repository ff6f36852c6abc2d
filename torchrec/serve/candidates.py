"""Recommendations: the best of some candidates for the users of a request."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from torchrec.datasets.files import resolve_files
from torchrec.datasets.source import TableSource
from torchrec.inference import Predictor
from torchrec.inference.columns import to_table
from torchrec.inference.recommend import Keys, TableRows, recommend
from torchrec.serve.failures import RefusedError
from torchrec.serve.limits import Limits


@dataclass(frozen=True)
class Candidates:
    """What may be recommended.

    Attributes:
        rows: a row a candidate.
        key: the column that names them, the first.
    """

    rows: TableRows
    key: str


def read_candidates(file: str | os.PathLike[str]) -> Candidates:
    """Read candidates from a Parquet file, whose first column names them.

    Args:
        file: its path; also a folder or a pattern.

    Raises:
        ValueError: it is another file, or has no rows.
    """
    files = resolve_files(file)
    if files[0].format != "parquet":
        raise ValueError(
            f"Candidates should be a Parquet file, which tells types. Received '{file}'."
        )
    source = TableSource(files)
    table = pa.concat_tables(source.scan()).combine_chunks()
    return Candidates(TableRows(table), source.names[0])


@dataclass(frozen=True)
class Wish:
    """What a request for recommendations asks.

    Attributes:
        users: a row a user.
        k: how many for each.
        candidates: a row a candidate, the first column its key. None: those of the server.
        seen: of each user, keys that are left out. None: nothing is.
        task: of several, which to go by.
    """

    users: Sequence[Mapping[str, Any]]
    k: int = 10
    candidates: Sequence[Mapping[str, Any]] | None = None
    seen: Sequence[Sequence[Any]] | None = None
    task: str | None = None


def recommended(
    predictor: Predictor, wish: Wish, candidates: Candidates | None, limits: Limits
) -> list[list[dict[str, Any]]]:
    """Return the best candidates of each user: their key and score, the best first.

    Args:
        predictor: a model.
        wish: what is asked.
        candidates: of the server.
        limits: of pairs.

    Raises:
        RefusedError: there are too many pairs (413).
        ValueError: as `torchrec.inference.recommend.recommend`; or there are no candidates.
    """
    chosen = candidates if wish.candidates is None else _own_candidates(predictor, wish.candidates)
    if chosen is None:
        raise ValueError(
            "A request should bring `candidates`, as the server has none for this model. Received none."
        )
    pairs = len(wish.users) * chosen.rows.table.num_rows
    if pairs > limits.rows:
        raise RefusedError(
            413,
            f"A request should have at most {limits.rows:,} pairs of user and candidate. Received {pairs:,}.",
        )
    given = {name for user in wish.users for name in user}
    others = {*predictor.input_columns} - {*chosen.rows.names}
    of_users = [name for name in predictor.input_columns if name in given | others]
    columns = to_table(list(wish.users), predictor.transform, of_users)
    # Users are told apart by their place: a request may ask twice for one.
    place = _free_name("user", [*columns.column_names, *chosen.rows.names])
    numbers = pa.array(range(len(wish.users)), pa.int64())
    users = TableRows(columns.add_column(0, place, numbers))
    keys = Keys(place, chosen.key)
    seen = None if wish.seen is None else _seen(wish.seen, len(wish.users), keys, chosen)
    found: list[list[dict[str, Any]]] = [[] for _ in wish.users]
    for table in recommend(
        predictor, users, chosen.rows, wish.k, task=wish.task, seen=seen, keys=keys
    ):
        names = (place, chosen.key, "score")
        for user, key, score in zip(*(table[name].to_pylist() for name in names), strict=True):
            found[user].append({chosen.key: key, "score": score})
    return found


def _own_candidates(predictor: Predictor, rows: Sequence[Mapping[str, Any]]) -> Candidates:
    if not rows or not rows[0]:
        raise ValueError(
            "`candidates` should have one or more rows, with their key. Received none."
        )
    names = list(rows[0])
    read = [name for name in predictor.input_columns if name in names]
    table = to_table(list(rows), predictor.transform, read)
    if names[0] not in read:
        try:
            key = pa.array([row.get(names[0]) for row in rows])
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise ValueError(
                f"Column '{names[0]}', the first of candidates, should hold their keys. Received what Arrow cannot "
                f"take: {' '.join(str(error).split())}."
            ) from None
        table = table.append_column(names[0], key)
    return Candidates(TableRows(table), names[0])


def _seen(
    seen: Sequence[Sequence[Any]], users: int, keys: Keys, candidates: Candidates
) -> TableRows:
    if len(seen) != users:
        raise ValueError(
            f"`seen` should have a list for each of {users} users. Received {len(seen)} lists."
        )
    type = candidates.rows.schema.field(keys.candidate).type
    places = [place for place, own in enumerate(seen) for _ in own]
    try:
        values = pa.array([key for own in seen for key in own], type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise ValueError(
            f"`seen` should have keys of candidates, of type {type}. Received what Arrow cannot take: "
            f"{' '.join(str(error).split())}."
        ) from None
    return TableRows(pa.table([pa.array(places, pa.int64()), values], [keys.user, keys.candidate]))


def _free_name(name: str, taken: Sequence[str]) -> str:
    """Return a name that no column has."""
    while name in taken:
        name = f"{name}_"
    return name
