import copy
import pickle

import pytest
import torch
from torch import nn

from torchrec.optim import (
    Adam,
    CombinedOptimizer,
    EmptyFusedOptimizer,
    GradientClipping,
    GradientClippingOptimizer,
    KeyedOptimizer,
    KeyedOptimizerWrapper,
    OptimizerWrapper,
    PartialRowWiseAdam,
    RowWiseAdagrad,
    SemisyncOptimizer,
    WarmupOptimizer,
)


def make(names=("a", "b"), factory=lambda ps: torch.optim.Adam(ps, lr=0.1), seed=0):
    generator = torch.Generator().manual_seed(seed)
    params = {name: nn.Parameter(torch.randn(3, 2, generator=generator)) for name in names}
    return params, KeyedOptimizerWrapper(params, factory)


def train(optimizer, params, steps=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for name in sorted(params):
            params[name].grad = torch.randn(params[name].shape, generator=generator)
        optimizer.step()


FACTORIES = {
    "adam": lambda ps: torch.optim.Adam(ps, lr=0.1, weight_decay=0.1),
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
    "adagrad": lambda ps: torch.optim.Adagrad(ps, lr=0.1),
    "ours": lambda ps: Adam(ps, lr=0.1),
    "rowwise_adam": lambda ps: PartialRowWiseAdam(ps, lr=0.1),
    "rowwise_adagrad": lambda ps: RowWiseAdagrad(ps, lr=0.1),
}
factories = pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES.keys())


@factories
@pytest.mark.parametrize("trained", [False, True], ids=["into_fresh", "into_trained"])
def test_round_trip_continues_bit_identically_whatever_the_order(factory, trained, tmp_path):
    params, optimizer = make(("a", "b"), factory)
    train(optimizer, params)
    optimizer.param_groups[0]["lr"] = 0.03
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    others, fresh = make(("b", "a"), factory, seed=5)
    if trained:
        train(fresh, others, seed=8)
    fresh.load_state_dict(torch.load(tmp_path / "state.pt"))
    for name in params:
        others[name].data.copy_(params[name].data)
    train(optimizer, params, seed=3)
    train(fresh, others, seed=3)
    for name in params:
        assert torch.equal(params[name], others[name])


def test_state_dict_is_keyed_by_name():
    params, optimizer = make()
    train(optimizer, params, steps=2)
    saved = optimizer.state_dict()
    assert list(saved["state"]) == ["a", "b"]
    assert set(saved["state"]["a"]) == {"step", "exp_avg", "exp_avg_sq"}
    assert saved["state"]["a"]["exp_avg"] is optimizer.state[params["a"]]["exp_avg"]
    assert saved["param_groups"][0]["params"] == ["a", "b"]
    assert saved["param_groups"][0]["lr"] == 0.1


def test_groups_may_be_left_out_and_then_keep_their_values():
    params, optimizer = make()
    train(optimizer, params)
    optimizer.save_param_groups(False)
    saved = optimizer.state_dict()
    assert set(saved) == {"state"}
    _, fresh = make(factory=lambda ps: torch.optim.Adam(ps, lr=0.7))
    fresh.load_state_dict(saved)
    assert fresh.param_groups[0]["lr"] == 0.7


def test_load_writes_into_the_tensors_that_are_there():
    params, optimizer = make()
    train(optimizer, params)
    others, other = make()
    train(other, others, seed=9)
    held = other.state[others["a"]]["exp_avg"]
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(held, optimizer.state[params["a"]]["exp_avg"])


