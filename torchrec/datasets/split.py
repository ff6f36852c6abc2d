"""Which rows of a data set are for training, which for validation and which for testing.

A split is a value: it says of every row, by itself, to which part it belongs. So it can be saved, and
gives the same parts in every run, whatever the order or the number of readers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Set
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pyarrow as pa

Mask = np.ndarray[Any, np.dtype[np.bool_]]
Hashes = np.ndarray[Any, np.dtype[np.uint64]]
Part = Literal["train", "valid", "test"]
_PARTS: tuple[Part, ...] = ("train", "valid", "test")

# A split by time looks at so many times at most, chosen evenly; up to here it is exact.
_SAMPLE = 1 << 22


class Split(Protocol):
    """What says of rows whether they belong to a part of the data."""

    @property
    def columns(self) -> Set[str]:
        """Names of the columns that it reads."""

    def keep(self, table: pa.Table, file: str, first_row: int) -> Mask:
        """Say of each row of a table, which starts at ``first_row`` of a file, if it belongs here."""


@dataclass(frozen=True)
class FractionSplit:
    """A split by chance: a hash of file name, row number and seed decides.

    So rows stay in their part when files are added, and wherever the files lie: the name is that of
    ``DataFile.name``, without folders (but those that tell a value, as ``day=3``) and suffixes. In
    files of one name, rows of one number are in one part.

    Args:
        valid: fraction of the rows that is for validation, in ``[0, 1)``.
        test: fraction that is for testing. The rest is for training.
        seed: another seed, another choice. Default 0.
        part: which of the three parts this is. Default ``"train"``.

    Example:
        >>> split = FractionSplit(valid=0.1, test=0.1)
        >>> kept = [split.of(part).count("data", 0, 1000) for part in ("train", "valid", "test")]
        >>> kept, sum(kept)
        ([803, 108, 89], 1000)
    """

    valid: float
    test: float
    seed: int = 0
    part: Part = "train"
    columns: ClassVar[Set[str]] = frozenset()
    """Names of the columns that it reads: none."""

    def __post_init__(self) -> None:
        if not (0 <= self.valid < 1 and 0 <= self.test < 1 and self.valid + self.test < 1):
            raise ValueError(
                "`valid` and `test` should be fractions of 0 or more that sum to less than 1. "
                f"Received {self.valid} and {self.test}."
            )
        if self.part not in _PARTS:
            raise _no_part(self.part)

    def of(self, part: Part) -> FractionSplit:
        """Return another part of the same split."""
        return dataclasses.replace(self, part=part)

    def keep(self, table: pa.Table, file: str, first_row: int) -> Mask:
        """Say of each row of a table, which starts at ``first_row`` of a file, if it belongs here."""
        return self.keep_rows(file, first_row, table.num_rows)

    def count(self, file: str, first_row: int, rows: int) -> int:
        """Count the rows that belong here, of ``rows`` rows from ``first_row`` of a file on."""
        step, end, count = 1 << 20, first_row + rows, 0
        for at in range(first_row, end, step):
            count += int(self.keep_rows(file, at, min(step, end - at)).sum())
        return count

    def keep_rows(self, file: str, first_row: int, rows: int) -> Mask:
        """Say of each of ``rows`` rows from ``first_row`` of a file on, if it belongs here."""
        numbers = hash_rows(self.seed, file, first_row, rows)
        test, valid = round(self.test * 2**64), round((self.test + self.valid) * 2**64)
        kept: Mask = numbers >= np.uint64(valid)
        if self.part == "test":
            kept = numbers < np.uint64(test)
        elif self.part == "valid":
            kept = (numbers >= np.uint64(test)) & (numbers < np.uint64(valid))
        return kept


@dataclass(frozen=True)
class TimeSplit:
    """A split by time: before a first moment, before a second one, and from there on.

    ``find_time_split`` finds the moments that give wanted fractions.

    Args:
        column: the column of times: numbers, dates or timestamps.
        valid_from: first time that is for validation, as the number that is stored.
        test_from: first time that is for testing; infinity if none is.
        part: which of the three parts this is. Default ``"train"``.
        shares: of the rows for validation and for testing, where they were looked at; rows of one
            time stay together, so they may not be those that were asked for. Default: not known.
    """

    column: str
    valid_from: float
    test_from: float
    part: Part = "train"
    shares: tuple[float, float] | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.part not in _PARTS:
            raise _no_part(self.part)

    @property
    def columns(self) -> Set[str]:
        """Names of the columns that it reads: that of the times."""
        return {self.column}

    def of(self, part: Part) -> TimeSplit:
        """Return another part of the same split."""
        return dataclasses.replace(self, part=part)

    def keep(self, table: pa.Table, file: str, first_row: int) -> Mask:
        """Say of each row of a table, which starts at ``first_row`` of a file, if it belongs here."""
        times = _times(table, self.column)
        if self.part == "train":
            return times < self.valid_from
        if self.part == "valid":
            return (times >= self.valid_from) & (times < self.test_from)
        return times >= self.test_from


def find_time_split(
    tables: Iterable[pa.Table], column: str, valid: float, test: float
) -> TimeSplit:
    """Find the moments that split data by time, reading its column of times once.

    Rows of the same time stay together. Of more than four million rows an even sample is looked at.

    Args:
        tables: the data, such as ``source.scan([column])``.
        column: the column of times: numbers, dates or timestamps, without nulls.
        valid: fraction of the rows, those before the last ones, that is for validation.
        test: fraction of the rows, the last ones, that is for testing.

    Raises:
        ValueError: the column is not there, holds nulls or no times, or the fractions are none.

    Example:
        >>> import pyarrow as pa
        >>> find_time_split([pa.table({"at": [4, 1, 3, 2]})], "at", valid=0.25, test=0.25)
        TimeSplit(column='at', valid_from=3, test_from=4, part='train')
    """
    FractionSplit(valid, test)  # the same is asked of the fractions
    kept: list[np.ndarray[Any, Any]] = []
    hashes: list[Hashes] = []
    row, limit = 0, np.uint64(2**64 - 1)
    for table in tables:
        times = _times(table, column)
        numbers = hash_rows(0, "", row, len(times))
        row += len(times)
        chosen = numbers <= limit
        kept.append(times[chosen])
        hashes.append(numbers[chosen])
        while sum(map(len, kept)) > _SAMPLE:
            limit = limit >> np.uint64(1)
            kept, hashes = [np.concatenate(kept)], [np.concatenate(hashes)]
            chosen = hashes[0] <= limit
            kept, hashes = [kept[0][chosen]], [hashes[0][chosen]]
    if row == 0:
        raise ValueError(f"Data to split by '{column}' should hold rows. Received none.")
    times = np.sort(np.concatenate(kept))
    first = min(len(times) - 1, round(len(times) * (1 - valid - test)))
    second = min(len(times) - 1, round(len(times) * (1 - test)))
    # No number of the type need be greater than all times, and a sample may lack the last of them.
    after_all = np.float64(np.inf)
    valid_from = times[first] if valid + test else after_all
    test_from = times[second] if test else after_all
    starts = [int(np.searchsorted(times, at)) for at in (valid_from, test_from)]
    shares = (starts[1] - starts[0]) / len(times), 1 - starts[1] / len(times)
    return TimeSplit(column, valid_from.item(), test_from.item(), shares=shares)


def _no_part(part: str) -> ValueError:
    return ValueError(f"`part` should be one of {list(_PARTS)}. Received {part!r}.")


def _times(table: pa.Table, column: str) -> np.ndarray[Any, Any]:
    """Return a column of times as the numbers that are stored."""
    import pyarrow as pa
    import pyarrow.compute as pc

    times = table.column(column)
    kind = times.type
    if pa.types.is_date32(kind) or pa.types.is_time32(kind):
        times = times.cast(pa.int32())
    elif pa.types.is_temporal(kind):
        times = times.cast(pa.int64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        raise ValueError(
            f"Column '{column}', by which data is split, should hold numbers, dates or timestamps. "
            f"Received {kind}."
        )
    missing = pc.sum(pc.is_null(times, nan_is_null=True)).as_py()
    if missing:
        raise ValueError(
            f"Column '{column}', by which data is split, should hold no null. "
            f"Received {missing}; drop such rows with `{column} is None`."
        )
    return times.to_numpy()  # type: ignore[no-any-return]


def hash_rows(seed: int, file: str, first_row: int, rows: int) -> Hashes:
    """Hash row numbers to even 64-bit numbers: SplitMix64, started at a hash of seed and file."""
    start = _start_of(seed, file)
    numbers = np.arange(first_row, first_row + rows, dtype=np.uint64)
    numbers *= np.uint64(0x9E3779B97F4A7C15)
    numbers += start
    return mix_bits(numbers)


@lru_cache(1024)
def _start_of(seed: int, file: str) -> np.uint64:
    """Return where the numbers of a file start, the same for all of its chunks."""
    name = hashlib.blake2b(os.fsencode(file), digest_size=8).digest()
    start = mix_bits(np.array([seed, int.from_bytes(name, "little")], dtype=np.uint64))
    start = mix_bits(start[:1] + np.uint64(0x9E3779B97F4A7C15) * (start[1:] | np.uint64(1)))
    first: np.uint64 = start[0]
    return first


def mix_bits(numbers: Hashes) -> Hashes:
    """Mix the bits of each number, in place."""
    numbers += np.uint64(0x9E3779B97F4A7C15)
    numbers ^= numbers >> np.uint64(30)
    numbers *= np.uint64(0xBF58476D1CE4E5B9)
    numbers ^= numbers >> np.uint64(27)
    numbers *= np.uint64(0x94D049BB133111EB)
    numbers ^= numbers >> np.uint64(31)
    return numbers
