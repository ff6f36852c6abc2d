"""Rows of what did not happen, for logs of what did: items that are drawn for the user of each row."""

from __future__ import annotations

import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import pyarrow as pa

from torchrec.datasets.split import hash_rows, mix_bits
from torchrec.datasets.transform.columns import Source, read_ids, whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from torchrec.datasets.features import TextType

_ATTEMPTS = 64  # draws before all items that are left to a user are listed
_BUCKETS = 64
_STEP = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class NegativeSampling:
    """How negatives are drawn.

    Args:
        user: the column of users.
        item: the column of items, and further columns that are of the item: those go with it.
        column: the name of the column of 1 and 0 that is made.
        per_positive: negatives for each row.
        by: whether all items are as likely, or each as often as it comes.
        redraw: whether other negatives are drawn in each epoch. Default True.
        seed: which are drawn. Default 0.
    """

    user: str
    item: tuple[str, ...]
    column: str = "positive"
    per_positive: int = 4
    by: Literal["uniform", "popularity"] = "uniform"
    redraw: bool = True
    seed: int = 0


class Rows(Protocol):
    """Rows of tables, as `~torchrec.datasets.source.TableSource` has them."""

    schema: pa.Schema

    def require(self, columns: Iterable[str], what: str) -> None:
        """Refuse columns that are not there."""

    def scan(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Read everything once."""

    def retyped(self, types: Mapping[str, TextType]) -> Rows:
        """Return the same rows with other types of some columns of text."""


class DrawnNegatives:
    r"""Adds rows to tables: behind each row as many with items that its user has never had.

    What the users have had, which items there are and how often they come is learned from some sources
    when it is first needed. Memory holds a row for each item; of each pair of user and item a file
    holds 8 bytes. What is drawn depends on seed, epoch, file and row alone.

    Args:
        sampling: how they are drawn.
        sources: all rows of what happened.

    Raises:
        ValueError: a column is not there, or there is one of the name of that which is made.

    Example:
        >>> from torchrec.datasets.source import TableSource
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "log.csv")
        ...     _ = path.write_text("user,item,price\n1,a,5\n1,b,7\n2,c,9\n")
        ...     source = TableSource(path)
        ...     sampling = NegativeSampling("user", ("item", "price"), per_positive=1)
        ...     drawn = source.with_drawn(DrawnNegatives(sampling, [source]))
        ...     rows = next(drawn.scan()).to_pylist()
        >>> [row["positive"] for row in rows], rows[1]
        ([1, 0, 1, 0, 1, 0], {'user': 1, 'item': 'c', 'price': 9, 'positive': 0})
    """

    def __init__(self, sampling: NegativeSampling, sources: Sequence[Rows]) -> None:
        self.sampling, self._sources = sampling, list(sources)
        self._lock = threading.Lock()
        self._learned: _Learned | None = None
        for source in sources:
            source.require(self.columns, "`data.sampled_negatives`")
            if sampling.column in source.schema.names:
                raise ValueError(
                    "`data.sampled_negatives.column` should be a new column, 1 in rows of the data and 0 "
                    f"in those that are drawn. Received '{sampling.column}', which the data have."
                )

    @property
    def columns(self) -> Set[str]:
        """Names of the columns that it reads."""
        return {self.sampling.user, *self.sampling.item}

    def schema(self, schema: pa.Schema) -> pa.Schema:
        """Return the schema of extended tables."""
        return schema.append(pa.field(self.sampling.column, pa.int8()))

    def retyped(self, types: Mapping[str, TextType]) -> DrawnNegatives:
        """Return the same of the same rows, with other types of some columns of text."""
        return DrawnNegatives(self.sampling, [one.retyped(types) for one in self._sources])

    def extend(
        self, table: pa.Table, file: str, numbers: NDArray[np.int64], epoch: int
    ) -> pa.Table:
        """Return a table with negatives behind each of its rows.

        Args:
            table: B rows with all `columns`.
            file: name of the file that they are of.
            numbers: of the rows in their file, ``(B,)``, rising.
            epoch: what is drawn anew goes by.

        Returns:
            ``B * (1 + per_positive)`` rows.

        Raises:
            ValueError: a user has had all items.
        """
        learned, rows, each = self._state(), table.num_rows, self.sampling.per_positive
        items = learned.draw(
            _ids(table, self.sampling.user)[0], self._keys(file, numbers, epoch)
        ).reshape(rows, each)
        own = np.arange(rows)[:, None]
        same = pa.array(np.repeat(own, 1 + each, axis=1).ravel())
        chosen = pa.array(np.hstack([own, rows + items]).ravel())
        names, columns = table.column_names, []
        for name in names:
            column = table[name]
            if name in self.sampling.item:
                both = [*_plain(column).chunks, *learned.items[name].chunks]
                columns.append(pa.chunked_array(both).take(chosen))
            else:
                columns.append(column.take(same))
        labels = np.zeros((rows, 1 + each), np.int8)
        labels[:, 0] = 1
        return pa.table([*columns, pa.array(labels.ravel())], names=[*names, self.sampling.column])

    def _keys(self, file: str, numbers: NDArray[np.int64], epoch: int) -> NDArray[np.uint64]:
        """Return a random number of 64 bits for each draw, ``(B * per_positive,)``."""
        if not len(numbers):
            return np.zeros(0, np.uint64)
        first = int(numbers[0])
        of_rows = hash_rows(self.sampling.seed, file, first, int(numbers[-1]) - first + 1)
        each = np.arange(1, 1 + self.sampling.per_positive, dtype=np.uint64)
        if self.sampling.redraw:
            each = each + (np.uint64(epoch) << np.uint64(32))
        return mix_bits((of_rows[numbers - first, None] ^ mix_bits(each * _STEP)).ravel())

    def _state(self) -> _Learned:
        with self._lock:
            if self._learned is None:
                self._learned = _Learned(self.sampling, self._sources)
            return self._learned


class _Learned:
    """Which items there are, how often they come, and who has had which."""

    def __init__(self, sampling: NegativeSampling, sources: Sequence[Rows]) -> None:
        self._user = sampling.user
        self._pairs = _Pairs()
        ids, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
        parts: list[pa.Table] = []
        for source in sources:
            for table in source.scan(list({sampling.user: None, **dict.fromkeys(sampling.item)})):
                users, has_user = _ids(table, sampling.user)
                items, has_item = _ids(table, sampling.item[0])
                self._pairs.add(_pair(users, items)[has_user & has_item])
                rows = np.flatnonzero(has_item)
                found, first, times = np.unique(items[rows], return_index=True, return_counts=True)
                place = _places(ids, found)
                is_new = place == len(ids)
                counts[place[~is_new]] += times[~is_new]
                ids = np.concatenate([ids, found[is_new]])
                counts = np.concatenate([counts, times[is_new]])
                new = table.select(list(sampling.item)).take(pa.array(rows[first[is_new]]))
                parts.append(new)
        self._pairs.close()
        if not len(ids):
            raise ValueError(
                f"Column '{sampling.item[0]}' should hold items to draw negatives from. Received none."
            )
        self.items = {name: _plain(pa.concat_tables(parts)[name]) for name in sampling.item}
        self._ids = ids
        weights = counts if sampling.by == "popularity" else np.ones_like(counts)
        self._weights = weights

    def draw(self, users: NDArray[np.int64], keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return an item for each key, as its place, that the user has never had.

        Args:
            users: ``(B,)``.
            keys: random, ``(B * n,)``.
        """
        if not len(users):
            return np.zeros(0, np.int64)
        users = np.repeat(users, len(keys) // len(users))
        found = _picked(self._weights, keys)
        left = np.flatnonzero(self._pairs.have(_pair(users, self._ids[found])))
        for _ in range(_ATTEMPTS):
            if not len(left):
                return found
            keys[left] = mix_bits(keys[left] + _STEP)
            found[left] = _picked(self._weights, keys[left])
            left = left[self._pairs.have(_pair(users[left], self._ids[found[left]]))]
        for user in np.unique(users[left]):
            mine = left[users[left] == user]
            had = self._pairs.have(_pair(np.full(len(self._ids), user), self._ids))
            if had.all():
                raise ValueError(
                    "`data.sampled_negatives` should find items that a user has not had. Received a "
                    f"user in '{self._user}' who has had all {len(self._ids)}: leave such users out "
                    "with `data.drop`."
                )
            keys[mine] = mix_bits(keys[mine] + _STEP)  # the last are of what was had
            found[mine] = _picked(np.where(had, 0, self._weights), keys[mine])
        return found


class _Pairs:
    """Hashes of pairs of user and item, in a file: memory is that of one bucket while it is made."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="pairs-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._sorted: NDArray[np.uint64] = np.zeros(0, np.uint64)

    def add(self, pairs: NDArray[np.uint64]) -> None:
        pairs = np.unique(pairs)
        bounds = np.arange(_BUCKETS + 1, dtype=np.uint64) * np.uint64(2**64 // _BUCKETS)
        ends = np.append(np.searchsorted(pairs, bounds[:-1]), len(pairs))
        for bucket in range(_BUCKETS):
            if ends[bucket] < ends[bucket + 1]:
                with (self._folder / str(bucket)).open("ab") as file:
                    file.write(pairs[ends[bucket] : ends[bucket + 1]].tobytes())

    def close(self) -> None:
        """Sort what was added."""
        path = self._folder / "sorted"
        with path.open("wb") as whole_file:
            for bucket in range(_BUCKETS):
                part = self._folder / str(bucket)
                if part.exists():
                    whole_file.write(np.unique(np.fromfile(part, np.uint64)).tobytes())
                    part.unlink()
        if path.stat().st_size:
            self._sorted = np.memmap(path, np.uint64, mode="r")

    def have(self, pairs: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Say which pairs there are."""
        if not len(self._sorted):
            return np.zeros(len(pairs), np.bool_)
        # In their order, so that what is looked at for one is at hand for the next.
        order = np.argsort(pairs)
        wanted = pairs[order]
        place = np.searchsorted(self._sorted, wanted).clip(max=len(self._sorted) - 1)
        found = np.empty(len(pairs), np.bool_)
        found[order] = self._sorted[place] == wanted
        return found


def _picked(weights: NDArray[np.int64], keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return a place for each random key, as likely as its weight says."""
    ends = np.cumsum(weights)
    shares = (keys >> np.uint64(11)).astype(np.float64) * 2.0**-53
    wanted = np.minimum((shares * ends[-1]).astype(np.int64), ends[-1] - 1)  # where it rounds up
    places: NDArray[np.int64] = np.searchsorted(ends, wanted, side="right")
    return places


def _places(ids: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the place of each of some ids among distinct ones; their number where it is none of them."""
    if not len(ids):
        return np.zeros(len(wanted), np.int64)
    order = np.argsort(ids)
    at = np.searchsorted(ids, wanted, sorter=order).clip(max=len(ids) - 1)
    places: NDArray[np.int64] = np.where(ids[order[at]] == wanted, order[at], len(ids))
    return places


def _pair(users: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.uint64]:
    of_users = mix_bits(users.view(np.uint64).copy())
    return mix_bits(of_users ^ (items.view(np.uint64) * _STEP))


def _ids(table: pa.Table, column: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return ids as int64, strings hashed, and which rows have one."""
    ids, valid = read_ids(whole(table[column]), Source("data.sampled_negatives", column))
    there = np.ones(len(ids), np.bool_) if valid is None else valid
    return ids.astype(np.int64), there


def _plain(column: Any) -> Any:
    """Return a column without a dictionary, as different files have different ones."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
