"""Gradients of layers that every rank has a copy of, added up by each way there is, beside adding up by hand."""

from __future__ import annotations

import gc
import os
import time
from datetime import timedelta
from functools import reduce

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel.distributed import _MixedPrecision

from tests.distributed.ranks import Workers, run
from torchrec.distributed import gradient_sums
from torchrec.distributed._private import PreparedDataParallel
from torchrec.distributed.channel import channel_of
from torchrec.distributed.data_parallel import DefaultDataParallelWrapper
from torchrec.distributed.shared_memory import ENVIRONMENT_VARIABLE
from torchrec.distributed.types import ShardingEnv
from torchrec.ops.signals import can_signal

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(not can_signal(), reason="there is no native library, or no Linux"),
]


@pytest.fixture(scope="module")
def workers():
    with Workers() as started:
        yield started


class Wrapped:
    """What a wrapper is given, and what it makes of it."""

    def __init__(self, module, wrapper=None, group=None):
        self._dmp_wrapped_module = module
        env = ShardingEnv.from_process_group(group or dist.group.WORLD)
        (wrapper or DefaultDataParallelWrapper()).wrap(self, env, torch.device("cpu"))
        self.model = self._dmp_wrapped_module


def layers():
    """Two buckets of 1 MiB: a bias of three, matrices of uneven sizes, one of another type."""
    torch.manual_seed(0)
    first = nn.Linear(7, 500).double()
    return nn.Sequential(first, Float(), nn.Linear(500, 501), nn.Tanh(), nn.Linear(501, 3))


class Float(nn.Module):
    def forward(self, x):
        return x.float()


def inputs(rank, step):
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(5 + rank, 7, generator=generator, dtype=torch.float64)


def by_hand(rank_inputs, dtype=None):
    """Each rank's gradient over how many there are, added up in the order of ranks."""
    of_ranks, ranks = [], len(rank_inputs)
    for given in rank_inputs:
        plain = layers()
        plain(given).square().sum().backward()
        grads = [p.grad for p in plain.parameters()]
        of_ranks.append([g * (1 / ranks) if dtype is None else g.to(dtype) / ranks for g in grads])
    return [reduce(torch.add, grads) for grads in zip(*of_ranks, strict=True)]


def step_of(model, given):
    model.zero_grad()
    model(given).square().sum().backward()
    return [p.grad for p in model.parameters()]


def alike(found, expected):
    return all(torch.equal(a, b.to(a.dtype)) for a, b in zip(found, expected, strict=True))


def added_up(options, dtype):
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model = Wrapped(layers(), DefaultDataParallelWrapper(**options)).model
    found = []
    for number in range(4):
        expected = by_hand([inputs(r, number) for r in range(ranks)], dtype)
        found.append(alike(step_of(model, inputs(rank, number)), expected))
    return found


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        pytest.param({"bucket_cap_mb": 1}, None, id="several buckets"),
        pytest.param({"static_graph": False}, None, id="no static graph"),
        pytest.param(
            {"static_graph": False, "find_unused_parameters": True},
            None,
            id="unused are looked for",
        ),
        pytest.param({"allreduce_comm_precision": "bf16"}, torch.bfloat16, id="in bfloat16"),
    ],
)
def test_gradients_are_means_over_ranks_to_the_bit(workers, world_size, options, dtype):
    assert workers.run(added_up, world_size, options, dtype) == [[True] * 4] * world_size


def through_sockets(value):
    """Gradients of two ranks, by each way: there is one order to add two numbers up in."""
    os.environ[ENVIRONMENT_VARIABLE] = value
    wrapped = Wrapped(layers()).model
    found = [[g.clone() for g in step_of(wrapped, inputs(dist.get_rank(), n))] for n in range(3)]
    return channel_of(dist.group.WORLD).another() is not None, found


def test_sockets_give_the_same_gradients_of_two_ranks():
    (shares, one), (_, other) = run(through_sockets, 2, "1"), run(through_sockets, 2, "0")
    assert shares[0]
    assert not other[0]
    for a, b in zip(one[1], other[1], strict=True):
        assert alike(a, b)


