"""What may not differ between ranks in a step is refused on all of them, and the next step goes on."""

from __future__ import annotations

import re
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.ranks import run
from tests.distributed.test_passes import batch, models, of_all, weighted
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
from torchrec.distributed.terms import check_terms
from torchrec.distributed.types import ShardingPlan

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (0, r"within `torch.no_grad\(\)`, or none. Received .* \[1, 0, 1\], by rank"),
        (1, r"the same optimizers.* Received rules that ask for \[1, 0, 1\] sums over rows"),
        (2, r"within `accumulate\(\)`, or none"),
        (3, "train the same tables"),
        (4, "cast their tables to the same dtype"),
    ],
)
def test_what_differs_is_named(term, message):
    of_ranks = [[1] * 5 for _ in range(3)]
    check_terms(of_ranks)
    of_ranks[1][term] = 0
    with pytest.raises(ValueError, match=message):
        check_terms(of_ranks)


def without_graph(model):
    return torch.no_grad()


def collecting(model):
    return model.module.tables.fused_optimizer.accumulate()


def frozen(model):
    model.requires_grad_(False)
    return nullcontext()


def cast(model):
    model.double()
    return nullcontext()


def differing(change, message):
    plain, sharded = models(optimizer="rowwise_adagrad", lr=0.1)
    with (
        change(sharded) if dist.get_rank() else nullcontext(),
        pytest.raises(ValueError, match=message),
    ):
        sharded(batch(dist.get_rank()))
    sharded.requires_grad_(True).float()
    weighted(sharded(batch(dist.get_rank())), dist.get_rank()).backward()
    of_all(plain, lambda model, rank: weighted(model(batch(rank)), rank)).backward()
    found = {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in sharded.state_dict().items()
    }
    torch.testing.assert_close(found, dict(plain.state_dict()))
    return True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_graph, "no_grad"),
        (collecting, "accumulate"),
        (frozen, "train the same tables"),
        (cast, "dtype"),
    ],
)
def test_ranks_that_differ_raise_it_together_and_go_on(change, message):
    assert run(differing, 2, change, message, timeout=30) == [True, True]


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("left", "right"):
            table = EmbeddingBagConfig(9, 4, "table", feature_names=["of table"])
            setattr(self, name, EmbeddingBagCollection([table]))

    def forward(self, features, names):
        return [getattr(self, name)(features).values() for name in names]


def in_other_order():
    model = Two()
    tables = construct_module_sharding_plan(model.left, {"table": row_wise()}, device_type="cpu")
    sharded = DistributedModelParallel(model, plan=ShardingPlan({"left": tables, "right": tables}))
    order = ["left", "right"]
    assert len(sharded(batch(0), order)) == 2
    expected = (
        "All ranks should do the same in the same order. Received look-up 1 of module 'left' on rank 0, look-up 1 "
        "of module 'right' on rank 1."
    )
    with pytest.raises(ValueError, match=re.escape(expected)):
        sharded(batch(0), order[::-1] if dist.get_rank() else order)
    return len(sharded(batch(0), order)) == 2


def test_collections_of_the_same_tables_are_not_taken_for_one_another():
    assert run(in_other_order, 2, timeout=30) == [True, True]
