"""Ranks that do not come to a collective are named, with what the others wait in; others' errors stay as they are."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed import fake_pg  # noqa: F401 (registers the group "fake")

from tests.distributed.ranks import run
from torchrec.distributed.wire import Wire
from torchrec.metrics.state_exchange import gather, largest
from torchrec.optim import KeyedOptimizerWrapper
from torchrec.optim.clipping import GradientClipping, GradientClippingOptimizer
from torchrec.process_groups import all_gather, all_reduce, default_store

pytestmark = pytest.mark.once

SECONDS = 6


def of_all_ranks():
    """Return what comes of collectives, one of which waits for longer than a rank does before it leaves a note."""
    group = dist.new_group(timeout=timedelta(seconds=SECONDS))
    rank = dist.get_rank()
    total, most = torch.tensor([rank + 1.0]), torch.tensor(rank)
    received = [torch.zeros(2) for _ in range(2)]
    if rank:
        time.sleep(SECONDS / 3)
    all_reduce(total, "a sum", group)
    all_reduce(most, "the largest", group, dist.ReduceOp.MAX)
    all_gather(received, torch.full((2,), rank + 1.0), "all parts", group)
    notes = [default_store().check([f"waits/{each}"]) for each in range(2)]
    return total.item(), most.item(), torch.cat(received).tolist(), notes


def by_another_backend():
    group = dist.new_group(backend="fake")  # takes all for done
    value = torch.ones(2)
    all_reduce(value, "a sum", group)
    return value.tolist()


def test_other_backends_wait_in_their_own_way():
    assert run(by_another_backend, 2) == [[1.0, 1.0]] * 2


@pytest.mark.slow
def test_ranks_that_are_late_are_waited_for():
    expected = (3.0, 1, [1.0, 1.0, 2.0, 2.0], [False, False])
    assert run(of_all_ranks, 2) == [expected] * 2


def clip(group):
    weight = torch.nn.Parameter(torch.zeros(2))
    inner = KeyedOptimizerWrapper({"w": weight}, lambda params: torch.optim.SGD(params, lr=1.0))
    groups = {weight: [group]}
    optimizer = GradientClippingOptimizer(
        inner, GradientClipping.NORM, enable_global_grad_clip=True, param_to_pgs=groups
    )
    weight.grad = torch.ones(2)
    optimizer.step()


def measure(group):
    gather([torch.ones(2)], group, same_shapes=True)


def time_steps(group):
    largest(1.0, torch.device("cpu"), group)


def look_up(_):
    Wire(dist.group.WORLD).states(1, "a look-up")  # whose ranks would wait for half an hour


def begin(group):
    Wire(group)


def leave_out(_):
    default_store().wait(["given up"], timedelta(seconds=50))


def spread(group):
    Wire(group).broadcast(torch.ones(2), 0, "first weights")


def begin_to_spread(group):
    Wire(group).begin("first weights").numbers()
    leave_out(group)


def apart(*acts):
    """Do something else on each rank, after all have begun to exchange."""
    group = dist.new_group(timeout=timedelta(seconds=SECONDS))
    look_up(group)
    try:
        acts[dist.get_rank()](group)
    finally:
        default_store().set("given up", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("acts", "doing"),
    [
        ((measure, measure, leave_out), "computing metrics"),
        ((begin, leave_out), "their first exchange"),
        ((spread, begin_to_spread), "first weights"),
    ],
)
def test_a_rank_that_does_not_come_is_named(acts, doing):
    *errors, _ = run(apart, len(acts), *acts)
    assert [str(error) for error in errors] == [
        f"All ranks should take part in {doing} within {SECONDS} s, the `timeout` of their process group. Received "
        f"nothing from rank {len(errors)}: it has stopped, or has left out what others do."
    ] * len(errors)


@pytest.mark.slow
def test_who_waits_elsewhere_is_told_from_who_has_stopped():
    errors = run(apart, 2, measure, clip)
    heads = "All ranks should do the same in the same order. Received "
    assert str(errors[0]) == str(errors[1])
    assert str(errors[0]) in (
        f"{heads}computing metrics on rank 0, the norm of all gradients on rank 1.",
        f"{heads}the norm of all gradients on rank 1, computing metrics on rank 0.",
    )
    first, *_ = run(apart, 3, time_steps, look_up, leave_out)
    assert str(first) == (
        f"All ranks should take part in timing the steps between metrics within {SECONDS} s, the `timeout` of their "
        "process group. Received nothing from rank 2: it has stopped, or has left out what others do."
    )


def fail(group):
    raise KeyError("in code of the user")


def test_a_rank_that_has_ended_is_named_at_once():
    error, own = run(apart, 2, measure, fail)
    assert isinstance(own, KeyError)
    assert str(error) == (
        "All ranks should take part until the last step. Received nothing more from rank 1, which has ended: what was "
        "written there last says why."
    )
