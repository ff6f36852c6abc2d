"""Updates in the backward pass against `torch.optim` on dense gradients, or a formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    OptimizerType,
    PoolingType,
)

ROWS, DIM, LR = 9, 5, 0.07
Formula = Callable[[Tensor, Tensor, dict[str, Tensor], int], Tensor]


def rms(g: Tensor) -> Tensor:
    return (g * g).mean(1, keepdim=True)


def norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=1, keepdim=True)


def rowwise_adagrad(w: Tensor, g: Tensor, s: dict[str, Tensor], t: int) -> Tensor:
    g = g + 0.1 * w
    s["sum"] = s.get("sum", 0) + rms(g)
    return w - LR * g / (s["sum"].sqrt() + 1e-8)


def moments(g: Tensor, square: Tensor, s: dict[str, Tensor], t: int, eps: float) -> Tensor:
    s["exp_avg"] = 0.9 * s.get("exp_avg", 0) + 0.1 * g
    s["exp_avg_sq"] = 0.999 * s.get("exp_avg_sq", 0) + 0.001 * square
    mean, second = s["exp_avg"] / (1 - 0.9**t), s["exp_avg_sq"] / (1 - 0.999**t)
    return mean / (second.sqrt() + eps)


def rowwise_adam(w: Tensor, g: Tensor, s: dict[str, Tensor], t: int) -> Tensor:
    g = g + 0.1 * w
    return w - LR * moments(g, rms(g), s, t, 1e-8)


def rowwise_adamw(w: Tensor, g: Tensor, s: dict[str, Tensor], t: int) -> Tensor:
    return w * (1 - LR * 0.1) - LR * moments(g, rms(g), s, t, 1e-8)


def lamb(w: Tensor, g: Tensor, s: dict[str, Tensor], t: int) -> Tensor:
    u = moments(g, g * g, s, t, 1e-6) + 0.1 * w
    return w - LR * norm(w) / norm(u) * u


def rowwise_lamb(w: Tensor, g: Tensor, s: dict[str, Tensor], t: int) -> Tensor:
    u = moments(g, rms(g), s, t, 1e-6) + 0.1 * w
    return w - LR * norm(w) / norm(u) * u


def lars(w: Tensor, g: Tensor, s: dict[str, Tensor], t: int) -> Tensor:
    trust = 0.5 * norm(w) / (norm(g) + 0.1 * norm(w))
    s["momentum_buffer"] = 0.9 * s.get("momentum_buffer", 0) + LR * trust * (g + 0.1 * w)
    return w - s["momentum_buffer"]


def clipped_sgd(w: Tensor, g: Tensor, s: dict[str, Tensor], t: int) -> Tensor:
    return w - LR * (g.clamp(-0.2, 0.2) + 0.1 * w)


def decoupled_adagrad(w: Tensor, g: Tensor, s: dict[str, Tensor], t: int) -> Tensor:
    s["sum"] = s.get("sum", 0) + g * g
    return w * (1 - LR * 0.1) - LR * g / (s["sum"].sqrt() + 1e-8)


@dataclass
class Fused:
    """A configuration, and what it should equal."""

    kind: OptimizerType
    like: type[torch.optim.Optimizer] | Formula
    kwargs: dict[str, object] = field(default_factory=dict)
    decay: float | None = None
    options: dict[str, object] = field(default_factory=dict)


K, T = OptimizerType, torch.optim
DECOUPLED = {"weight_decay_mode": "decoupled"}
CASES = {
    "sgd": Fused(K.SGD, T.SGD),
    "sgd_l2": Fused(K.SGD, T.SGD, {"weight_decay": 0.1}, 0.1),
    "sgd_momentum": Fused(
        K.SGD, T.SGD, {"momentum": 0.9, "dampening": 0.3}, None, {"momentum": 0.9, "dampening": 0.3}
    ),
    "sgd_nesterov": Fused(
        K.SGD,
        T.SGD,
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        0.1,
        {"momentum": 0.9, "nesterov": True},
    ),
    "sgd_clipped": Fused(K.SGD, clipped_sgd, {}, 0.1, {"max_gradient": 0.2}),
    "adagrad": Fused(K.ADAGRAD, T.Adagrad),
    "adagrad_l2": Fused(K.ADAGRAD, T.Adagrad, {"weight_decay": 0.1}, 0.1),
    "adagrad_start": Fused(
        K.ADAGRAD,
        T.Adagrad,
        {"initial_accumulator_value": 0.3, "eps": 1e-3},
        None,
        {"initial_accumulator_value": 0.3, "eps": 1e-3},
    ),
    "adagrad_decoupled": Fused(K.ADAGRAD, decoupled_adagrad, {}, 0.1, DECOUPLED),
    "adam": Fused(K.ADAM, T.Adam),
    "adam_l2": Fused(K.ADAM, T.Adam, {"weight_decay": 0.1}, 0.1),
    "adam_betas": Fused(
        K.ADAM, T.Adam, {"betas": (0.6, 0.8), "eps": 1e-3}, None, {"betas": (0.6, 0.8), "eps": 1e-3}
    ),
    "adamw_default": Fused(K.ADAMW, T.AdamW),
    "adamw": Fused(K.ADAMW, T.AdamW, {"weight_decay": 0.2}, 0.2),
    "rowwise_adagrad": Fused(K.ROWWISE_ADAGRAD, rowwise_adagrad, {}, 0.1),
    "partial_rowwise_adam": Fused(K.PARTIAL_ROWWISE_ADAM, rowwise_adam, {}, 0.1),
    "partial_rowwise_adamw": Fused(K.PARTIAL_ROWWISE_ADAM, rowwise_adamw, {}, 0.1, DECOUPLED),
    "lamb": Fused(K.LAMB, lamb, {}, 0.1),
    "partial_rowwise_lamb": Fused(K.PARTIAL_ROWWISE_LAMB, rowwise_lamb, {}, 0.1),
    "lars_sgd": Fused(K.LARS_SGD, lars, {}, 0.1, {"momentum": 0.9, "eta": 0.5}),
}  # fmt: skip


def options(case: Fused) -> dict[str, object]:
    return {
        "optimizer": case.kind,
        "lr": LR,
        "weight_decay": case.decay,
        "optimizer_options": case.options,
    }


def all_rows() -> KeyedJaggedTensor:
    """Every row of the table, once or more often, within and across two features."""
    ids = torch.cat([torch.randperm(ROWS), torch.randint(0, ROWS, (11,))])
    return KeyedJaggedTensor(["a", "b"], ids, lengths=torch.tensor([3, 0, 7, 4, 1, 5]))


class Oracle:
    """The same step by autograd on a dense matrix, and `torch.optim` or a formula."""

    def __init__(self, case: Fused, weight: Tensor) -> None:
        self.case = case
        self.weight = weight.detach().double().requires_grad_()
        self.state: dict[str, Tensor] = {}
        self.steps = 0
        self.optimizer: torch.optim.Optimizer | None = None
        if isinstance(case.like, type):
            self.optimizer = case.like([self.weight], lr=LR, **case.kwargs)

    def step(self, loss: Tensor) -> None:
        self.weight.grad = None
        loss.backward()
        self.steps += 1
        if self.optimizer is not None:
            self.optimizer.step()
            self.state = self.optimizer.state[self.weight]
            return
        with torch.no_grad():
            self.weight.copy_(self.case.like(self.weight, self.weight.grad, self.state, self.steps))

    def check(self, weight: Tensor, state: dict[str, Tensor], rtol: float = 1e-5) -> None:
        torch.testing.assert_close(weight.double(), self.weight, rtol=rtol, atol=rtol)
        for name, value in state.items():
            if name == "step":
                assert float(value) == self.steps
            else:
                expected = self.state[name]
                assert value.shape == expected.shape, name
                torch.testing.assert_close(value.double(), expected, rtol=10 * rtol, atol=rtol)


def pooled_loss(values: Tensor, scale: Tensor) -> Tensor:
    return (values * scale).sum() + (values**2).sum()


@pytest.mark.parametrize("name", CASES)
def test_pooled(name: str) -> None:
    case = CASES[name]
    config = EmbeddingBagConfig(ROWS, DIM, "t", feature_names=["a", "b"], **options(case))
    ebc = EmbeddingBagCollection(tables=[config])
    weight = ebc.embedding_bags["t"].weight
    oracle = Oracle(case, weight)
    state = ebc.fused_optimizer.state[weight]
    for _ in range(4):
        kjt, scale = all_rows(), torch.randn(3, 2 * DIM)
        pooled_loss(ebc(kjt).values(), scale).backward()
        assert weight.grad is None
        bags = [oracle.weight[part].sum(0) for part in kjt.values().split(kjt.lengths().tolist())]
        dense = torch.cat([torch.stack(bags[:3]), torch.stack(bags[3:])], 1)
        oracle.step(pooled_loss(dense, scale))
        oracle.check(weight, state)
    kept = set(oracle.state) - {"step"}
    assert set(state) == {"step", *(n for n in kept if oracle.state[n] is not None)}


@pytest.mark.parametrize("name", CASES)
def test_sequence(name: str) -> None:
    case = CASES[name]
    config = EmbeddingConfig(ROWS, DIM, "t", feature_names=["a", "b"], **options(case))
    ec = EmbeddingCollection(tables=[config])
    weight = ec.embeddings["t"].weight
    oracle = Oracle(case, weight)
    for _ in range(3):
        kjt = all_rows()
        scale = torch.randn(20, DIM)
        rows = torch.cat([jagged.values() for jagged in ec(kjt).values()])
        pooled_loss(rows, scale).backward()
        oracle.step(pooled_loss(oracle.weight[kjt.values()], scale))
        oracle.check(weight, ec.fused_optimizer.state[weight])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_narrow_tables(name: str, dtype: torch.dtype) -> None:
    """State is float32, the update is made in float32 and rounded once, when it is stored."""
    case = CASES[name]
    config = EmbeddingBagConfig(
        ROWS, DIM, "t", feature_names=["a", "b"], dtype=dtype, **options(case)
    )
    ebc = EmbeddingBagCollection(tables=[config], output_dtype=torch.float32)
    weight = ebc.embedding_bags["t"].weight
    oracle = Oracle(case, weight)
    state = ebc.fused_optimizer.state[weight]
    assert {value.dtype for key, value in state.items() if key != "step"} <= {torch.float32}
    kjt, scale = all_rows(), torch.randn(3, 2 * DIM)
    pooled_loss(ebc(kjt).values(), scale).backward()
    bags = [oracle.weight[part].sum(0) for part in kjt.values().split(kjt.lengths().tolist())]
    oracle.step(pooled_loss(torch.cat([torch.stack(bags[:3]), torch.stack(bags[3:])], 1), scale))
    rounding = {torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(weight.double(), oracle.weight, rtol=rounding, atol=rounding / 100)
    assert weight.dtype == dtype


@pytest.mark.parametrize("name", CASES)
def test_rows_that_are_not_looked_up_stay(name: str) -> None:
    """Lazily: weights decay and moments fade only in the rows of the batch."""
    case = CASES[name]
    config = EmbeddingBagConfig(ROWS, DIM, "t", feature_names=["a", "b"], **options(case))
    ebc = EmbeddingBagCollection(tables=[config])
    weight = ebc.embedding_bags["t"].weight
    pooled_loss(ebc(all_rows()).values(), torch.randn(3, 2 * DIM)).backward()
    state = ebc.fused_optimizer.state[weight]
    before = {"weight": weight.detach().clone(), **{k: v.clone() for k, v in state.items()}}
    ebc(KeyedJaggedTensor.from_lists({"a": [[1, 2, 1]], "b": [[1]]})).values().sum().backward()
    rest = [i for i in range(ROWS) if i not in (1, 2)]
    for key, value in {"weight": weight, **state}.items():
        if key != "step":
            assert torch.equal(value[rest], before[key][rest]), key
            assert not torch.equal(value[[1, 2]], before[key][[1, 2]]), key


def test_tables_with_optimizers_of_their_own() -> None:
    """All nine in one collection and one backward pass, each as if it were alone."""
    kinds = list(OptimizerType)
    configs = [
        EmbeddingBagConfig(
            ROWS, DIM + i, kind.value, feature_names=["a"], optimizer=kind, lr=0.01 * (i + 1),
            pooling=PoolingType.MEAN,
        )
        for i, kind in enumerate(kinds)
    ]  # fmt: skip
    together = EmbeddingBagCollection(tables=configs)
    alone = [EmbeddingBagCollection(tables=[config]) for config in configs]
    for one in alone:
        one.load_state_dict(together.state_dict(), strict=False)
    for _ in range(3):
        kjt = KeyedJaggedTensor.from_lists({"a": [[1, 2, 2], [5], []]})
        (together(kjt).values() ** 2).sum().backward()
        for one in alone:
            (one(kjt).values() ** 2).sum().backward()
    for kind, one in zip(kinds, alone, strict=True):
        assert torch.equal(
            one.embedding_bags[kind.value].weight, together.embedding_bags[kind.value].weight
        )
    states = together.fused_optimizer.state_dict()["state"]
    assert list(states) == [f"embedding_bags.{kind.value}.weight" for kind in kinds]


def test_zero_weights_and_gradients_give_finite_updates() -> None:
    for kind in OptimizerType:
        config = EmbeddingBagConfig(
            3, 4, "t", feature_names=["a"], optimizer=kind, lr=0.1, init_fn=torch.nn.init.zeros_
        )
        ebc = EmbeddingBagCollection(tables=[config])
        (0 * ebc(KeyedJaggedTensor.from_lists({"a": [[0, 1]]})).values()).sum().backward()
        ebc(KeyedJaggedTensor.from_lists({"a": [[0]]})).values().sum().backward()
        weight = ebc.embedding_bags["t"].weight
        assert weight.isfinite().all(), kind
        assert weight[0].count_nonzero() == 4, kind
        assert weight[1:].count_nonzero() == 0, kind


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradients_that_are_not_finite_are_not_hidden(bad: float) -> None:
    config = EmbeddingBagConfig(3, 4, "t", feature_names=["a"], optimizer="sgd", lr=0.1)
    ebc = EmbeddingBagCollection(tables=[config])
    (ebc(KeyedJaggedTensor.from_lists({"a": [[1]]})).values() * bad).sum().backward()
    weight = ebc.embedding_bags["t"].weight
    assert not weight[1].isfinite().any()
    assert weight[[0, 2]].isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer_options": {"betas": (0.9, 0.99)}}, r"'t' should be among.*SGD has.*'betas'"),
        ({"optimizer_options": {"nesterov": True}}, "`nesterov` should come with a momentum"),
        ({"optimizer_options": {"max_gradient": 0.0}}, "`max_gradient` should be above 0"),
        ({"optimizer_options": {"weight_decay_mode": "L2"}}, "'l2' or 'decoupled'. Received 'L2'"),
    ],
)
def test_options_that_an_optimizer_has_not(options: dict, message: str) -> None:
    config = EmbeddingBagConfig(3, 4, "t", feature_names=["a"], optimizer="sgd", lr=0.1, **options)
    with pytest.raises(ValueError, match=message):
        EmbeddingBagCollection(tables=[config])
