"""The best candidates for each user: all pairs scored in bounded memory, the best of each kept."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchrec.checks import did_you_mean
from torchrec.inference.predictor import Predictor

_USERS = 8192  # for which the candidates are read once
_CANDIDATES = 8192  # scored at once
_PAIRS = 65_536  # for as many users as this leaves

_Pairs = NDArray[np.int64]


@dataclass(frozen=True)
class Keys:
    """The columns that name users and candidates.

    Attributes:
        user: of the users.
        candidate: of the candidates.
    """

    user: str
    candidate: str


class Rows(Protocol):
    """Rows that are read as often as needed: a `torchrec.datasets.source.TableSource`, or `TableRows`."""

    schema: pa.Schema

    @property
    def names(self) -> list[str]:
        """The columns, in order."""

    def scan(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Read some columns of all rows, table after table."""

    def require(self, columns: Iterable[str], what: str) -> None:
        """Refuse columns that are not there; ``what`` names who wants them."""


class TableRows:
    """The rows of a table in memory.

    Args:
        table: has them.

    Example:
        >>> rows = TableRows(pa.table({"user": [7, 9], "age": [30, 40]}))
        >>> [table.to_pydict() for table in rows.scan(["age"])]
        [{'age': [30, 40]}]
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.schema: pa.Schema = table.schema

    @property
    def names(self) -> list[str]:
        """The columns, in order."""
        return list(self.schema.names)

    def scan(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Give some of the columns, as one table; no table where there are no rows."""
        self.require(columns, "The list of columns to read")
        if self.table.num_rows:
            yield self.table.select(list(columns))

    def require(self, columns: Iterable[str], what: str) -> None:
        """Refuse columns that are not there.

        Args:
            columns: their names.
            what: who wants them, for the message.

        Raises:
            ValueError: one is not there.
        """
        for name in columns:
            if name not in self.names:
                raise ValueError(
                    f"{what} should name columns of the data. Received '{name}'"
                    f"{did_you_mean(name, self.names) or '.'}"
                )


def recommend(
    predictor: Predictor,
    users: Rows,
    candidates: Rows,
    k: int = 10,
    *,
    task: str | None = None,
    seen: Rows | None = None,
    keys: Keys | None = None,
) -> Iterator[pa.Table]:
    """Score every candidate for every user, and give the best of each user.

    Memory is that of some thousand users, of a block of pairs, of the key of every candidate, and of what
    the users at hand have seen; the candidates, and what was seen, are read once for every 8,192 users.

    Args:
        predictor: a trained model.
        users: a row a user, with some of the columns that the model reads.
        candidates: a row a candidate, with the others; the key of each comes once.
        k: how many for each user; fewer where there are no more. Default 10.
        task: of a model of several tasks, which to go by: a click or a number. Default: the only one.
        seen: rows with the keys of users and candidates: pairs that are left out, such as the log that
            the model was trained on. Default: none is.
        keys: the columns that name users and candidates. Default: the first of each source.

    Yields:
        For some users after another in the order of ``users``: key of the user, key of the candidate,
        ``rank`` from 1 on, and ``score``, falling. Of candidates with the same score the one that comes
        first in ``candidates`` is first.

    Raises:
        ValueError: columns are missing or in both sources, a candidate comes twice or its key is a list, users
            and candidates have one name for their keys, or ``k`` or ``task`` are none.
    """
    if k < 1:
        raise ValueError(f"`k` should be at least 1. Received {k}.")
    chosen = _chosen_task(predictor, task)
    of_user, of_candidate = _divided(predictor.input_columns, users.names, candidates.names)
    keys = keys or Keys(users.names[0], candidates.names[0])
    users.require([keys.user], "The key of users")
    candidates.require([keys.candidate], "The key of candidates")
    if keys.user == keys.candidate:
        raise ValueError(
            f"`keys` should be two columns, of users and of candidates. Received '{keys.user}' for both: "
            "name others, or rename one."
        )
    if seen is not None:
        seen.require([keys.user, keys.candidate], "Pairs that are left out")
    known = _candidate_keys(candidates, keys.candidate)
    k = min(k, max(len(known), 1))  # places that nobody fills would take memory all the same
    names = list(dict.fromkeys([keys.user, *of_user]))
    nobody = pa.schema([users.schema.field(name) for name in names]).empty_table()
    # At least one table, so that what is written for no users has its columns, too.
    for table in itertools.chain(users.scan(names), [nobody]):
        for start in range(0, max(table.num_rows, 1), _USERS):
            some = table.slice(start, _USERS).combine_chunks()
            if not some.num_rows:
                yield _Best(0, k).table(keys, some[keys.user], known)
                continue
            pairs = None if seen is None else _seen_pairs(seen, keys, some[keys.user], known)
            best = _Best(some.num_rows, k)
            first = 0
            for part in candidates.scan(of_candidate or [keys.candidate]):
                for at in range(0, part.num_rows, _CANDIDATES):
                    block = part.slice(at, _CANDIDATES).combine_chunks()
                    _score(predictor, chosen, some.select(of_user), block, first, pairs, best)
                    first += block.num_rows
            yield best.table(keys, some[keys.user], known)