def corrupted(change):
    params, optimizer = make()
    train(optimizer, params)
    saved = copy.deepcopy(optimizer.state_dict())
    change(saved)
    return saved


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("state"), r"`state_dict` should have 'state'"),
        (lambda s: s["state"].pop("b"), r"should hold state of 'b'\. Received \['a'\]"),
        (lambda s: s["state"].update(c={}), r"state of \['a', 'b'\]\. Received 'c'"),
        (
            lambda s: s["state"]["b"].pop("step"),
            r"State of 'b' should be \['exp_avg', 'exp_avg_sq'",
        ),
        (
            lambda s: s["state"]["b"].update(exp_avg=torch.zeros(2, 2)),
            r"State 'exp_avg' of 'b' should be a tensor of shape \(3, 2\)\. "
            r"Received a tensor of shape \(2, 2\)\.",
        ),
        (lambda s: s["state"]["b"].update(exp_avg=1.0), r"Received a float\."),
        (
            lambda s: s["param_groups"][0]["params"].pop(),
            r"parameter group of \['a', 'b'\]\. Received groups of \[\['a'\]\]",
        ),
        (
            lambda s: s["param_groups"].append({"params": ["c"]}),
            r"Received further groups of \[\['c'\]\]",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(change, message):
    params, optimizer = make(seed=4)
    train(optimizer, params, seed=4)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(corrupted(change))
    after = optimizer.state_dict()
    for name, values in before["state"].items():
        for key, value in values.items():
            assert torch.equal(value, after["state"][name][key])


def test_parameters_and_names_must_belong_together():
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    with pytest.raises(
        ValueError, match=r"Keys of `state`.*shape \(3,\), which is none of \['a'\]"
    ):
        KeyedOptimizer({"a": a}, {b: {}}, [])
    with pytest.raises(ValueError, match=r"`param_groups` should hold.*none of \['a'\]"):
        KeyedOptimizer({"a": a}, {}, [{"params": [b]}])
    with pytest.raises(ValueError, match=r"one name\. Received 'a' and 'x' for one"):
        KeyedOptimizer({"a": a, "x": a}, {}, [])
    with pytest.raises(TypeError, match=r"`optim_factory` should make .* Received list"):
        KeyedOptimizerWrapper({"a": a}, lambda ps: ps)
    with pytest.raises(ValueError, match=r"`param_groups` should hold"):
        KeyedOptimizerWrapper({"a": a}, lambda ps: torch.optim.SGD([b], lr=0.1))


def test_factory_may_take_the_names():
    seen = []

    def factory(params):
        seen.append(params)
        return torch.optim.SGD(list(params.values()), lr=0.1)

    params = {"a": nn.Parameter(torch.ones(2))}
    KeyedOptimizerWrapper(params, factory, pass_params_dict=True)
    assert seen == [params]


@factories
def test_init_state_makes_the_state_of_the_first_step_and_moves_nothing(factory):
    params, optimizer = make(factory=factory)
    plain, other = make(factory=factory)
    params["a"].grad = torch.ones(3, 2)
    weights = {name: param.detach().clone() for name, param in params.items()}
    optimizer.init_state()
    assert torch.equal(params["a"].grad, torch.ones(3, 2))
    assert params["b"].grad is None
    for name, weight in weights.items():
        assert torch.equal(params[name], weight)
    saved = copy.deepcopy(optimizer.state_dict())
    train(optimizer, params)
    train(other, plain)
    for name in params:
        assert torch.equal(params[name], plain[name])
        if saved["state"]:
            assert set(saved["state"][name]) == set(other.state[plain[name]])
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_init_state_leaves_state_that_is_there():
    params, optimizer = make()
    train(optimizer, params)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.init_state()
    assert torch.equal(before["a"]["exp_avg"], optimizer.state[params["a"]]["exp_avg"])
    assert before["a"]["step"] == optimizer.state[params["a"]]["step"]


def test_init_state_with_sparse_gradients():
    _params, optimizer = make(factory=lambda ps: torch.optim.SparseAdam(ps, lr=0.1))
    optimizer.init_state({"a", "b"})
    assert set(optimizer.state_dict()["state"]) == {"a", "b"}
    with pytest.raises(ValueError, match=r"among \['a', 'b'\]\. Received \['c'\]"):
        optimizer.init_state({"c"})


def combined():
    tables, first = make(("t",), lambda ps: RowWiseAdagrad(ps, lr=1.0))
    dense, second = make(("w", "b"), lambda ps: torch.optim.Adam(ps, lr=0.1), seed=1)
    optimizer = CombinedOptimizer([("tables", first), second])
    return {"tables.t": tables["t"], **dense}, optimizer


def wrapped():
    params, optimizer = make()
    return params, OptimizerWrapper(optimizer)


KINDS = {"wrapper": make, "combined": combined, "around": wrapped}
kinds = pytest.mark.parametrize("build", KINDS.values(), ids=KINDS.keys())


@kinds
def test_every_kind_round_trips(build):
    params, optimizer = build()
    train(optimizer, params)
    others, fresh = build()
    fresh.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
    for name in params:
        others[name].data.copy_(params[name].data)
    train(optimizer, params, seed=3)
    train(fresh, others, seed=3)
    for name in params:
        assert torch.equal(params[name], others[name])
    assert dict(optimizer.params) == params


SCHEDULERS = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 4),
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda n: 0.9**n),
    "one_cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(
        o, 0.5, total_steps=10, cycle_momentum=False
    ),
}


