"""What is counted of a column before anything is decided about it, in one pass and bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from torchrec.datasets.transform.columns import (
    TIMES,
    Array,
    Source,
    chunks_of,
    innermost,
    kind_of,
    read_ids,
    read_lists,
    read_numbers,
)
from torchrec.datasets.transform.sketches import DistinctCounter, each_once
from torchrec.experiment.propose._text import NUMBER, Text, look_at_text

# Distinct values are counted exactly below this, then estimated within about 0.4 %.
EXACT = 65_536
# Beyond so many it does not matter how many distinct measurements there are.
_MEASURED = 4096
_ENDLESS = 1 << 62
_MOST = 10**18  # of integers in lists of text


class ColumnStatistics:
    """Counts of one column, or of the values in its lists.

    Args:
        name: of the column.
        sample: its first values.
        chosen: whether a person chose its type, so that strings are no numbers. Default False.

    Attributes:
        text: what its strings are, if it holds some.
        kind: what a value is, see `torchrec.datasets.transform.columns.kind_of`.
        rows: rows seen.
        nulls: rows that are null, not a number, or infinite.
        values: values seen that are none of these.
        minimum, maximum: of the numbers among them.
        whole: whether all numbers were whole.
        longest: longest list.
        shortest: shortest list with a value.
    """

    def __init__(self, name: str, sample: pa.ChunkedArray, chosen: bool = False) -> None:
        self.name = name
        self.type = type = sample.type
        inner = innermost(type)
        self.is_list, self.kind = inner is not type, kind_of(inner)
        self.text = Text()
        if self.kind == "strings" and not self.is_list:
            self.text = look_at_text(name, sample, chosen)
            self.is_list = self.text.separator is not None
            if self.text.is_measured:
                self.kind = "numbers"
        self.rows = self.nulls = self.values = self.longest = 0
        self.shortest = _ENDLESS
        self.minimum, self.maximum = float("inf"), float("-inf")
        self.whole = True
        self._counter = DistinctCounter(EXACT)
        # Of the parts of strings as integers, as long as all are.
        self._integers = DistinctCounter(EXACT) if self.text.separator else None
        self._source = Source(name, name)

    def add(self, table: pa.Table) -> None:
        """Count the rows of a table."""
        self.__dict__.pop("distinct", None)  # what was worked out before is of fewer rows
        for array in chunks_of(table, self.name):
            self.rows += len(array)
            if self.is_list:
                separator = self.text.separator
                lists = read_lists(array, separator)
                self.nulls += lists.missing
                self.longest = max(self.longest, int(lists.lengths.max(initial=0)))
                there = lists.lengths[lists.lengths > 0]
                self.shortest = min(self.shortest, int(there.min(initial=_ENDLESS)))
                self._add_values(lists.values if separator is None else self._parts(lists.values))
            else:
                self.nulls += self._add_values(array)

    @cached_property
    def distinct(self) -> int:
        """Number of distinct values: exact below `EXACT`; of quantities, where they are few."""
        return self._counter.estimate()

    @property
    def holds_integers(self) -> bool:
        """Whether values are integers, or parts of strings that can be read as such."""
        return self.kind == "integers" or (self._integers is not None and self.values > 0)

    def distinct_with(self, others: Iterable[ColumnStatistics]) -> int:
        """Return the number of distinct values of this and other columns together."""
        together = DistinctCounter(EXACT)
        for counter in _comparable([self, *others]):
            together.merge(counter)
        return together.estimate()

    def overlap(self, other: ColumnStatistics) -> float:
        """Return which share of the distinct values of the column with fewer is in the other."""
        one, two = _comparable([self, other])
        return one.overlap(two)

    @property
    def mean_length(self) -> float:
        """Mean number of values in a list that is not null."""
        return self.values / max(1, self.rows - self.nulls)

    def _add_values(self, array: pa.Array) -> int:
        """Count values; return how many were missing."""
        if self.kind in ("nulls", "other"):
            return len(array) if self.kind == "nulls" else array.null_count
        if self.kind == "numbers" or self.kind in TIMES:
            found = read_numbers(array).present()
            present = len(found)
            self._add_range(found)
            counted = self._few_of(found).view(np.int64)
        else:
            counted, present = self._ids_of(array)
            if self.kind == "integers":
                self._add_range(counted)
            elif self._integers is not None:
                self._add_integers(self._integers, array)
        self._counter.update(counted)
        self.values += present
        return len(array) - present

    def _ids_of(self, array: pa.Array) -> tuple[Array, int]:
        """Return the ids that come, those of a dictionary each once, and how many values are not missing."""
        if pt.is_dictionary(array.type) and len(array.dictionary) <= len(array):
            positions = array.indices.drop_null().to_numpy()
            ids, valid = read_ids(array.dictionary, self._source)
            if valid is not None:
                positions = positions[valid[positions]]
            return ids[each_once(positions, len(ids))], len(positions)
        ids, valid = read_ids(array, self._source)
        ids = ids if valid is None else ids[valid]
        return ids, len(ids)

    def _few_of(self, numbers: Array) -> Array:
        """Return the numbers to count: all if whole, as ids may be; some of measurements, none if enough are counted.

        Extremes are among those of measurements, so that one value is told.
        """
        if self.kind not in TIMES and self.whole:
            return numbers
        if not len(numbers) or self._counter.estimate() >= _MEASURED:
            return numbers[:0]
        step = max(1, len(numbers) // (2 * _MEASURED))
        return np.append(numbers[::step], [self.minimum, self.maximum])

    def _add_integers(self, counter: DistinctCounter, parts: pa.DictionaryArray) -> None:
        texts = parts.dictionary.drop_null()
        try:
            found = texts.cast(pa.int64())
        except pa.ArrowInvalid:
            self._integers = None
            return
        numbers = found.to_numpy()
        small = numbers.min(initial=0) > -_MOST and numbers.max(initial=0) < _MOST
        # The same text again: no code with leading zeros.
        if not (small and found.cast(texts.type).equals(texts)):
            self._integers = None
            return
        counter.update(numbers)
        self._add_range(numbers)

    def _parts(self, parts: pa.Array) -> pa.Array:
        """Return parts of strings, empty ones as nulls, as features read them."""
        if self.text.is_measured:
            numbers = pc.match_substring_regex(parts, NUMBER)
            return pc.if_else(numbers, parts, None).cast(pa.float64())
        encoded = parts.dictionary_encode()  # what comes again and again is looked at once
        texts = encoded.dictionary
        texts = pc.if_else(pc.equal(pc.binary_length(texts), 0), None, texts)
        if self.text.weight_separator is not None:
            texts = pc.replace_substring_regex(texts, f"{self.text.weight_separator}[^:]*$", "")
        return pa.DictionaryArray.from_arrays(encoded.indices, texts)

    def _add_range(self, numbers: Array) -> None:
        if len(numbers):
            self.minimum = min(self.minimum, numbers.min().item())
            self.maximum = max(self.maximum, numbers.max().item())
            if self.whole and numbers.dtype.kind == "f":
                self.whole = bool((numbers == np.trunc(numbers)).all())


def _comparable(columns: Sequence[ColumnStatistics]) -> list[DistinctCounter]:
    """Return counters of the same values: integers, or else strings as they are."""
    if all(one.holds_integers for one in columns):
        return [one._integers or one._counter for one in columns]
    return [one._counter for one in columns]
