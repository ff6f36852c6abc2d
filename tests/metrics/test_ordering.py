"""Orders within groups against loops over samples and pairs."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from tests.metrics import slow_formulas as slow
from torchrec.metrics.ordering import (
    areas_under_roc,
    average_precisions,
    curve,
    group_numbers,
    ordered_pairs,
    rank,
)

pytestmark = pytest.mark.once

SIZES = pytest.mark.parametrize("size", [0, 1, 2, 3, 17, 64])
GROUPS = 3


def draw(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return scores and labels with ties, weights and groups."""
    generator = torch.Generator().manual_seed(size)
    return (
        torch.randint(0, 9, (size,), generator=generator).double() / 8,
        torch.randint(0, 5, (size,), generator=generator).double() / 4,
        torch.rand(size, generator=generator, dtype=torch.float64),
        torch.randint(0, GROUPS, (size,), generator=generator),
    )


@SIZES
def test_group_numbers_are_equal_where_keys_are(size: int) -> None:
    keys = torch.stack([draw(size)[0], draw(size)[1]])
    numbers = group_numbers(keys)
    assert numbers.shape == keys.shape
    for row in range(2):
        equal = keys[row].unsqueeze(0) == keys[row].unsqueeze(1)
        assert torch.equal(numbers[row].unsqueeze(0) == numbers[row].unsqueeze(1), equal)
    assert not set(numbers[0].tolist()) & set(numbers[1].tolist())
    assert all(0 <= number < 2 * size for number in numbers.flatten().tolist())


@SIZES
@pytest.mark.parametrize("descending", [True, False], ids=["descending", "ascending"])
def test_ranks_count_what_comes_before_in_the_group(size: int, descending: bool) -> None:
    scores, _, _, group = draw(size)
    ranking = rank(scores, group, descending)
    sign = -1 if descending else 1
    for i in range(size):
        before = sign * scores < sign * scores[i]
        tied = (scores == scores[i]) & (torch.arange(size) < i)
        assert ranking.tied_ranks()[i] == (before & (group == group[i])).sum()
        assert ranking.ranks()[i] == ((before | tied) & (group == group[i])).sum()


@SIZES
def test_areas_are_those_of_each_group(size: int) -> None:
    scores, labels, weights, group = draw(size)
    roc = areas_under_roc(curve(scores, labels, weights, group, GROUPS))
    precisions = average_precisions(curve(scores, labels, weights, group, GROUPS, descending=True))
    for number in range(GROUPS):
        own = (group == number).numpy()
        columns = (x.numpy()[own] for x in (scores, labels, weights))
        samples = slow.Samples(*columns, np.zeros(own.sum(), np.int64))
        assert roc[number].item() == pytest.approx(slow.auc_of(samples), abs=1e-12)
        assert precisions[number].item() == pytest.approx(slow.auprc_of(samples), abs=1e-12)


@SIZES
def test_ordered_pairs_are_those_of_a_loop_over_pairs(size: int) -> None:
    first, second, weights, group = draw(size)
    expected = torch.zeros(GROUPS, dtype=torch.float64)
    for i, j in permutations(range(size), 2):
        if group[i] == group[j] and first[i] < first[j] and second[i] < second[j]:
            expected[group[i]] += weights[i] * weights[j]
    found = ordered_pairs(first, second, weights, group, GROUPS)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_nan_stays_in_its_group() -> None:
    scores, labels, weights, group = draw(64)
    scores[0] = torch.nan
    found = areas_under_roc(curve(scores, labels, weights, group, GROUPS))
    assert found.isnan().nonzero().flatten().tolist() == [group[0].item()]
