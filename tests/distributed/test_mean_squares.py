"""Row-wise Adagrad by the kernels where columns lie on several ranks, against one process."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import run
from tests.distributed.test_collections import batch, joined, make, outputs, shard
from torchrec.distributed.mean_squares import MeanSquares

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels


def train(pooled, weighted, times):
    """Train as one process; return how often the kernels did it, and the states of this rank."""
    calls, update = [], MeanSquares.update
    MeanSquares.update = lambda *args: calls.append(update(*args))
    given = pooled, "rowwise_adagrad", weighted
    plain, module = make(*given), shard(make(*given), "column_wise")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    for step in range(3):
        # Sizes that differ, none at all on one rank, none on any.
        sizes = [[3, 5, 2, 4], [4, 0, 1, 0], [0, 0, 0, 0]][step][:world_size]
        batches = [batch(r, step, size, weighted) for r, size in enumerate(sizes)]
        found = [outputs(plain, joined(batches)) for _ in range(times)]
        mine = [outputs(module, batches[rank]) for _ in range(times)]
        plain.zero_grad()
        parts = [values for each in found for values, _ in each]
        sum(part.square().sum() for part in parts).div(world_size).backward()
        module.zero_grad()
        sum(values.square().sum() for each in mine for values, _ in each).backward()
    for name, whole in plain.state_dict().items():
        for part in module.state_dict()[name].local_shards():
            (row, column), (rows, columns) = part.metadata.shard_offsets, part.metadata.shard_sizes
            expected = whole[row : row + rows, column : column + columns]
            torch.testing.assert_close(part.tensor, expected)
    states = {
        name: update.states["sum"].clone() for name, update in module.tables.updates().items()
    }
    for name, state in states.items():
        expected = plain.fused_optimizer.state_dict()["state"][name]
        torch.testing.assert_close(state, expected["sum"].view_as(state))
    return len(calls), states


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("pooled", [True, False], ids=["bags", "sequences"])
@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_kernels_train_as_one_process_and_states_are_the_same_bits(world_size, pooled, weighted):
    if weighted and not pooled:
        pytest.skip("sequences have no weights")
    first, *others = run(train, world_size, pooled, weighted, 1)
    assert first[0] == 3
    for calls, states in others:
        assert calls == 3
        for name in states.keys() & first[1].keys():
            assert torch.equal(states[name], first[1][name])


def test_two_look_ups_in_one_pass_are_one_update():
    for calls, _ in run(train, 2, True, False, 2):
        assert calls == 0
