import copy

import pytest
import torch
from torch import nn

from torchrec.optim import (
    KeyedOptimizerWrapper,
    SemisyncOptimizer,
    WarmupOptimizer,
    WarmupPolicy,
    WarmupStage,
)


def make(num_local_steps=3, names=("a", "b"), seed=0, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    params = {name: nn.Parameter(torch.randn(2, generator=generator)) for name in names}
    local = KeyedOptimizerWrapper(params, lambda ps: torch.optim.Adam(ps, lr=0.1))
    outer = KeyedOptimizerWrapper(
        params, lambda ps: torch.optim.SGD(ps, lr=0.7, momentum=0.9, nesterov=True)
    )
    form = kwargs.pop("form", list)
    return params, SemisyncOptimizer(form(params.values()), local, outer, num_local_steps, **kwargs)


def train(optimizer, params, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for name in sorted(params):
            params[name].grad = torch.randn(2, generator=generator)
        optimizer.step()


def test_equals_the_plain_loop():
    params, optimizer = make()
    weight = nn.Parameter(params["a"].detach().clone())
    kept = nn.Parameter(weight.detach().clone())
    local = torch.optim.Adam([weight], lr=0.1)
    outer = torch.optim.SGD([kept], lr=0.7, momentum=0.9, nesterov=True)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 11):
        weight.grad = torch.randn(2, generator=generator)
        torch.randn(2, generator=generator)
        local.step()
        if step % 3 == 0:
            kept.grad = (kept - weight).detach()
            outer.step()
            weight.data.copy_(kept.data)
    train(optimizer, params, 10)
    torch.testing.assert_close(params["a"], weight)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("steps", [2, 3, 5])
def test_round_trip_continues_bit_identically(offload, steps, tmp_path):
    params, optimizer = make()
    train(optimizer, params, steps)
    optimizer.param_groups[0]["lr"] = 0.05
    optimizer.param_groups[1]["lr"] = 0.35
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    others, fresh = make(seed=3, offload_global_model=offload, non_blocking=offload)
    fresh.load_state_dict(torch.load(tmp_path / "state.pt"))
    for name in params:
        others[name].data.copy_(params[name].data)
    train(optimizer, params, 7, seed=5)
    train(fresh, others, 7, seed=5)
    for name in params:
        assert torch.equal(params[name], others[name])


def test_gradients_of_the_local_step_survive_the_global_one():
    params, optimizer = make(num_local_steps=1)
    train(optimizer, params, 1)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(params["a"].grad, torch.randn(2, generator=generator))
    optimizer.zero_grad()
    assert params["a"].grad is None


def test_state_names_and_groups():
    params, optimizer = make()
    train(optimizer, params, 3)
    saved = optimizer.state_dict()
    assert list(saved["state"]) == [
        "a",
        "b",
        "__semisync_global_step_counter__",
        "__semisync_local_step_counter__",
    ]
    assert set(saved["state"]["a"]) == {
        "semi_sync_local_step",
        "semi_sync_local_exp_avg",
        "semi_sync_local_exp_avg_sq",
        "semi_sync_global_momentum_buffer",
        "semi_sync_global_weight",
    }
    assert saved["state"]["__semisync_local_step_counter__"]["step"] == 3
    assert saved["state"]["__semisync_global_step_counter__"]["step"] == 1
    assert [group["lr"] for group in saved["param_groups"]] == [0.1, 0.7]
    optimizer.save_param_groups(False)
    assert set(optimizer.state_dict()) == {"state"}
    optimizer.load_state_dict(optimizer.state_dict())


def test_schedulers_and_hyper_parameters_reach_both():
    params, optimizer = make()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    train(optimizer, params, 1)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.35]
    optimizer.update_hyper_parameters({"lr": 0.2, "momentum": 0.5})
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.2]
    assert optimizer.param_groups[1]["momentum"] == 0.5
    optimizer.set_optimizer_step(7)
    state = optimizer.state_dict()["state"]
    assert state["a"]["semi_sync_local_step"] == 7
    assert state["__semisync_global_step_counter__"]["step"] == 2


def test_init_state_moves_nothing():
    params, optimizer = make()
    before = copy.deepcopy(params)
    optimizer.init_state()
    assert "semi_sync_local_exp_avg" in optimizer.state_dict()["state"]["a"]
    for name in params:
        assert torch.equal(params[name], before[name])


