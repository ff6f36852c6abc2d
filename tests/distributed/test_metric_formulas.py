"""All metrics on several ranks against their slow formulas over the samples of all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.distributed.ranks import run
from tests.metrics.metric_cases import (
    CASES,
    Batch,
    Case,
    assert_reported,
    expected_of,
    make_batches,
    update,
)
from torchrec.metrics.metrics_config import RecComputeMode

pytestmark = pytest.mark.once

UNFUSED = RecComputeMode.UNFUSED_TASKS_COMPUTATION
FUSED = RecComputeMode.FUSED_TASKS_COMPUTATION
# Batches differ in number and size; the last of four ranks has none.
SIZES = [[5, 7, 1, 6, 8], [0, 3], [8, 8, 8, 1, 4, 2], []]


def batches_of(case: Case, rank: int) -> list[Batch]:
    return make_batches(case, SIZES[rank], weighted=True, seed=rank)


def numbers_of_all(world_size: int) -> dict[str, dict[str, Tensor]]:
    """Compute all metrics on a rank, those that can be fused by turns fused and not."""
    torch.set_num_threads(1)
    rank = torch.distributed.get_rank()
    found = {}
    for turn, (name, case) in enumerate(CASES.items()):
        metric = case.metric(FUSED if case.fused and turn % 2 else UNFUSED, world_size, rank)
        for batch in batches_of(case, rank):
            update(metric, case, batch)
        found[name] = metric.compute()
    return found


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_numbers_of_ranks_are_those_of_the_formula(world_size: int) -> None:
    first, *others = run(numbers_of_all, world_size, world_size)
    assert not isinstance(first, Exception), first
    assert all(not any(each.values()) for each in others)  # the first rank alone reports
    for name, case in CASES.items():
        by_rank = [batches_of(case, rank) for rank in range(world_size)]
        assert_reported(first[name], expected_of(case, [x for x in by_rank if x]))
