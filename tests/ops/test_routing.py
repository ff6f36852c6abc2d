"""Routing of rows to bands, and blocks of numbers, against lists in plain Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchrec.ops.routing import ADDS, DIVIDES, copy_blocks_, native, reference, route_rows


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
    for route in (route_rows, reference.route_rows):
        with pytest.raises(ValueError, match="`bands` of a slot should be in order, and not over"):
            route(rows, lengths, [2], [0, 0, 5, 0, 0, 4, 6, 0])
    with pytest.raises(TypeError, match="`rows` should be int64"):
        route_rows(rows.int(), lengths, [2], [0, 0, 5, 0])


@st.composite
def copies(draw):
    """Inputs of some sizes, and blocks, each of which has an output to itself or adds to one before it."""
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    outputs, blocks = [], []
    for _ in range(draw(st.integers(0, 3))):
        rows, columns, gap = (draw(st.integers(0, 4)) for _ in range(3))
        stride, start = columns + gap, draw(st.integers(0, 3))
        outputs.append(start + rows * stride)
        for kind in [draw(st.sampled_from([0, DIVIDES])), *draw(st.lists(st.integers(2, 3)))]:
            source, step = draw(st.integers(0, len(sizes) - 1)), draw(st.integers(0, 5))
            first = draw(st.integers(0, 5))
            if first + max(rows - 1, 0) * step + columns > sizes[source]:
                first, step = 0, 0
            if columns > sizes[source]:
                continue
            place = [len(outputs) - 1, start, stride]
            if kind & ADDS and not any(block[3] == len(outputs) - 1 for block in blocks):
                continue
            blocks.append([source, first, step, *place, rows, columns, kind])
    return sizes, outputs, blocks


def copied_in_plain_python(inputs, sizes, blocks, divisor):
    outputs = [[None] * size for size in sizes]
    for source, first, step, target, start, stride, rows, columns, kind in blocks:
        for row in range(rows):
            for column in range(columns):
                number = inputs[source][first + row * step + column]
                number = number / divisor if kind & DIVIDES else number
                before = outputs[target][start + row * stride + column] if kind & ADDS else None
                outputs[target][start + row * stride + column] = number + (before or 0)
    return outputs


@pytest.mark.parametrize(
    "copy_", [copy_blocks_, reference.copy_blocks_], ids=["in use", "reference"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@given(given=copies(), divisor=st.sampled_from([1, 2, 4]))
def test_blocks_are_copied_divided_and_added(copy_, dtype, given, divisor):
    sizes, outputs, blocks = given
    inputs = [torch.arange(size, dtype=dtype) + 100 * i for i, size in enumerate(sizes)]
    found = [torch.full((size,), torch.nan, dtype=dtype) for size in outputs]
    copy_(found, inputs, [number for block in blocks for number in block], divisor)
    expected = copied_in_plain_python([t.tolist() for t in inputs], outputs, blocks, divisor)
    for mine, wanted in zip(found, expected, strict=True):
        wanted = [torch.nan if number is None else number for number in wanted]
        torch.testing.assert_close(mine.tolist(), wanted, rtol=0, atol=0, equal_nan=True)


def test_a_number_that_is_no_power_of_two_divides_as_torch_does():
    numbers = torch.randn(70_000)
    found = torch.empty(70_000)
    copy_blocks_([found], [numbers], [0, 0, 7, 0, 0, 7, 10_000, 7, DIVIDES], 3)
    assert torch.equal(found, numbers / 3)


def test_many_rows_side_by_side_are_copied_whole():
    left, right = torch.randn(3000, 64), torch.randn(3000, 33)
    blocks = [0, 0, 64, 0, 33, 97, 3000, 64, 0, 1, 0, 33, 0, 0, 97, 3000, 33, 0]
    found = torch.empty(3000 * 97)
    copy_blocks_([found], [left, right], blocks)
    assert torch.equal(found.view(3000, 97), torch.cat([right, left], 1))


@pytest.mark.parametrize("threads", [1, 2])
def test_large_blocks_with_and_without_gaps_are_copied_in_their_order(threads):
    """Side by side, added to there, whole, added to that, of other rows: as the plain loop does."""
    inputs = [torch.randn(3000, 64), torch.randn(5000, 17), torch.randn(3000, 97)]
    beside = [[0, 0, 64, 0, 33, 97, 3000, 64, DIVIDES], [0, 5, 64, 0, 0, 97, 3000, 33, 0]]
    added = [[0, 1, 64, 0, 10, 97, 3000, 50, ADDS], [2, 0, 97, 0, 0, 97, 3000, 97, ADDS + DIVIDES]]
    whole = [[1, 0, 17, 1, 0, 17, 5000, 17, 0], [1, 0, 17, 1, 0, 17, 5000, 17, ADDS]]
    blocks = [beside[0], whole[0], beside[1], *added, [1, 3, 17, 2, 0, 4, 5000, 4, 0], whole[1]]
    found, expected = ([torch.zeros(n) for n in (3000 * 97, 85_000, 20_000)] for _ in range(2))
    numbers, before = [n for block in blocks for n in block], torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        copy_blocks_(found, inputs, numbers, 3)
    finally:
        torch.set_num_threads(before)
    reference.copy_blocks_(expected, inputs, numbers, 3)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(
    "copy_", [copy_blocks_, reference.copy_blocks_], ids=["in use", "reference"]
)
def test_blocks_outside_of_their_tensors_are_refused(copy_):
    numbers, six, five = torch.arange(6.0), torch.zeros(6), torch.zeros(5)
    with pytest.raises(ValueError, match=r"inside of their tensors.*tensor number 0"):
        copy_([six], [numbers], [0, 1, 3, 0, 0, 3, 2, 3, 0], 1)
    with pytest.raises(ValueError, match=r"inside of their tensors.*tensor number 1"):
        copy_([six, five], [numbers], [0, 0, 3, 1, 0, 3, 2, 3, 0], 1)
    with pytest.raises(ValueError, match="name a tensor that there is"):
        copy_([six], [numbers], [1, 0, 3, 0, 0, 3, 2, 3, 0], 1)
    with pytest.raises(ValueError, match="name a tensor that there is"):
        copy_([six], [numbers], [0, 0, -3, 0, 0, 3, 2, 3, 0], 1)
    with pytest.raises(ValueError, match="`blocks` should copy, or be of floats"):
        copy_([six.int()], [numbers.int()], [0, 0, 3, 0, 0, 3, 2, 3, DIVIDES], 2)
    with pytest.raises(ValueError, match="of one dtype"):
        copy_([six], [numbers, numbers.double()], [], 1)
    with pytest.raises(ValueError, match="`divisor` 1 or more"):
        copy_([six], [numbers], [], 0)
    with pytest.raises(ValueError, match="`outputs` should be contiguous, of one dimension"):
        copy_([six.view(2, 3)], [numbers], [], 1)


@pytest.mark.parametrize(
    "copy_", [copy_blocks_, reference.copy_blocks_], ids=["in use", "reference"]
)
def test_blocks_of_views_count_from_their_own_start(copy_):
    numbers, six = torch.arange(6.0), torch.zeros(6)
    copy_([six[1:]], [numbers[2:]], [0, 0, 1, 0, 1, 1, 2, 1, 0], 1)
    assert six.tolist() == [0, 0, 2, 3, 0, 0]


@pytest.mark.parametrize("module", [native, reference])
def test_what_is_written_has_memory_of_its_own(module):
    output, zeros = torch.zeros(3), torch._efficientzerotensor((3,))
    block = dict.fromkeys(reference.BLOCK, 0)
    for outputs in ([output, output], [zeros]):
        with pytest.raises(ValueError, match="`outputs` should have memory of their own, each"):
            module.copy_blocks_(outputs, [torch.ones(3)], list(block.values()), 1)