@pytest.mark.parametrize(
    "form",
    [
        list,
        lambda ps: [{"params": [p]} for p in ps],
        lambda ps: [{"params": p} for p in ps],
        lambda ps: [(str(i), p) for i, p in enumerate(ps)],
    ],
    ids=["tensors", "groups", "groups_of_one", "pairs"],
)
def test_global_params_in_every_form(form):
    params, optimizer = make(form=form)
    train(optimizer, params, 3)
    other, reference = make()
    train(reference, other, 3)
    assert torch.equal(params["a"], other["a"])


def test_with_warmup_inside_and_other_names_for_the_same_tensor():
    def build():
        weight = nn.Parameter(torch.zeros(2))
        local = KeyedOptimizerWrapper({"w": weight}, lambda ps: torch.optim.SGD(ps, lr=1.0))
        stages = [WarmupStage(WarmupPolicy.LINEAR, 4, 0.0)]
        outer = KeyedOptimizerWrapper({"m.w": weight}, lambda ps: torch.optim.SGD(ps, lr=0.5))
        warm = WarmupOptimizer(local, stages, lr=1.0)
        return {"w": weight}, SemisyncOptimizer([weight], warm, outer, 2)

    params, optimizer = build()
    train(optimizer, params, 3)
    others, fresh = build()
    fresh.load_state_dict(optimizer.state_dict())
    others["w"].data.copy_(params["w"].data)
    train(optimizer, params, 3)
    train(fresh, others, 3)
    assert torch.equal(params["w"], others["w"])


def test_what_does_not_fit_is_named():
    params, optimizer = make()
    with pytest.raises(ValueError, match=r"`num_local_steps` should be at least 1\. Received 0"):
        make(num_local_steps=0)
    with pytest.raises(ValueError, match=r"parameters of `global_optimizer`\. Received 0 others"):
        make(form=lambda ps: list(ps)[:1])
    train(optimizer, params, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"]["b"]["semi_sync_global_weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"weight' of 'b' should be .*\(2,\)\. Received \(3,\)"):
        optimizer.load_state_dict(saved)
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["state"]["__semisync_local_step_counter__"]
    with pytest.raises(ValueError, match=r"'step' of \['__semisync_local_step_counter__'\]"):
        optimizer.load_state_dict(saved)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"]["b"]["exp_avg"] = torch.zeros(2)
    with pytest.raises(ValueError, match=r"start with 'semi_sync_local_' or .* Received 'exp_avg'"):
        optimizer.load_state_dict(saved)


def test_a_state_saved_under_former_names_goes_on():
    params, optimizer = make()
    train(optimizer, params, 4)
    saved = copy.deepcopy(optimizer.state_dict())
    for name in params:
        saved["state"][name] = {
            key.removeprefix("semi_sync_local_").replace(
                "semi_sync_global_", "__semisync_global__."
            ): value
            for key, value in saved["state"][name].items()
        }
    assert {"exp_avg", "__semisync_global__.weight"} <= set(saved["state"]["a"])
    others, fresh = make(seed=3)
    fresh.load_state_dict(saved)
    for name in params:
        others[name].data.copy_(params[name].data)
    for each, its in ((optimizer, params), (fresh, others)):
        train(each, its, 7, seed=5)
    for name in params:
        assert torch.equal(params[name], others[name])


RANKS = """
weight = nn.Parameter(torch.zeros(1))
local = KeyedOptimizerWrapper({"w": weight}, lambda ps: torch.optim.SGD(ps, lr=1.0))
outer = KeyedOptimizerWrapper({"w": weight}, lambda ps: torch.optim.SGD(ps, lr=0.5))
optimizer = SemisyncOptimizer([weight], local, outer, num_local_steps=2)
result = []
for _ in range(4):
    weight.grad = torch.tensor([1.0 + 2.0 * rank])
    optimizer.step()
    result.append(weight.item())
"""


def test_workers_meet_in_the_middle(run_ranks):
    # Two steps of -1 and of -3: -4 on the mean, half of it taken.
    assert run_ranks(RANKS) == [[-1.0, -2.0, -3.0, -4.0], [-3.0, -2.0, -5.0, -4.0]]
