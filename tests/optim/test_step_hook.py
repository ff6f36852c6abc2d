"""Tables whose training depends on who steps: their rate, its sign, closures, evicted rows."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.optim import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.clipping import GradientClipping, GradientClippingOptimizer

SIZES = {"t": (10, 4), "plain": (7, 3), "u": (5, 2)}
KJT = KeyedJaggedTensor.from_lists({"a": [[1, 2], [3, 3]]})


def bags(**options) -> EmbeddingBagCollection:
    """Two tables that take the rate of who steps, uneven, and a plain one between them."""
    torch.manual_seed(0)
    configs = [
        EmbeddingBagConfig(
            rows, dim, name, feature_names=["a"], **({} if name == "plain" else options)
        )
        for name, (rows, dim) in SIZES.items()
    ]
    return EmbeddingBagCollection(tables=configs)


def keyed(module: nn.Module, **options) -> KeyedOptimizerWrapper:
    return KeyedOptimizerWrapper(
        dict(module.named_parameters()), lambda p: torch.optim.SGD(p, **options)
    )


DRIVERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda m, **options: torch.optim.SGD(m.parameters(), **options),
    "keyed": keyed,
    "combined": lambda m, **options: CombinedOptimizer(
        [("tables", keyed(m, **options)), ("dense", keyed(nn.Linear(1, 1), lr=9.0))]
    ),
}
WAYS: dict[str, Callable] = {
    "afterwards": lambda optimizer, loss: (loss(), optimizer.step()),
    "closure": lambda optimizer, loss: optimizer.step(loss),
    "named closure": lambda optimizer, loss: optimizer.step(closure=loss),
}


def train(
    module: EmbeddingBagCollection, optimizer: torch.optim.Optimizer, way: str, steps: int = 3
) -> dict[str, Tensor]:
    for _ in range(steps):

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = module(KJT).values().sin().sum()
            value.backward()
            return value

        result = WAYS[way](optimizer, loss)
        if way != "afterwards":
            assert isinstance(result, Tensor)
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_closure_is_like_a_loop(driver: str, way: str) -> None:
    module, other = (bags(optimizer="rowwise_adagrad") for _ in range(2))
    expected = train(module, DRIVERS["sgd"](module, lr=0.1), "afterwards")
    got = train(other, DRIVERS[driver](other, lr=0.1), way)
    for name, value in expected.items():
        assert torch.equal(got[name], value)
    state = other.fused_optimizer.state[other.embedding_bags["u"].weight]
    assert state["step"].item() == 3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("clipping", [GradientClipping.NORM, GradientClipping.VALUE])
def test_what_is_around_clips_first(clipping: GradientClipping, way: str) -> None:
    """The gradients of tables count in the common norm, and are clipped as those of others are."""
    module, plain = bags(optimizer="sgd"), bags()
    plain.load_state_dict(module.state_dict())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    got, expected = (
        train(each, GradientClippingOptimizer(keyed(each, lr=0.1), clipping, 0.2), way)
        for each in (module, plain)
    )
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value)
        assert 0 < (value - before[name]).abs().max() < 3 * 0.1 * 0.2 + 1e-6


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", ["sgd", "adagrad", "adam"])
def test_maximize_is_honoured(rule: str, way: str) -> None:
    """Ascending with a loss is descending with its opposite."""
    up, down = (bags(optimizer=rule) for _ in range(2))
    climb = torch.optim.SGD(up.parameters(), lr=0.1, maximize=True)
    fall = torch.optim.SGD(down.parameters(), lr=0.1)
    for _ in range(3):
        for module, optimizer, sign in ((up, climb, 1), (down, fall, -1)):

            def loss(m=module, o=optimizer, s=sign) -> Tensor:
                o.zero_grad()
                value = s * m(KJT).values().sin().sum()
                value.backward()
                return value

            WAYS[way](optimizer, loss)
    for a, b in zip(up.parameters(), down.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_maximize_of_one_group() -> None:
    module = bags(optimizer="sgd")
    before = [p.detach().clone() for p in module.parameters()]
    t, plain, u = module.parameters()
    optimizer = torch.optim.SGD(
        [{"params": [t], "maximize": True}, {"params": [plain]}, {"params": [u]}], lr=0.1
    )
    module(KJT).values().sum().backward()
    optimizer.step()
    signs = [(p - b)[1, 0].sign().item() for p, b in zip((t, plain, u), before, strict=True)]
    assert signs == [1.0, -1.0, -1.0]


def test_a_step_that_is_skipped_leaves_the_gradient_where_it_is() -> None:
    """As gradient scalers do when a gradient is not finite."""
    module = bags(optimizer="sgd")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    before = {n: v.clone() for n, v in module.state_dict().items()}
    scaler.scale(module(KJT).values().sum() * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    optimizer.zero_grad()
    scaler.scale(module(KJT).values().sum()).backward()
    scaler.step(optimizer)
    moved = before["embedding_bags.t.weight"] - module.embedding_bags["t"].weight
    assert moved[:, 0].tolist() == pytest.approx([0, 0.1, 0.1, 0.2, 0, 0, 0, 0, 0, 0], abs=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_that_wait_can_be_changed_before_the_step(way: str) -> None:
    """As clipping does."""
    module, other = (bags(optimizer="sgd") for _ in range(2))
    for each, scale, lr in ((module, 0.5, 0.1), (other, 1.0, 0.05)):
        optimizer = torch.optim.SGD(each.parameters(), lr=lr)

        def loss(m=each, o=optimizer, s=scale) -> Tensor:
            o.zero_grad()
            value = m(KJT).values().sum()
            value.backward()
            for p in m.parameters():
                p.grad *= s
            return value

        WAYS[way](optimizer, loss)
    for a, b in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


# ---- evicted rows of tables that an ordinary optimizer trains


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [torch.optim.Adagrad, torch.optim.Adam])
def test_an_optimizer_forgets_rows_that_start_anew(
    kind: type[torch.optim.Optimizer], way: str
) -> None:
    module = bags(optimizer="sgd")
    optimizer = kind(module.parameters(), lr=0.1)
    train(module, optimizer, "afterwards")
    plain = module.embedding_bags["plain"].weight
    name = "sum" if kind is torch.optim.Adagrad else "exp_avg_sq"
    old = optimizer.state[plain][name].clone()
    module.reset_rows("plain", torch.tensor([3]))

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = module(KeyedJaggedTensor.from_lists({"a": [[2]]})).values().sum()
        value.backward()
        return value

    WAYS[way](optimizer, loss)
    new = optimizer.state[plain][name]
    assert new[3].tolist() == [0.0] * 3
    assert (new[2] != old[2]).all()
    assert (old[3] > 0).all()


def test_rows_forgotten_by_adagrad_start_where_it_starts() -> None:
    module = bags(optimizer="sgd")
    optimizer = torch.optim.Adagrad(module.parameters(), lr=0.1, initial_accumulator_value=0.25)
    train(module, optimizer, "afterwards")
    module.reset_rows("plain", torch.tensor([3, 1]))
    optimizer.zero_grad()
    optimizer.step()
    plain = module.embedding_bags["plain"].weight
    module(KeyedJaggedTensor.from_lists({"a": [[4]]})).values().sum().backward()
    optimizer.step()
    assert (optimizer.state[plain]["sum"][[3, 1]] == 0.25).all()


def step(module: EmbeddingBagCollection, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    module(KJT).values().sum().backward()
    optimizer.step()


def sums(module: EmbeddingBagCollection, optimizer: torch.optim.Optimizer) -> list[float]:
    return optimizer.state[module.embedding_bags["plain"].weight]["sum"][1:4, 0].tolist()


@pytest.mark.parametrize("frozen", [False, True])
def test_all_optimizers_of_a_table_forget_at_once(frozen: bool) -> None:
    """So that what is saved next is right, whichever steps next."""
    module = bags(optimizer="sgd")
    plain = module.embedding_bags["plain"].weight
    one = torch.optim.Adagrad(module.parameters(), lr=0.1)
    two = torch.optim.Adagrad([plain], lr=0.1, initial_accumulator_value=0.25)
    for optimizer in (one, two):
        step(module, optimizer)
    assert (sums(module, one), sums(module, two)) == ([1.0, 1.0, 4.0], [1.25, 1.25, 4.25])
    plain.requires_grad_(not frozen)
    module.reset_rows("plain", torch.tensor([3, 1]))
    assert (sums(module, one), sums(module, two)) == ([0.0, 1.0, 0.0], [0.25, 1.25, 0.25])
    plain.requires_grad_(True)
    for optimizer in (one, two):
        step(module, optimizer)
    assert (sums(module, one), sums(module, two)) == ([1.0, 2.0, 4.0], [1.25, 2.25, 4.25])


def test_a_run_that_is_taken_up_after_an_eviction_goes_on_as_it_would_have() -> None:
    module, other = (bags(optimizer="sgd") for _ in range(2))
    optimizer, its = (torch.optim.Adagrad(m.parameters(), lr=0.1) for m in (module, other))
    step(module, optimizer)
    module.reset_rows("plain", torch.tensor([3]))
    other.load_state_dict(copy.deepcopy(module.state_dict()))
    its.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for rows in ([2], [1, 3]):
        for m, o in ((module, optimizer), (other, its)):
            m.reset_rows("plain", torch.tensor(rows))
            step(m, o)
        for mine, theirs in zip(module.parameters(), other.parameters(), strict=True):
            assert torch.equal(mine, theirs)
        assert sums(module, optimizer) == sums(other, its)


def test_a_state_that_is_loaded_later_keeps_what_was_learnt_since() -> None:
    module = bags(optimizer="sgd")
    optimizer = torch.optim.Adagrad(module.parameters(), lr=0.1)
    module.reset_rows("plain", torch.tensor([3]))
    step(module, optimizer)
    later = torch.optim.Adagrad(module.parameters(), lr=0.1)
    later.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(module, later)
    assert sums(module, later) == [2.0, 2.0, 8.0]


def test_an_optimizer_is_not_kept_by_the_tables_it_stepped_with() -> None:
    module = bags(optimizer="sgd")
    optimizer = torch.optim.Adagrad(module.parameters(), lr=0.1)
    step(module, optimizer)
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    module.reset_rows("plain", torch.tensor([3]))


def test_optimizers_of_other_parameters_are_left_alone() -> None:
    module, layer = bags(optimizer="sgd"), nn.Linear(2, 1, bias=False)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    module(KJT).values().sum().backward()
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(layer.weight, before - 0.5)
    assert module.embedding_bags["t"].weight.grad is not None
