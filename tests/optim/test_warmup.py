import pytest
import torch
from torch import nn

from torchrec.optim import (
    CombinedOptimizer,
    EmptyFusedOptimizer,
    KeyedOptimizer,
    KeyedOptimizerWrapper,
    WarmupOptimizer,
    WarmupPolicy,
    WarmupStage,
)

P = WarmupPolicy


def make(stages, lr=1.0, **kwargs):
    weight = nn.Parameter(torch.zeros(2))
    inner = KeyedOptimizerWrapper({"w": weight}, lambda ps: torch.optim.SGD(ps, lr=123.0))
    return weight, WarmupOptimizer(inner, stages, lr=lr, **kwargs)


def rates(weight, optimizer, steps):
    """Measure the learning rates from how far the weight moves."""
    result = []
    for _ in range(steps):
        before = weight.detach().clone()
        weight.grad = torch.ones(2)
        optimizer.step()
        result.append((before - weight)[0].item())
    return result


COURSES = {
    "empty": ([], [1, 1, 1]),
    "none": ([WarmupStage(P.NONE, 1, lr_scale=0.5)], [0.5, 0.5, 1]),
    "constant": ([WarmupStage(P.CONSTANT, 2, 0.2)], [0.2, 0.2, 0.2, 1]),
    "linear": ([WarmupStage(P.LINEAR, 4, 0.2)], [0.2, 0.4, 0.6, 0.8, 1, 1]),
    "poly": ([WarmupStage(P.POLY, 5, 2.0)], [1, 0.64, 0.36, 0.16, 0.04, 0, 1]),
    "poly_of_longer_decay": (
        [WarmupStage(P.POLY, 3, 2.0, decay_iters=10)],
        [1, 0.81, 0.64, 0.49, 1],
    ),
    "poly_after_its_decay": (
        [WarmupStage(P.POLY, 4, 1.0, decay_iters=2)],
        [1, 0.5, 0, 0, 0, 1],
    ),
    "step": ([WarmupStage(P.STEP, 4, 0.5, decay_iters=2)], [1, 1, 0.5, 0.5, 0.25, 1]),
    "step_each_iteration": ([WarmupStage(P.STEP, 2, 0.5)], [1, 0.5, 0.25, 1]),
    "inverse_root": ([WarmupStage(P.INVSQRT, 4)], [1, 1, 2**-0.5, 3**-0.5, 0.5, 1]),
    "cosine": (
        [WarmupStage(P.COSINE_ANNEALING_WARM_RESTARTS, 5, 0.1, sgdr_period=4)],
        [1, 0.868198, 0.55, 0.231802, 1, 0.868198, 1],
    ),
    "interpolate": (
        [WarmupStage(P.INTERPOLATE, 4, 0.2, start_interpolating_iters=2, end_value=0.8)],
        [0.2, 0.2, 0.2, 0.5, 0.8, 1],
    ),
    "two_stages": (
        [WarmupStage(P.CONSTANT, 1, 0.5), WarmupStage(P.POLY, 4, 1.0, lr_scale=2.0)],
        [0.5, 0.5, 1.0, 0.5, 0, 1],
    ),
}


@pytest.mark.parametrize(("stages", "wanted"), COURSES.values(), ids=COURSES.keys())
def test_course(stages, wanted):
    weight, optimizer = make(stages, lr=2.0)
    assert rates(weight, optimizer, len(wanted)) == pytest.approx([2.0 * w for w in wanted], 1e-5)


def test_state_is_the_position_under_its_name_and_round_trips():
    stages = [WarmupStage(P.LINEAR, 4, 0.2), WarmupStage(P.CONSTANT, 6, 0.1)]
    weight, optimizer = make(stages, param_name="course")
    rates(weight, optimizer, 3)
    saved = optimizer.state_dict()
    assert saved["state"] == {"course": {"warmup": saved["state"]["course"]["warmup"]}}
    assert saved["state"]["course"]["warmup"].tolist() == [3, 0]
    other, fresh = make(stages, param_name="course")
    fresh.load_state_dict(saved)
    assert fresh.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    left, right = rates(weight, optimizer, 6), rates(other, fresh, 6)
    wanted = [0.8, 1.0, 0.1, 0.1, 1.0, 1.0]
    assert left == pytest.approx(wanted, rel=1e-5)
    assert right == pytest.approx(wanted, rel=1e-5)


def test_inside_a_combined_optimizer():
    weight, warmup = make([WarmupStage(P.LINEAR, 2, 0.0)])
    bias = nn.Parameter(torch.zeros(2))
    plain = KeyedOptimizerWrapper({"b": bias}, lambda ps: torch.optim.SGD(ps, lr=0.5))
    optimizer = CombinedOptimizer([("x", warmup), ("y", plain)])
    assert rates(weight, optimizer, 2) == [0.0, 0.5]
    assert list(optimizer.params) == ["x.w", "x.__warmup", "y.b"]
    _, again = make([WarmupStage(P.LINEAR, 2, 0.0)])
    CombinedOptimizer([("x", again), ("y", plain)]).load_state_dict(optimizer.state_dict())
    assert again.param_groups[0]["lr"] == 1.0
    assert plain.param_groups[0]["lr"] == 0.5


