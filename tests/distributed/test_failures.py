"""What happens to the other ranks when one fails, and how ranks end."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import run
from tests.distributed.test_model_parallel import batch, fused, plan_of
from torchrec.distributed import DistributedModelParallel

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels


def step_and_forget():
    model = fused()
    kinds = {"user": ("row_wise",), "item": ("column_wise", [0, 1])}
    sharded = DistributedModelParallel(model, plan=plan_of(model, **kinds))
    dense = torch.optim.SGD([p for n, p in sharded.named_parameters() if n.startswith("over")], 0.1)
    sharded(batch(sharded.rank, 0))[0].backward()
    dense.step()
    return weakref.ref(sharded)


def end_without_garbage_collection():
    gc.disable()
    model = step_and_forget()
    gone = model() is None
    group = weakref.ref(dist.group.WORLD)
    dist.destroy_process_group()
    return gone, group() is None


def test_nobody_holds_the_process_group_when_the_model_is_gone():
    """Else its threads outlive Python, and the process aborts at times."""
    assert run(end_without_garbage_collection, 2) == [(True, True)] * 2


def use_after_the_end():
    model = fused()
    plan = plan_of(model, user=("row_wise",), item=("row_wise",))
    tables = DistributedModelParallel(model, plan=plan, init_data_parallel=False).module.tables
    dist.destroy_process_group()
    tables(batch(0, 0))


def test_a_model_whose_process_group_is_gone_says_so():
    for rank, error in enumerate(run(use_after_the_end, 2)):
        assert isinstance(error, RuntimeError)
        assert str(error) == (
            "The process group of a sharded model should last as long as it is used. Received one that "
            f"rank {rank} has destroyed."
        )