class _Best:
    """The best candidates of some users so far: their scores, falling, and their rows."""

    def __init__(self, users: int, k: int) -> None:
        self.scores = torch.full((users, k), -torch.inf)
        self.rows = torch.full((users, k), -1)

    def take(self, users: slice, scores: Tensor, first: int) -> None:
        """Take candidates in that come after all before, from row ``first`` on.

        Args:
            users: whose they are.
            scores: ``(users, candidates)``; infinitely low for one that is left out.
            first: row of the first candidate.
        """
        rows = torch.arange(first, first + scores.size(1)).expand_as(scores)
        scores = torch.cat([self.scores[users], scores], dim=1)
        rows = torch.cat([self.rows[users], rows], dim=1)
        # Stable: of equal scores the earlier candidate stays in front.
        order = scores.sort(dim=1, descending=True, stable=True).indices[:, : self.rows.size(1)]
        self.scores[users], self.rows[users] = scores.gather(1, order), rows.gather(1, order)

    def table(self, keys: Keys, users: pa.ChunkedArray, candidates: pa.Array) -> pa.Table:
        """Return what is there as a table."""
        there = (self.scores > -torch.inf).numpy()
        user, place = np.nonzero(there)
        columns = [
            users.take(pa.array(user)),
            candidates.take(pa.array(self.rows.numpy()[there])),
            pa.array(place + 1),
            pa.array(self.scores.numpy()[there]),
        ]
        return pa.table(columns, names=[keys.user, keys.candidate, "rank", "score"])