@kinds
@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=SCHEDULERS.keys())
def test_schedulers_move_every_group_as_on_plain_optimizers(build, schedule):
    params, optimizer = build()
    plain = torch.optim.SGD(
        [{"params": list(g["params"]), "lr": g["lr"]} for g in optimizer.param_groups]
    )
    scheduler, reference = schedule(optimizer), schedule(plain)
    for _ in range(5):
        train(optimizer, params, steps=1)
        scheduler.step()
        plain.step()
        reference.step()
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == [group["lr"] for group in plain.param_groups]


def test_one_cycle_cycles_momentum_where_groups_have_it():
    _, optimizer = make()
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=10)
    assert optimizer.param_groups[0]["betas"] == (0.95, 0.999)


@kinds
def test_learning_rate_changed_by_hand_counts_at_the_next_step(build):
    params, optimizer = build()
    train(optimizer, params)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = {name: param.detach().clone() for name, param in params.items()}
    train(optimizer, params, steps=1)
    for name, param in params.items():
        assert torch.equal(param, before[name])


@kinds
def test_hyper_parameters_and_steps_are_set_everywhere(build):
    params, optimizer = build()
    train(optimizer, params)
    optimizer.update_hyper_parameters({"lr": 0.25})
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}
    optimizer.set_optimizer_step(41)
    assert {int(state["step"]) for state in optimizer.state.values()} == {41}
    with pytest.raises(ValueError, match=r"`params_dict` should name some of .* Received 'eta'"):
        optimizer.update_hyper_parameters({"lr": 0.5, "eta": 1.0})
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}


@kinds
def test_zero_grad_and_init_state_reach_every_parameter(build):
    params, optimizer = build()
    train(optimizer, params)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params.values())
    params, optimizer = build()
    optimizer.init_state()
    assert set(optimizer.state_dict()["state"]) == set(params)


AROUND = {
    "wrapper": lambda inner: inner,
    "around": OptimizerWrapper,
    "combined": lambda inner: CombinedOptimizer([("x", inner)]),
    "clipping": lambda inner: GradientClippingOptimizer(inner, GradientClipping.NORM, 9.0),
    "warmup": lambda inner: WarmupOptimizer(inner, [], lr=0.1),
    "semisync": lambda inner: SemisyncOptimizer([], inner, EmptyFusedOptimizer()),
}


@pytest.mark.parametrize("arguments", [(), (False,), (True,)], ids=str)
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_a_parameter_that_a_step_does_not_use_stays(around, arguments):
    used, unused = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    inner = KeyedOptimizerWrapper(
        {"used": used, "unused": unused}, lambda ps: torch.optim.Adam(ps, lr=0.1)
    )
    optimizer = around(inner)
    (used + unused).sum().backward()
    optimizer.step()
    for _ in range(2):
        optimizer.zero_grad(*arguments)
        assert unused.grad is None
        used.sum().backward()
        optimizer.step()
    assert unused.item() == pytest.approx(0.9)
    assert used.item() == pytest.approx(0.7)
    assert inner.state[unused]["step"] == 1


@kinds
def test_deepcopy_trains_a_copy(build):
    params, optimizer = build()
    train(optimizer, params)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    twin = copy.deepcopy(optimizer)
    train(optimizer, params, seed=3)
    train(twin, dict(twin.params), seed=3)
    for name, param in twin.params.items():
        assert param is not params[name]
        assert torch.equal(param, params[name])


@kinds
def test_closure_is_called_once(build):
    params, optimizer = build()
    calls = []

    def closure():
        calls.append(1)
        loss = sum(param.sum() for param in params.values())
        loss.backward()
        return loss

    before = {name: param.detach().clone() for name, param in params.items()}
    loss = optimizer.step(closure)
    assert len(calls) == 1
    torch.testing.assert_close(loss, sum(value.sum() for value in before.values()))
    assert all(not torch.equal(params[name], before[name]) for name in params)


@kinds
def test_hooks_of_torch_are_called(build):
    params, optimizer = build()
    called = []
    optimizer.register_step_pre_hook(lambda *_: called.append("before step"))
    optimizer.register_step_post_hook(lambda *_: called.append("after step"))
    optimizer.register_state_dict_post_hook(lambda _, saved: {**saved, "extra": 1})
    optimizer.register_load_state_dict_pre_hook(lambda *_: called.append("before load"))
    optimizer.register_load_state_dict_post_hook(lambda _: called.append("after load"))
    train(optimizer, params, steps=1)
    saved = optimizer.state_dict()
    assert saved["extra"] == 1
    optimizer.load_state_dict(saved)
    assert called == ["before step", "after step", "before load", "after load"]