def test_all_groups_get_its_rate_and_keep_their_own_where_each_is_warmed_up():
    def inner(name, rate):
        return KeyedOptimizerWrapper(
            {name: nn.Parameter(torch.ones(1))}, lambda params: torch.optim.SGD(params, lr=rate)
        )

    def warm(optimizer, rate, name="__warmup"):
        stages = [WarmupStage(WarmupPolicy.LINEAR, max_iters=4, value=0.5)]
        return WarmupOptimizer(optimizer, stages, rate, param_name=name)

    together = warm(CombinedOptimizer([inner("a", 1.0), inner("b", 0.1)]), 0.01)
    apart = CombinedOptimizer(
        [warm(inner("a", 9.0), 1.0, "of a"), warm(inner("b", 9.0), 0.1, "of b")]
    )
    for factor in (0.5, 0.625, 0.75):
        assert [group["lr"] for group in together.param_groups] == pytest.approx(
            [0.01 * factor] * 2
        )
        rates = [group["lr"] for group in apart.param_groups if group["params"]]
        assert rates == pytest.approx([1.0 * factor, 0.1 * factor])
        together.step(), apart.step()


def test_changed_rate_by_hand_counts_once_and_by_update_for_good():
    weight, optimizer = make([WarmupStage(P.CONSTANT, 9, 0.5)])
    optimizer.param_groups[0]["lr"] = 7.0
    assert rates(weight, optimizer, 2) == [7.0, 0.5]
    optimizer.update_hyper_parameters({"lr": 4.0})
    assert rates(weight, optimizer, 2) == [2.0, 2.0]


def test_another_hyper_parameter_can_be_warmed_up():
    _weight, optimizer = make([WarmupStage(P.CONSTANT, 9, 0.5)], lr=0.8, lr_param="momentum")
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"]) == (123.0, 0.4)
    with pytest.raises(ValueError, match=r"`lr_param` should name .*'lr',.* Received 'rate'"):
        make([], lr_param="rate")


def test_groups_without_the_rate_get_it():
    """As those of optimizers have, which are made of parameters, state and groups alone."""
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    group = {"params": weights[:1]}
    bare = KeyedOptimizer({"bare": weights[0]}, {}, [group])
    full = KeyedOptimizerWrapper({"w": weights[1]}, lambda ps: torch.optim.SGD(ps, lr=9.0))
    half = KeyedOptimizerWrapper(
        {"h": weights[2]}, lambda ps: torch.optim.SGD(ps, lr=9.0, momentum=0.5)
    )
    del half.param_groups[0]["momentum"]
    both = CombinedOptimizer([("a", bare), ("b", full)])
    stages = [WarmupStage(P.LINEAR, 2, 0.5)]
    optimizer = WarmupOptimizer(both, stages, lr=0.4)
    assert [g["lr"] for g in optimizer.param_groups] == [0.2, 0.2]
    saved = optimizer.state_dict()
    assert saved["param_groups"][0] == {"params": ["a.bare"], "lr": 0.2}
    group.pop("lr")
    optimizer.load_state_dict(saved)
    assert [g["lr"] for g in optimizer.param_groups] == [0.2, 0.2]
    one = CombinedOptimizer([("a", full), ("b", half)])
    WarmupOptimizer(one, stages, lr=0.4, lr_param="momentum")
    assert [g["momentum"] for g in one.param_groups] == [0.2, 0.2]
    assert WarmupOptimizer(EmptyFusedOptimizer(), stages).param_groups == []


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: WarmupStage(P.LINEAR, 0), r"`max_iters` should be at least 1\. Received 0"),
        (lambda: WarmupStage(sgdr_period=0), r"`sgdr_period` should be at least 1"),
        (lambda: WarmupStage(decay_iters=0), r"`decay_iters` should be at least 1, or -1"),
        (lambda: WarmupStage(P.INTERPOLATE, 4), r"`start_interpolating_iters` should be given"),
        (
            lambda: WarmupStage(P.INTERPOLATE, 4, start_interpolating_iters=1),
            r"`end_value` should be given",
        ),
        (
            lambda: WarmupStage(P.INTERPOLATE, 4, start_interpolating_iters=4, end_value=1.0),
            r"should be in \[0, 4\), .* Received 4",
        ),
        (
            lambda: make([WarmupStage(P.NONE, 3), WarmupStage(P.NONE, 3)]),
            r"`max_iters` should increase from stage to stage, above 3\. Received 3",
        ),
        (lambda: make([], param_name="w"), r"`param_name` should be no parameter\. Received 'w'"),
    ],
)
def test_what_makes_no_course_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