def stops_between_hosts():
    """Train on two ranks without shared memory, the second of which stops after a step."""
    os.environ[ENVIRONMENT_VARIABLE] = "0"
    group = dist.new_group(timeout=timedelta(seconds=3))
    model = Wrapped(layers(), group=group).model
    step_of(model, inputs(dist.get_rank(), 0))
    if dist.get_rank() == 1:
        time.sleep(5)
    step_of(model, inputs(dist.get_rank(), 1))


@pytest.mark.slow
def test_a_rank_that_stops_is_named_between_hosts():
    error, other = run(stops_between_hosts, 2)
    assert isinstance(error, RuntimeError)
    assert str(error) == (
        "All ranks should take part in adding up the gradients of layers within 3 s, the `timeout` of their process "
        "group. Received nothing from rank 1: it has stopped, or has left out what others do."
    )
    assert str(error) == str(other)  # which goes on, and is told why nobody else does


def accumulated():
    rank = dist.get_rank()
    model = Wrapped(layers(), DefaultDataParallelWrapper(static_graph=False)).model
    model.zero_grad()
    with model.no_sync():
        model(inputs(rank, 0)).square().sum().backward()
    model(inputs(rank, 1)).square().sum().backward()
    halves = [by_hand([inputs(r, n) for r in range(2)]) for n in range(2)]
    sums = [a + b for a, b in zip(*halves, strict=True)]
    return all(
        torch.allclose(p.grad, total, rtol=1e-5, atol=1e-6)
        for p, total in zip(model.parameters(), sums, strict=True)
    )


def test_batches_that_are_collected_are_added_up_once(workers):
    assert workers.run(accumulated, 2) == [True, True]


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rows, self.over = nn.Embedding(9, 3, sparse=True), nn.Linear(3, 2)

    def forward(self, ids):
        return self.over(self.rows(ids))


def of_rows(dtype):
    rank, found, rtol = dist.get_rank(), [], 1e-5 if dtype is None else 2e-2
    wrapper = DefaultDataParallelWrapper(allreduce_comm_precision=dtype)
    model, plain = Wrapped(Sparse(), wrapper).model, Sparse()
    for step in range(3):
        ids = [torch.tensor([step, 4, r + 5, 4]) for r in range(2)]
        grads = step_of(model, ids[rank])
        plain.zero_grad()
        (sum(plain(each).square().sum() for each in ids) / 2).backward()
        found += [
            (a.is_sparse, torch.allclose(a.to_dense(), b.to_dense(), rtol=rtol, atol=1e-6))
            for a, b in zip(grads, [p.grad for p in plain.parameters()], strict=True)
        ]
    return found


@pytest.mark.parametrize("dtype", [None, "bf16"])
def test_sparse_gradients_are_means_and_stay_sparse(workers, dtype):
    assert workers.run(of_rows, 2, dtype) == [[(True, True), (False, True), (False, True)] * 3] * 2


class Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise ZeroDivisionError


def after_a_failure():
    """A pass that fails after its first bucket was sent leaves nothing for the next model's, or this one's."""
    rank = dist.get_rank()
    hook = Wrapped(layers()).model._hook.call
    assert isinstance(hook, gradient_sums.GradientSums)

    class Bucket:
        def __init__(self, size):
            self.numbers = torch.full((size,), float(rank + 1), requires_grad=False)

        def buffer(self):
            return self.numbers

    buckets = [Bucket(3000), Bucket(4), Bucket(2000)]

    def through(bucket, then):
        x = torch.zeros(1, requires_grad=True)
        seen = then(x) if then else x
        y = seen * 1
        y.register_hook(lambda _: (hook(bucket), None)[1])
        return y.sum()

    with pytest.raises(ZeroDivisionError):
        through(buckets[0], Fails.apply).backward()
    through(buckets[1], None).backward()
    hook(buckets[2])  # outside of a backward pass
    return [bucket.numbers.unique().tolist() for bucket in buckets]


def test_a_pass_that_fails_leaves_nothing_behind(workers):
    for rank, found in enumerate(workers.run(after_a_failure, 2)):
        assert found == [[rank + 1.0], [1.5], [1.5]]


