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
from torchrec.distributed.wire import Wire

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
    wire = Wire(dist.group.WORLD)
    dist.destroy_process_group()
    wire.states(0)


def test_ranks_whose_process_group_is_gone_say_so():
    (error,) = run(use_after_the_end, 1)
    assert isinstance(error, RuntimeError)
    assert str(error) == (
        "The process group of a sharded model should last as long as it is used. Received one that rank 0 "
        "has destroyed."
    )
