"""What comes back to tables from losses that use some of what was looked up, against one process."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import run
from tests.distributed.test_collections import batch, compare, joined, make, shard

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels


def use_some(kind, optimizer, used_by_rank):
    """Train with losses that use other slots on each rank, and return what has become of each table."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    plain, module = make(False, optimizer), shard(make(False, optimizer), kind)
    for step in range(2):
        batches = [batch(r, step, 3) for r in range(world_size)]
        found = plain(joined(batches))
        starts = dict.fromkeys(found, 0)
        total = torch.zeros(())
        for r, used in enumerate(used_by_rank):
            for name, each in found.items():
                number = int(each.lengths()[3 * r : 3 * r + 3].sum())
                part = each.values()[starts[name] : starts[name] + number]
                starts[name] += number
                if name in used:
                    total = total + part.square().sum()
        plain.zero_grad()
        (total / world_size).backward()
        module.zero_grad()
        output = module(batches[rank])
        sum(output[name].values().square().sum() for name in used_by_rank[rank]).backward()
    compare(module, plain, not (optimizer == "rowwise_adagrad" and kind == "column_wise"))
    if optimizer is None:
        gradients = {name: param.grad is not None for name, param in plain.named_parameters()}
        for name, param in module.named_parameters():
            assert (param.grad is not None) == (gradients[name] and param.numel() > 0), name
        return gradients
    states = plain.fused_optimizer.state_dict()["state"]
    return {name: float(state["step"]) > 0 for name, state in states.items()}


@pytest.mark.parametrize("optimizer", ["adam", "rowwise_adagrad", None], ids=str)
@pytest.mark.parametrize("kind", ["table_wise", "row_wise", "column_wise"])
def test_a_table_that_no_rank_uses_gets_no_gradient(kind, optimizer):
    # Slots: f1 and f2 in table a, f2 in b, f3 in c, which no loss uses.
    used = [["f1"], ["f2@a", "f2@b"]]
    for updated in run(use_some, 2, kind, optimizer, used):
        assert [any(f".{name}." in key and updated[key] for key in updated) for name in "abc"] == [
            True,
            True,
            False,
        ]