def with_a_hook_of_ones_own():
    model = Wrapped(layers()).model
    assert isinstance(model, PreparedDataParallel)

    def doubled(state, bucket):
        state.append(len(bucket.buffer()))
        done = torch.futures.Future()
        done.set_result(bucket.buffer().mul_(2))
        return done

    seen = []
    model.register_comm_hook(seen, doubled)
    given = inputs(dist.get_rank(), 0)
    found = step_of(model, given)
    with pytest.raises(RuntimeError, match="can only be called once"):
        model.register_comm_hook(seen, doubled)
    return sum(seen) == sum(p.numel() for p in model.parameters()) and alike(
        found, [2 * g for g in by_hand([given])]
    )


def test_a_hook_of_ones_own_takes_its_place(workers):
    assert workers.run(with_a_hook_of_ones_own, 2) == [True, True]


def without_views():
    model = Wrapped(
        layers(), DefaultDataParallelWrapper(ddp_kwargs={"gradient_as_bucket_view": False})
    ).model
    expected = by_hand([inputs(r, 0) for r in range(2)])
    return model._hook is None and alike(step_of(model, inputs(dist.get_rank(), 0)), expected)


def test_gradients_that_are_no_parts_of_buckets_are_left_to_pytorch(workers):
    assert workers.run(without_views, 2) == [True, True]


MANY = 5


def one_after_another():
    """How many files, threads and kB of shared memory there are after each model."""
    found = []
    for number in range(MANY):
        model = Wrapped(layers()).model
        step_of(model, inputs(dist.get_rank(), number))
        del model
        gc.collect()
        dist.barrier()  # what another rank has not freed counts, too
        found.append(
            (len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), shared_memory())
        )
    return found


def shared_memory():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssShmem"))


def test_models_made_one_after_another_leave_nothing_behind(workers):
    # The process has other threads, which open and close files of their own: one file more or less is not
    # the models'. What they leave grows with each of them.
    for found in workers.run(one_after_another, 2):
        grown = [last - first for first, last in zip(found[0], found[-1], strict=True)]
        assert max(grown) < MANY - 1, found


def joined():
    model = Wrapped(layers(), DefaultDataParallelWrapper(static_graph=False)).model
    with pytest.raises(ValueError, match="`divide_by_initial_world_size` should be True where"):
        model.join(divide_by_initial_world_size=False)
    rank = dist.get_rank()
    with model.join():
        for number in range(1 + rank):
            found = step_of(model, inputs(rank, number))
    together = by_hand([inputs(0, 0), inputs(1, 0)])
    alone = [g / 2 for g in by_hand([inputs(1, 1)])]
    return alike(found, alone if rank else together)


def test_a_rank_without_more_data_is_joined_by_means_over_all(workers):
    assert workers.run(joined, 2) == [True, True]


def by_sockets(act, *args):
    os.environ[ENVIRONMENT_VARIABLE] = "0"
    return act(*args)


def all_added_up(options, dtype):
    return all(added_up(options, dtype))


@pytest.mark.parametrize(
    ("act", "args"),
    [
        pytest.param(all_added_up, ({"bucket_cap_mb": 1}, None), id="several buckets"),
        pytest.param(
            all_added_up,
            ({"allreduce_comm_precision": "bf16"}, torch.bfloat16),
            id="in bfloat16",
        ),
        pytest.param(
            all_added_up,
            ({"static_graph": False, "find_unused_parameters": True}, None),
            id="unused are looked for",
        ),
        pytest.param(accumulated, (), id="collected batches"),
        pytest.param(joined, (), id="joined"),
    ],
)
def test_what_memory_does_sockets_do(act, args):
    assert run(by_sockets, 2, act, *args) == [True, True]


def in_mixed_precision():
    options = {"mixed_precision": _MixedPrecision(param_dtype=torch.bfloat16)}
    model = Wrapped(layers(), DefaultDataParallelWrapper(ddp_kwargs=options)).model
    return model._hook is None, len(model._comm_hooks)


def test_mixed_precision_adds_up_by_its_own_hook(workers):
    assert workers.run(in_mixed_precision, 2) == [(True, 1)] * 2


def left_alone():
    model = Wrapped(layers()).model
    step_of(model, inputs(dist.get_rank(), 0))
    if dist.get_rank() == 1:
        return dist.destroy_process_group()
    return step_of(model, inputs(0, 1))


def test_a_rank_that_ends_is_named():
    error, _ = run(left_alone, 2)
    assert isinstance(error, RuntimeError)
    assert "Received nothing more from rank 1, which has ended" in str(error)
