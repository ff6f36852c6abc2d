"""Vocabularies and the counting of their ids, against dictionaries."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrec.datasets.transform.vocabulary import IdCounter, Vocabulary

pytestmark = pytest.mark.once

IDS = st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-2, 2)


@given(st.lists(IDS, unique=True, max_size=9), st.lists(IDS, max_size=9))
def test_rows_are_found(known, asked):
    vocabulary = Vocabulary(np.array(known, np.int64))
    rows = {id: row for row, id in enumerate(known)}
    found = vocabulary.rows(np.array(asked + known, np.int64))
    assert found.tolist() == [rows.get(id, len(known)) for id in asked + known]
    assert len(vocabulary) == len(known)


@pytest.mark.parametrize("size", [0, 1, 1000, (1 << 16) + 1])
def test_rows_of_few_are_the_same(size):
    """By a dictionary or, beyond its size, by the map."""
    vocabulary = Vocabulary(np.random.default_rng(0).permutation(size).astype(np.int64) * 7)
    asked = [0, 7, 1, -7, 7 * size, 7 * (size - 1)]
    assert vocabulary.rows_of_few(asked) == vocabulary.rows(np.array(asked, np.int64)).tolist()


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32])
def test_rows_of_narrow_ids(dtype):
    assert Vocabulary(np.array([7, 5])).rows(np.array([5, 6, 7], dtype)).tolist() == [1, 2, 0]


def test_ids_that_cannot_be_written_to():
    ids = np.array([5, 6])
    ids.flags.writeable = False
    assert Vocabulary(ids).rows(ids).tolist() == [0, 1]
    counter = IdCounter()
    counter.update(ids)
    assert counter.estimate() == 2


@given(st.lists(st.lists(IDS, max_size=9), max_size=9), st.integers(1, 3), st.integers(1, 9))
def test_ids_are_counted(pieces, min_count, number):
    counter = IdCounter()
    for piece in pieces:
        counter.update(np.array(piece, np.int64))
    counts = Counter(id for piece in pieces for id in piece)
    expected = sorted(
        (id for id in counts if counts[id] >= min_count), key=lambda i: (-counts[i], i)
    )
    assert counter.most_frequent(number, min_count).tolist() == expected[:number]
    assert counter.most_frequent(None, min_count).tolist() == expected
    assert counter.estimate() == len(counter) == len(counts)


def test_frequent_ids_survive_when_there_is_no_room_for_all():
    random = np.random.default_rng(0)
    counter = IdCounter(capacity=1000)
    seen = np.zeros(0, np.int64)
    for _ in range(12):
        frequent = np.repeat(np.arange(100), 20)
        ids = random.permutation(np.concatenate([frequent, random.integers(100, 40_000, 900)]))
        counter.update(ids)
        seen = np.union1d(seen, ids)
        assert len(counter) <= 1000
    assert np.sort(counter.most_frequent(100, 1)).tolist() == list(range(100))
    assert counter.estimate() == pytest.approx(len(seen), rel=5 / 64)
