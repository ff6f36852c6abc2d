"""What is counted of a column, beside what Python counts."""

from __future__ import annotations

import re

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrec.experiment.propose._statistics import ColumnStatistics

pytestmark = pytest.mark.once

WORDS = st.one_of(st.none(), st.sampled_from(["a", "b", "long word", ""]))
PARTS = st.sampled_from(
    ["1", "22", "-7", "0", "", "9" * 18] * 3 + ["1" + "0" * 18, "07", "x", "+5", " 3", "-0"]
)
WEIGHTS = st.sampled_from([":1", ":0.25", ":3e2", ""])
INTEGERS = st.one_of(st.none(), st.integers(-5, 5), st.integers(-(1 << 63), (1 << 63) - 1))


def counted(column: pa.ChunkedArray) -> ColumnStatistics:
    statistics = ColumnStatistics("x", column)
    for chunk in column.chunks:  # piece by piece, as files are read
        statistics.add(pa.table({"x": chunk}))
    return statistics


def facts(one: ColumnStatistics) -> tuple[float, ...]:
    return one.rows, one.nulls, one.values, one.distinct, one.minimum, one.maximum


@given(st.lists(st.lists(INTEGERS, max_size=30), min_size=1, max_size=5))
def test_integers(pieces: list[list[int | None]]) -> None:
    found = facts(counted(pa.chunked_array([pa.array(piece, pa.int64()) for piece in pieces])))
    rows = [value for piece in pieces for value in piece]
    there = [value for value in rows if value is not None]
    ends = (min(there), max(there)) if there else (float("inf"), float("-inf"))
    assert found == (len(rows), len(rows) - len(there), len(there), len(set(there)), *ends)


@given(
    st.lists(st.lists(WORDS, max_size=12), min_size=1, max_size=4),
    st.sampled_from([pa.int32(), pa.int8()]),
    st.booleans(),
)
def test_dictionaries_are_counted_as_what_they_stand_for(
    pieces: list[list[str | None]], index: pa.DataType, null_entry: bool
) -> None:
    entries: list[str | None] = ["", "never", "b", "a", "long word", "b"]  # one of them twice
    entries += [None] if null_entry else []
    chunks = []
    for piece in pieces:
        places = [
            None if value is None and not null_entry else entries.index(value) for value in piece
        ]
        chunks.append(pa.DictionaryArray.from_arrays(pa.array(places, index), pa.array(entries)))
    plain = pa.chunked_array([pa.array(piece, pa.string()) for piece in pieces])
    assert facts(counted(pa.chunked_array(chunks))) == facts(counted(plain))


@given(st.lists(st.lists(st.none() | st.lists(PARTS, max_size=4), max_size=8), min_size=1))
def test_parts_of_strings(pieces: list[list[list[str] | None]]) -> None:
    statistics = ColumnStatistics("x", pa.chunked_array([["1|2|3", "2|3", "3|1", "1"] * 3]))
    for piece in pieces:
        texts = [None if parts is None else "|".join(parts) for parts in piece]
        statistics.add(pa.table({"x": pa.array(texts, pa.string())}))
    lists = [one for piece in pieces for one in piece]
    parts = [part for one in lists for part in one or [] if part]
    whole = all(re.fullmatch("0|-?[1-9][0-9]{0,17}", part) for part in parts)
    assert statistics.holds_integers == (whole and bool(parts))
    assert statistics.nulls == lists.count(None)
    assert (statistics.values, statistics.distinct) == (len(parts), len(set(parts)))
    if whole and parts:
        numbers = [int(part) for part in parts]
        assert (statistics.minimum, statistics.maximum) == (min(numbers), max(numbers))


@given(st.lists(st.lists(st.tuples(PARTS, WEIGHTS), min_size=1, max_size=4), max_size=8))
def test_parts_with_weights(lists: list[list[tuple[str, str]]]) -> None:
    sample = pa.chunked_array([["1:0.5|2:0.25", "3:2.5", "2:1.5|3:0.1"] * 3])
    statistics = ColumnStatistics("x", sample)
    texts = ["|".join(part + weight for part, weight in one) for one in lists]
    statistics.add(pa.table({"x": pa.array(texts, pa.string())}))
    parts = [part for one in lists for part, weight in one if part + weight]
    assert (statistics.values, statistics.distinct) == (len(parts), len(set(parts)))