def test_combined_names_and_their_clashes():
    _, a = make(("w",))
    _, b = make(("w",))
    optimizer = CombinedOptimizer([("x", a), ("y", b)])
    assert list(optimizer.params) == ["x.w", "y.w"]
    assert optimizer.optimizers == [("x", a), ("y", b)]
    assert CombinedOptimizer.prepend_opt_key("w", "x") == "x.w"
    assert CombinedOptimizer.prepend_opt_key("w", "") == "w"
    with pytest.raises(ValueError, match=r"should differ\. Received 'w' from two optimizers"):
        CombinedOptimizer([a, b])
    with pytest.raises(ValueError, match=r"Received 'x\.w'"):
        CombinedOptimizer([("x", a), ("x", b)])
    with pytest.raises(TypeError, match=r"KeyedOptimizers\. Received SGD"):
        CombinedOptimizer([torch.optim.SGD([nn.Parameter(torch.ones(1))])])
    with pytest.raises(TypeError, match=r"KeyedOptimizer\. Received SGD"):
        OptimizerWrapper(torch.optim.SGD([nn.Parameter(torch.ones(1))]))


def test_combined_can_be_nested_and_updates_only_who_has_the_hyper_parameter():
    params, inner = combined()
    outer = CombinedOptimizer([("model", inner)])
    assert list(outer.params) == [f"model.{name}" for name in params]
    outer.update_hyper_parameters({"betas": (0.5, 0.5)})
    assert ["betas" in group for group in outer.param_groups] == [False, True]
    outer.save_param_groups(False)
    assert set(inner.state_dict()) == {"state"}
    outer.init_state({"model.tables.t"})
    with pytest.raises(ValueError, match=r"Received \['tables\.t'\]"):
        outer.init_state({"tables.t"})


def test_groups_are_added_by_name():
    params, optimizer = make(("a",))
    c = nn.Parameter(torch.ones(2))
    OptimizerWrapper(optimizer).add_param_group({"params": {"c": c}, "lr": 0.5})
    assert list(optimizer.params) == ["a", "c"]
    assert optimizer.param_groups[1]["lr"] == 0.5
    train(optimizer, {**params, "c": c})
    assert set(optimizer.state_dict()["state"]) == {"a", "c"}
    with pytest.raises(
        ValueError, match=r"pairs, of name and parameter\. Received \['Parameter'\]"
    ):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    with pytest.raises(ValueError, match=r"should differ\. Received 'a' again"):
        optimizer.add_param_group({"params": [("a", nn.Parameter(torch.ones(2)))]})
    with pytest.raises(NotImplementedError, match="all parameters when it is made"):
        CombinedOptimizer([optimizer]).add_param_group({"params": {}})


class Preconditioner:
    """State that is an object, as second-order optimizers keep it."""

    def __init__(self, factor):
        self.factor = torch.full((2, 2), float(factor))

    def state_dict(self):
        return {"factor": self.factor}

    def load_state_dict(self, state_dict):
        self.factor.copy_(state_dict["factor"])


@pytest.mark.parametrize("combined", [False, True])
def test_state_that_has_a_state_dict_loads_itself(combined):
    def build(factor):
        tables = {"t": nn.Parameter(torch.zeros(2)), "u": nn.Parameter(torch.zeros(3))}
        state = {
            p: {"step": 1, "scale": Preconditioner(factor + n)}
            for n, p in enumerate(tables.values())
        }
        optimizer = KeyedOptimizer(tables, state, [{"params": list(tables.values()), "lr": 0.1}])
        return CombinedOptimizer([optimizer]) if combined else optimizer

    saved = build(5)
    state = saved.state_dict()["state"]
    assert state["u"]["scale"]["factor"].tolist() == [[6.0, 6.0], [6.0, 6.0]]
    other = build(0)
    objects = [values["scale"] for values in other.state.values()]
    other.load_state_dict(copy.deepcopy(saved.state_dict()))
    assert [values["scale"] for values in other.state.values()] == objects
    assert [scale.factor[0, 0].item() for scale in objects] == [5.0, 6.0]
    with pytest.raises(ValueError, match=r"State of 't' should be \['scale', 'step'\]"):
        other.load_state_dict({"state": {"t": {"step": 1}, "u": state["u"]}})
