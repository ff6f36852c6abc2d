"""Routing of rows to bands, against lists in plain Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchrec.ops.routing import reference, route_rows


@st.composite
def routings(draw):
    size = draw(st.integers(0, 4))
    bags, bands = [], []
    for slot in range(draw(st.integers(0, 3))):
        bags.append(
            draw(st.lists(st.lists(st.integers(-1, 12), max_size=4), min_size=size, max_size=size))
        )
        end = 0
        for _ in range(draw(st.integers(0, 3))):
            first = end + draw(st.integers(0, 2))
            end = first + draw(st.integers(0, 5))
            bands.append((slot, first, end, draw(st.integers(0, 3))))
    return size, bags, bands


def in_plain_python(size, bags, bands):
    values, places, lengths, counts = [], [], [], []
    for slot, mine in enumerate(bags):
        ids = [(b, row) for b, bag in enumerate(mine) for row in bag]
        place, sent = [-1] * len(ids), 0
        for _, first, end, base in (band for band in bands if band[0] == slot):
            chosen = [i for i, (_, row) in enumerate(ids) if first <= row < end]
            for i in chosen:
                place[i], sent = sent, sent + 1
            values += [ids[i][1] - first + base for i in chosen]
            lengths.append([sum(ids[i][0] == b for i in chosen) for b in range(size)])
            counts.append(len(chosen))
        places += place
    return values, places, lengths, counts


@pytest.mark.parametrize("route", [route_rows, reference.route_rows], ids=["in use", "reference"])
@given(routing=routings(), wide=st.booleans())
def test_rows_are_sorted_by_band_and_keep_their_order(route, routing, wide):
    size, bags, bands = routing
    rows = torch.tensor([row for mine in bags for bag in mine for row in bag], dtype=torch.int64)
    lengths = torch.tensor([len(bag) for mine in bags for bag in mine], dtype=torch.int64)
    lengths = lengths.view(len(bags), size)
    counts = [sum(map(len, mine)) for mine in bags]
    flat = [number for band in bands for number in band]
    values, places, band_lengths, band_counts = route(
        rows, lengths if wide else lengths.int(), counts, flat
    )
    expected = in_plain_python(size, bags, bands)
    assert values[: len(expected[0])].tolist() == expected[0]
    assert places.tolist() == expected[1]
    assert band_lengths.tolist() == expected[2]
    assert band_counts.tolist() == expected[3]


def test_sizes_that_do_not_fit_are_refused():
    rows, lengths = torch.tensor([1, 2]), torch.tensor([[1, 1]])
    with pytest.raises(
        ValueError, match=r"`counts` should not be negative and sum to the number of rows \(2\)"
    ):
        route_rows(rows, lengths, [3], [0, 0, 5, 0])
    with pytest.raises(ValueError, match=r"`lengths` should have one line a slot \(1\)"):
        route_rows(rows, lengths[0], [2], [0, 0, 5, 0])
    with pytest.raises(ValueError, match="`bands` should be"):
        route_rows(rows, lengths, [2], [1, 0, 5, 0])
    with pytest.raises(TypeError, match="`rows` should be int64"):
        route_rows(rows.int(), lengths, [2], [0, 0, 5, 0])
