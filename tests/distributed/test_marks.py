"""Marks of optimizers in the backward pass, made before a model is sharded, hold on every rank."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import Workers
from tests.distributed.test_model_parallel import Model, batch, plan_of
from torchrec.distributed import DistributedModelParallel
from torchrec.optim import RowWiseAdagrad, apply_optimizer_in_backward
from torchrec.optim.optimizers import in_backward_optimizer_filter

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels

USER, ITEM = "tables.embedding_bags.user.weight", "tables.embedding_bags.item.weight"
LAYER = ["over.weight", "over.bias"]


@pytest.fixture(scope="module")
def workers():
    with Workers() as workers:
        yield workers


def marked(by, optimizer, device, kinds):
    """Names of what the backward pass updates, and of what does not; and whose weights a step has moved."""
    model, mark = Model(device), apply_optimizer_in_backward
    if by == "torch's":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's own import warns
            from torch.distributed.optim import _apply_optimizer_in_backward as mark
    mark(optimizer, model.tables.parameters(), {"lr": 0.5})
    plan = plan_of(model, **kinds)
    sharded = DistributedModelParallel(model, plan=plan)
    inside = [name for name, _ in in_backward_optimizer_filter(sharded.named_parameters(), True)]
    dense = dict(in_backward_optimizer_filter(sharded.named_parameters()))
    before = {name: param.detach().clone() for name, param in sharded.named_parameters()}
    loss, _ = sharded(batch(dist.get_rank(), 0))
    loss.backward()
    moved = [
        name
        for name, param in sharded.named_parameters()
        if param.numel() and not torch.equal(param, before[name])
    ]
    gradients = [name for name, param in sharded.named_parameters() if param.grad is not None]
    return inside, list(dense), moved, gradients, list(sharded.fused_optimizer.params)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("by", "optimizer"),
    [("ours", RowWiseAdagrad), ("ours", torch.optim.Adam), ("torch's", torch.optim.SGD)],
    ids=["ours by rows", "ours", "torch's"],
)
def test_marks_of_tables_hold(workers, by, optimizer, device):
    kinds = {"user": ("row_wise",), "item": ("table_wise", 1)}
    found = workers.run(marked, 2, by, optimizer, device, kinds)
    for rank, (inside, dense, moved, gradients, shown) in enumerate(found):
        assert inside == [USER, ITEM]
        assert dense == gradients == LAYER
        assert moved == ([USER, ITEM] if rank == 1 else [USER])
        assert shown == ([] if by == "torch's" else [USER, ITEM])  # PyTorch's steps by itself


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("by", ["ours", "torch's"])
def test_copies_of_tables_are_ordinary_parameters(workers, by, device):
    kinds = {"user": ("data_parallel",), "item": ("row_wise",)}
    found = workers.run(marked, 2, by, torch.optim.SGD, device, kinds)
    for inside, dense, moved, gradients, shown in found:
        assert inside == moved == [ITEM]
        assert shown == ([] if by == "torch's" else [ITEM])
        assert dense == gradients == [USER, *LAYER]
