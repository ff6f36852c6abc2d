"""Sums over the last batches against lists in plain Python."""

from __future__ import annotations

import math
import random

import pytest
import torch

from torchrec.metrics.rec_metric import WindowBuffer
from torchrec.metrics.sliding_sum import SlidingSum

pytestmark = pytest.mark.once


@pytest.mark.parametrize("seed", range(4))
def test_sums_are_those_of_the_batches_that_fit(seed: int) -> None:
    draw = random.Random(seed)
    sums = SlidingSum(max_size=20, max_batches=5)
    kept: list[tuple[float, int]] = []
    for _ in range(200):
        value, size = float(draw.randrange(100)), draw.choice([0, 1, 2, 7, 20, 21])
        sums.append(torch.full((2, 3), value), size)
        kept.append((value, size))
        while sum(size for _, size in kept) > 20 or len(kept) > 5:
            kept.pop(0)
        total = sums.total()
        assert sums.sizes == [size for _, size in kept]
        assert [row[0, 0].item() for row in sums.rows] == [value for value, _ in kept]
        expected = sum(value for value, _ in kept)
        assert (0.0 if total is None else total[1, 2].item()) == expected


def test_a_nan_and_a_large_number_leave_with_their_batches() -> None:
    sums = SlidingSum(max_size=2)
    for value in (0.1, 1e300, math.nan, 0.2, 0.3):
        sums.append(torch.tensor([value], dtype=torch.float64), 1)
    total = sums.total()
    assert total is not None
    assert total.item() == 0.2 + 0.3


def test_what_was_returned_or_given_does_not_change_afterwards() -> None:
    sums = SlidingSum(max_size=10)
    row = torch.tensor([1.0])
    sums.append(row, 1)
    first = sums.total()
    sums.append(row, 1)
    assert first is not None
    assert (first.item(), row.item()) == (1.0, 1.0)


def test_a_window_buffer_writes_to_the_tensor_of_the_caller() -> None:
    window, state = WindowBuffer(max_size=4, max_buffer_count=3), torch.zeros(2)
    added = torch.ones(2)
    for _ in range(2):
        window.aggregate_state(state, added, 2)
    added += 5
    assert state.tolist() == [2.0, 2.0]
    window.aggregate_state(state, added, 5)
    assert state.tolist() == [0.0, 0.0]
    assert window.buffers == []
