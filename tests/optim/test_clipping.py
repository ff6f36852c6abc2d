import copy
import math

import pytest
import torch
from torch import nn

from torchrec.optim import (
    GradientClipping,
    GradientClippingOptimizer,
    KeyedOptimizerWrapper,
    WarmupOptimizer,
    WarmupPolicy,
    WarmupStage,
)


def make(*args, **kwargs):
    params = {"a": nn.Parameter(torch.zeros(3)), "b": nn.Parameter(torch.zeros(2, 1))}
    params["c"] = nn.Parameter(torch.zeros(1))  # never has a gradient
    params["a"].grad = torch.tensor([3.0, -4.0, 0.0])
    params["b"].grad = torch.tensor([[12.0], [-1.0]])
    inner = KeyedOptimizerWrapper(params, lambda ps: torch.optim.SGD(ps, lr=1.0))
    return params, GradientClippingOptimizer(inner, *args, **kwargs)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, math.inf, "inf"], ids=str)
@pytest.mark.parametrize("bound", [0.5, 100.0])
def test_norm_equals_torch(norm_type, bound):
    params, optimizer = make(GradientClipping.NORM, bound, norm_type)
    reference = copy.deepcopy(params)
    for name, param in reference.items():
        param.grad = None if params[name].grad is None else params[name].grad.clone()
    norm = nn.utils.clip_grad_norm_(reference.values(), bound, float(norm_type))
    optimizer.step()
    torch.testing.assert_close(optimizer.last_total_grad_norm, norm)
    for name, param in reference.items():
        if param.grad is not None:
            torch.testing.assert_close(params[name].detach(), -param.grad)


def test_value_clamps_each_element():
    params, optimizer = make(GradientClipping.VALUE, 2.0)
    optimizer.step()
    assert params["a"].tolist() == [-2.0, 2.0, 0.0]
    assert params["b"].tolist() == [[-2.0], [1.0]]
    assert optimizer.last_total_grad_norm is None


def test_none_clips_nothing():
    params, optimizer = make()
    optimizer.step()
    assert params["a"].tolist() == [-3.0, 4.0, 0.0]
    assert optimizer.last_total_grad_norm is None


@pytest.mark.parametrize("clipping", list(GradientClipping))
def test_norm_is_tracked_before_clipping(clipping):
    _, optimizer = make(clipping, 1.0, track_grad_norm=True)
    optimizer.step()
    assert optimizer.last_total_grad_norm.item() == pytest.approx(170**0.5)


def test_total_norm_and_gradients():
    params, optimizer = make()
    norm, grads = optimizer.compute_total_grad_norm()
    assert norm.item() == pytest.approx(170**0.5)
    assert [grad is params[name].grad for grad, name in zip(grads, "ab", strict=True)] == [True] * 2
    assert optimizer.clip_grad_norm_().item() == pytest.approx(170**0.5)
    assert optimizer.compute_total_grad_norm()[0].item() == pytest.approx(0.1, rel=1e-4)


def test_without_any_gradient():
    _params, optimizer = make(GradientClipping.NORM)
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    assert optimizer.last_total_grad_norm.item() == 0.0


@pytest.mark.parametrize("clipping", [GradientClipping.NORM, GradientClipping.VALUE])
def test_sparse_gradients_are_summed_before_clipping(clipping):
    tables = [nn.Parameter(torch.zeros(4, 2)) for _ in range(2)]
    values = torch.tensor([[3.0, 0.0], [1.0, 0.5], [-1.0, 0.25]])
    tables[0].grad = torch.sparse_coo_tensor(
        torch.tensor([[2, 0, 2]]), values, (4, 2), check_invariants=True
    )
    tables[1].grad = tables[0].grad.to_dense()
    for table in tables:
        inner = KeyedOptimizerWrapper({"t": table}, lambda ps: torch.optim.SGD(ps, lr=1.0))
        GradientClippingOptimizer(inner, clipping, 0.75).step()
    torch.testing.assert_close(tables[0], tables[1])
    assert tables[0].abs().max() <= 0.75


def test_closure_computes_the_gradients_that_are_clipped():
    weight = nn.Parameter(torch.zeros(1))
    inner = KeyedOptimizerWrapper({"w": weight}, lambda ps: torch.optim.SGD(ps, lr=1.0))
    optimizer = GradientClippingOptimizer(inner, GradientClipping.VALUE, 0.5)

    def closure():
        loss = (3.0 * weight).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 0.0
    assert weight.item() == -0.5


def test_around_a_warmup_and_its_state():
    params, optimizer = make(GradientClipping.VALUE, 2.0)
    stages = [WarmupStage(WarmupPolicy.CONSTANT, 9, 0.5)]
    inner = KeyedOptimizerWrapper(params, lambda ps: torch.optim.SGD(ps, lr=9.0))
    optimizer = GradientClippingOptimizer(
        WarmupOptimizer(inner, stages, lr=1.0), GradientClipping.VALUE, 2.0
    )
    optimizer.step()
    assert params["a"].tolist() == [-1.0, 1.0, 0.0]
    assert optimizer.state_dict()["state"]["__warmup"]["warmup"].tolist() == [1, 0]
    optimizer.load_state_dict(optimizer.state_dict())


