"""Statistics of streams against the whole stream at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrec.datasets.transform.sketches import (
    DistinctCounter,
    Moments,
    Sample,
    each_once,
    scatter,
)

pytestmark = pytest.mark.once

PIECES = st.lists(st.lists(st.floats(-1e6, 1e6), max_size=9), max_size=6)


@given(PIECES, st.sampled_from([0.0, 1e9]))
def test_moments(pieces, shift):
    moments = Moments()
    for piece in pieces:
        moments.update(np.array(piece) + shift)
    whole = np.array([x for piece in pieces for x in piece]) + shift
    assert moments.count == len(whole)
    if len(whole):
        assert (moments.least, moments.most) == (whole.min(), whole.max())
        assert moments.mean == pytest.approx(whole.mean(), rel=1e-12, abs=1e-8)
        assert moments.deviation == pytest.approx(whole.std(), rel=1e-6, abs=1e-5)
    else:
        assert moments.deviation == 0


def test_a_sample_that_is_everything_has_exact_boundaries():
    sample = Sample()
    for piece in np.split(np.arange(1000.0), 10):
        sample.update(piece)
    assert sample.count == 1000
    assert sample.boundaries(4).tolist() == [249.5, 499.5, 749.5]


@pytest.mark.parametrize(
    ("values", "boundaries"),
    [
        ([0, 0, 0, 0, 7], [3.5]),
        ([0, 7, 7, 7, 7], [3.5]),
        ([1, 2, 2, 2, 3], [1.5]),
        ([1, 2, 3], [1.5, 2.5]),
        ([5, 5, 5], []),
        ([5], []),
        ([1, float(np.nextafter(1, 2))], [float(np.nextafter(1, 2))]),
        ([-3e38, 3e38], [0]),
    ],
    ids=str,
)
def test_boundaries_lie_between_neighbours(values, boundaries):
    sample = Sample()
    sample.update(np.array(values, np.float64))
    assert sample.boundaries(4).tolist() == boundaries


def test_a_sample_of_a_long_stream_is_even():
    sample = Sample(size=10_000)
    for start in range(0, 300_000, 50_000):
        sample.update(np.arange(start, start + 50_000, dtype=np.float64))
    found = sample.boundaries(10)
    # Five standard deviations of a quantile of 10,000 draws are 2.5 %.
    assert np.abs(found / 300_000 - np.arange(1, 10) / 10).max() < 0.025
    again = Sample(size=10_000)
    again.update(np.arange(300_000.0))
    assert np.array_equal(again.boundaries(10), found)


def test_scatter_is_one_to_one_and_even():
    ids = np.arange(-50_000, 50_000)
    hashes = scatter(ids)
    assert len(np.unique(hashes)) == len(ids)
    share = np.bincount((hashes >> np.uint64(60)).astype(np.int64)) / len(ids)
    assert np.abs(share - 1 / 16).max() < 0.004


@given(st.lists(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=9), max_size=6))
def test_few_distinct_ids_are_counted_exactly(pieces):
    counter = DistinctCounter()
    for piece in pieces:
        counter.update(np.array(piece, np.int64))
        counter.update(np.array(piece[:1], np.int64))
    assert counter.estimate() == len({id for piece in pieces for id in piece})


@pytest.mark.parametrize("distinct", [4095, 4096, 50_000, 1_000_000])
def test_many_distinct_ids_are_estimated(distinct):
    counter = DistinctCounter()
    for start in range(0, 2 * distinct, 100_000):
        counter.update(np.arange(start, min(start + 100_000, 2 * distinct)) % distinct)
    # Five standard errors.
    assert counter.estimate() == pytest.approx(distinct, rel=5 / 64)


IDS = st.one_of(st.integers(-30, 30), st.integers(-(1 << 63), (1 << 63) - 1))


@given(st.lists(st.lists(IDS, max_size=40), max_size=8), st.integers(1, 50), st.integers(0, 8))
def test_a_counter_has_the_smallest_hashes_of_all(pieces, size, merged):
    counter, other = DistinctCounter(size), DistinctCounter(size)
    for number, piece in enumerate(pieces):
        (other if number < merged else counter).update(np.array(piece, np.int64))
    counter.merge(other)
    # Beside what is kept, sorted once and for all: as if all had come in one piece.
    whole = np.array([id for piece in pieces for id in piece], np.int64)
    hashes = np.unique(scatter(whole))
    expected = len(hashes)
    if expected >= size:
        expected = round((size - 1) * 2.0**64 / float(hashes[size - 1]))
    assert counter.estimate() == expected


@pytest.mark.parametrize("ids", [39, 20_000, 300_000])
def test_what_comes_again_is_known(ids):
    random, counter = np.random.default_rng(ids), DistinctCounter(1 << 14)
    pieces = [random.integers(0, ids, 30_000) * 8191 for _ in range(9)]
    for piece in pieces:
        counter.update(piece)
    whole = DistinctCounter(1 << 14)
    whole.update(np.concatenate(pieces))
    assert counter.estimate() == whole.estimate()
    assert counter.overlap(whole) == 1


@given(st.lists(st.integers(0, 20), max_size=50), st.sampled_from(["int8", "uint32", "int64"]))
def test_each_once(positions, dtype):
    found = each_once(np.array(positions, dtype), 21)
    assert found.tolist() == sorted(set(positions))