def _score(
    predictor: Predictor,
    task: str,
    users: pa.Table,
    block: pa.Table,
    first: int,
    seen: _Pairs | None,
    best: _Best,
) -> None:
    """Score a block of candidates, whose first has row ``first``, for all of some users."""
    number, at_once = block.num_rows, max(_PAIRS // max(block.num_rows, 1), 1)
    for start in range(0, len(best.rows), at_once):
        chosen = slice(start, min(start + at_once, len(best.rows)))
        size = chosen.stop - chosen.start
        left = users.take(pa.array(np.repeat(np.arange(chosen.start, chosen.stop), number)))
        right = block.take(pa.array(np.tile(np.arange(number), size)))
        names = [*left.column_names, *right.column_names]
        pairs = pa.table([*left.columns, *right.columns], names=names)
        scores = predictor.predict_tasks(pairs)[task].view(size, number).clone()
        if seen is not None:
            _leave_out(scores, seen, chosen, first)
        best.take(chosen, scores, first)


def _leave_out(scores: Tensor, seen: _Pairs, users: slice, first: int) -> None:
    """Lower the scores of pairs that were seen, in place."""
    low, high = np.searchsorted(seen[:, 0], [users.start, users.stop])
    mine = seen[low:high]
    mine = mine[(mine[:, 1] >= first) & (mine[:, 1] < first + scores.size(1))]
    user, row = torch.from_numpy(mine[:, 0] - users.start), torch.from_numpy(mine[:, 1] - first)
    scores[user, row] = -torch.inf


def _seen_pairs(seen: Rows, keys: Keys, users: pa.ChunkedArray, candidates: pa.Array) -> _Pairs:
    """Return what some users have seen, as numbers of users and rows of candidates, by user."""
    parts: list[_Pairs] = [np.empty((0, 2), np.int64)]
    distinct = users.combine_chunks() if isinstance(users, pa.ChunkedArray) else users
    if pa.types.is_dictionary(distinct.type):
        distinct = distinct.dictionary_decode()
    entries = distinct.dictionary_encode(null_encoding="encode")
    for table in seen.scan([keys.user, keys.candidate]):
        user = pc.index_in(
            table[keys.user].cast(distinct.type), entries.dictionary, skip_nulls=True
        )
        row = pc.index_in(table[keys.candidate].cast(candidates.type), candidates, skip_nulls=True)
        both = pc.and_(user.is_valid(), row.is_valid())
        found = [one.filter(both).to_numpy().astype(np.int64) for one in (user, row)]
        parts.append(np.stack(found, axis=1))
    pairs = np.concatenate(parts)
    # A user that comes twice has seen the same both times.
    numbers = entries.indices.to_numpy()
    order = np.argsort(pairs[:, 0], kind="stable")
    pairs = pairs[order]
    starts = np.searchsorted(pairs[:, 0], numbers)
    counts = np.searchsorted(pairs[:, 0], numbers, side="right") - starts
    which = np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
    return np.stack([np.repeat(np.arange(len(numbers)), counts), pairs[which, 1]], axis=1)


def _candidate_keys(candidates: Rows, key: str) -> pa.Array:
    """Return the keys of all candidates, in their order; refuse one that comes twice, or is no single value."""
    type = candidates.schema.field(key).type
    if pa.types.is_nested(type):
        raise ValueError(
            f"Column '{key}' should hold one value a row, to name it. Received {type}."
        )
    parts = [chunk for table in candidates.scan([key]) for chunk in table[key].chunks]
    found = pa.concat_arrays(parts) if parts else pa.array([], type)
    if pa.types.is_dictionary(found.type):
        found = found.dictionary_decode()
    counts = pc.value_counts(found)
    twice = pc.greater(counts.field("counts"), 1)
    if pc.any(twice).as_py():
        which = counts.field("values").filter(twice)[0].as_py()
        raise ValueError(f"Candidates should have each '{key}' once. Received {which!r} again.")
    return found


def _divided(
    columns: Sequence[str], users: Sequence[str], candidates: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return which columns of the model are of the users, and which of the candidates."""
    for column in columns:
        if column in users and column in candidates:
            raise ValueError(
                f"A column that the model reads should be of the users or of the candidates. Received "
                f"'{column}' in both: leave it out of one."
            )
        if column not in users and column not in candidates:
            near = did_you_mean(column, [*users, *candidates]) or "."
            raise ValueError(
                f"Users or candidates should have the column '{column}', which the model reads. "
                f"Received the columns {', '.join(users)} and {', '.join(candidates)}{near}"
            )
    return [one for one in columns if one in users], [one for one in columns if one in candidates]


def _chosen_task(predictor: Predictor, task: str | None) -> str:
    """Return the task to go by: one that gives a number a sample."""
    targets = predictor.targets
    if task is None and len(targets) > 1:
        raise ValueError(
            f"`task` should be one of {', '.join(targets)}, by which candidates are ranked. Received "
            "None."
        )
    name = next(iter(targets)) if task is None else task
    if name not in targets:
        raise ValueError(
            f"`task` should be one of {', '.join(targets)}. Received '{name}'"
            f"{did_you_mean(name, list(targets)) or '.'}"
        )
    if targets[name].classes is not None:
        raise ValueError(
            f"`task` should give one number a sample. Received '{name}', of {targets[name].classes} "
            "classes."
        )
    return name