def test_bounds_are_checked():
    for clipping in (GradientClipping.NORM, GradientClipping.VALUE):
        for wrong in (-1.0, math.nan):
            with pytest.raises(ValueError, match=r"`max_gradient` should be at least 0\. Received"):
                make(clipping, wrong)
    for wrong in ("two", 0.0, math.nan):
        with pytest.raises(ValueError, match="`norm_type` should be above 0, or 'inf'"):
            make(GradientClipping.NORM, 1.0, wrong)


@pytest.mark.parametrize(
    "clipping", [GradientClipping.NORM, GradientClipping.VALUE], ids=lambda c: c.value
)
def test_a_bound_of_nothing_stops_all(clipping):
    params, optimizer = make(clipping, 0.0)
    optimizer.step()
    assert all((param == 0.0).all() for param in params.values())
    assert params["a"].grad.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf])
def test_what_clips_nothing_needs_no_bound(bound):
    params, optimizer = make(GradientClipping.NONE, bound)
    optimizer.step()
    assert params["a"].tolist() == [-3.0, 4.0, 0.0]


EMPTY = {
    "dense": lambda: torch.zeros(0, 3),
    "rows without columns": lambda: torch.zeros(4, 0),
    "sparse": lambda: torch.sparse_coo_tensor(
        torch.zeros(1, 0, dtype=torch.int64), torch.zeros(0, 2), (4, 2), check_invariants=True
    ),
    "sparse without columns": lambda: torch.sparse_coo_tensor(
        torch.tensor([[1, 1]]), torch.zeros(2, 0), (4, 0), check_invariants=True
    ),
}


@pytest.mark.parametrize("others", [True, False], ids=["among others", "alone"])
@pytest.mark.parametrize("norm_type", [1.0, 2.0, "inf"], ids=str)
@pytest.mark.parametrize("clipping", list(GradientClipping), ids=lambda c: c.value)
@pytest.mark.parametrize("empty", EMPTY.values(), ids=EMPTY)
def test_an_empty_gradient_counts_nothing(empty, clipping, norm_type, others):
    params = {"empty": nn.Parameter(empty().to_dense() + 0.0)}
    params["empty"].grad = empty()
    if others:
        params["full"] = nn.Parameter(torch.zeros(2))
        params["full"].grad = torch.tensor([3.0, -4.0])
    before = params["empty"].detach().clone()
    inner = KeyedOptimizerWrapper(params, lambda ps: torch.optim.SGD(ps, lr=1.0))
    optimizer = GradientClippingOptimizer(inner, clipping, 1.0, norm_type, track_grad_norm=True)
    optimizer.step()
    norm = {1.0: 7.0, 2.0: 5.0, "inf": 4.0}[norm_type] if others else 0.0
    assert optimizer.last_total_grad_norm.item() == pytest.approx(norm)
    assert torch.equal(params["empty"], before)
    if others:
        moved = {
            GradientClipping.NORM: [-3.0 / norm, 4.0 / norm],
            GradientClipping.VALUE: [-1.0, 1.0],
            GradientClipping.NONE: [-3.0, 4.0],
        }[clipping]
        assert params["full"].tolist() == pytest.approx(moved, rel=1e-5)


RANKS = """
result = {}
for norm_type in (2.0, "inf"):
    shard, shared = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    # Rank 1 has no gradient for its shard, and still takes part in the reduction.
    shard.grad = torch.tensor([3.0, 4.0]) if rank == 0 else None
    shared.grad = torch.tensor([12.0, 0.0])
    params = {"shard": shard, "shared": shared}
    inner = KeyedOptimizerWrapper(params, lambda ps: torch.optim.SGD(ps, lr=1.0))
    optimizer = GradientClippingOptimizer(
        inner,
        GradientClipping.NORM,
        1.0,
        norm_type,
        enable_global_grad_clip=True,
        param_to_pgs={shard: [dist.group.WORLD]},
    )
    optimizer.step()
    result[str(norm_type)] = optimizer.last_total_grad_norm.item(), shared.tolist()
    # Rank 0 has an empty shard, of another type, and no gradient that is shared.
    shard = nn.Parameter(torch.zeros(2 * rank, dtype=torch.float32 if rank else torch.float64))
    shard.grad = shard.detach() + 4.0
    inner = KeyedOptimizerWrapper({"shard": shard}, lambda ps: torch.optim.SGD(ps, lr=1.0))
    optimizer = GradientClippingOptimizer(
        inner, GradientClipping.NORM, 1.0, norm_type, True, {shard: [dist.group.WORLD]}
    )
    optimizer.step()
    result[f"{norm_type} uneven"] = optimizer.last_total_grad_norm.item(), shard.tolist()
"""


@pytest.mark.once
def test_norm_over_process_groups(run_ranks):
    results = run_ranks(RANKS)
    for result in results:
        for norm_type, wanted in (("2.0", 13.0), ("inf", 12.0)):
            norm, weights = result[norm_type]
            assert norm == pytest.approx(wanted)
            assert weights == pytest.approx([-12.0 / wanted, 0.0], rel=1e-5)
    nobody, somebody = results
    for norm_type, wanted in (("2.0", 32**0.5), ("inf", 4.0)):
        assert nobody[f"{norm_type} uneven"] == [pytest.approx(wanted), []]
        norm, weights = somebody[f"{norm_type} uneven"]
        assert norm == pytest.approx(wanted)
        assert weights == pytest.approx([-4.0 / wanted] * 2, rel=1e-5)
