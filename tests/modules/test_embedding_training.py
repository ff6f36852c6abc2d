"""Tables with ordinary gradients: against `nn.EmbeddingBag`, under ordinary optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    PoolingType,
)

ROWS = 12
FEATURES = {"a": "t", "b": "t", "c": "u"}


def tables(**options) -> list[EmbeddingBagConfig]:
    return [
        EmbeddingBagConfig(ROWS, 4, "t", feature_names=["a", "b"], **options),
        EmbeddingBagConfig(ROWS, 3, "u", feature_names=["c"], pooling=PoolingType.MEAN, **options),
    ]


def draw(bags: int = 5, longest: int = 6) -> KeyedJaggedTensor:
    lengths = torch.randint(0, longest + 1, (3 * bags,))
    return KeyedJaggedTensor(
        list(FEATURES), torch.randint(0, ROWS, (int(lengths.sum()),)), lengths=lengths
    )


class Plain(nn.Module):
    """The same tables as ordinary `nn.EmbeddingBag`s."""

    def __init__(self, ebc: EmbeddingBagCollection, sparse: bool = False) -> None:
        super().__init__()
        self.bags = nn.ModuleDict()
        for config in ebc.embedding_bag_configs():
            weight = ebc.embedding_bags[config.name].weight.detach().clone()
            self.bags[config.name] = nn.EmbeddingBag.from_pretrained(
                weight,
                freeze=False,
                mode=config.pooling.value.lower(),
                include_last_offset=True,
                sparse=sparse,
            )

    def forward(self, kjt: KeyedJaggedTensor) -> Tensor:
        parts = [
            self.bags[table](kjt[feature].values(), kjt[feature].offsets())
            for feature, table in FEATURES.items()
        ]
        return torch.cat(parts, 1)


def loss(values: Tensor, head: Tensor) -> Tensor:
    """A loss with a different gradient for every column and sample."""
    return (torch.tanh(values.float() @ head) * torch.arange(1, len(values) + 1)).sum()


def head() -> Tensor:
    return torch.randn(11, generator=torch.Generator().manual_seed(5))


def step(optimizer: torch.optim.Optimizer, output: Tensor) -> None:
    optimizer.zero_grad()
    loss(output, head()).backward()
    optimizer.step()


def same_weights(ebc: EmbeddingBagCollection, plain: Plain) -> None:
    for name, bag in plain.bags.items():
        weight = ebc.embedding_bags[name].weight
        torch.testing.assert_close(weight, bag.weight, rtol=1e-5, atol=1e-6)


DENSE: dict[str, Callable] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.05),
}
SPARSE: dict[str, Callable] = {
    "sparse_adam": lambda p: torch.optim.SparseAdam(p, lr=0.05),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd_momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}


@pytest.mark.parametrize("name", DENSE)
def test_dense_gradients_under_ordinary_optimizers(name: str) -> None:
    ebc = EmbeddingBagCollection(tables=tables())
    plain = Plain(ebc)
    ours, theirs = DENSE[name](list(ebc.parameters())), DENSE[name](list(plain.parameters()))
    for _ in range(4):
        kjt = draw()
        step(ours, ebc(kjt).values())
        step(theirs, plain(kjt))
    same_weights(ebc, plain)


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of torch.optim.Adagrad
def test_sparse_gradients_under_sparse_optimizers(name: str) -> None:
    ebc = EmbeddingBagCollection(tables=tables(sparse=True))
    plain = Plain(ebc, sparse=True)
    ours, theirs = SPARSE[name](list(ebc.parameters())), SPARSE[name](list(plain.parameters()))
    for _ in range(4):
        kjt = draw()
        step(ours, ebc(kjt).values())
        step(theirs, plain(kjt))
    same_weights(ebc, plain)


def test_sparse_gradients_are_coalesced_and_right() -> None:
    ebc = EmbeddingBagCollection(tables=tables(sparse=True))
    dense = EmbeddingBagCollection(tables=tables())
    dense.load_state_dict(ebc.state_dict())
    kjt = draw()
    for module in (ebc, dense):
        loss(module(kjt).values(), head()).backward()
    for ours, theirs in zip(ebc.parameters(), dense.parameters(), strict=True):
        assert ours.grad.is_sparse
        torch.sparse_coo_tensor(  # the invariants that nobody checked
            ours.grad._indices(), ours.grad._values(), ours.shape, check_invariants=True
        )
        rows = ours.grad._indices()[0]
        assert torch.equal(rows, rows.unique())  # each once, in order
        assert torch.equal(ours.grad.to_dense(), theirs.grad)
    # Two backward passes add up, as they do anywhere.
    loss(ebc(kjt).values(), head()).backward()
    assert torch.equal(
        ebc.embedding_bags["t"].weight.grad.to_dense(), 2 * dense.embedding_bags["t"].weight.grad
    )


def test_an_epoch_of_one_table_with_another() -> None:
    """Sparse, dense, frozen and fused tables live in one collection."""
    configs = [
        EmbeddingBagConfig(ROWS, 2, "sparse", feature_names=["a"], sparse=True),
        EmbeddingBagConfig(ROWS, 2, "dense", feature_names=["a"]),
        EmbeddingBagConfig(ROWS, 2, "frozen", feature_names=["a"], enable_grad=False),
        EmbeddingBagConfig(ROWS, 2, "fused", feature_names=["a"], optimizer="sgd", lr=1.0),
        EmbeddingBagConfig(
            ROWS,
            2,
            "frozen_fused",
            feature_names=["a"],
            optimizer="adam",
            lr=1.0,
            enable_grad=False,
        ),
    ]
    ebc = EmbeddingBagCollection(tables=configs)
    before = {k: v.clone() for k, v in ebc.state_dict().items()}
    ebc(KeyedJaggedTensor.from_lists({"a": [[1, 1], [2]]})).values().sum().backward()
    weights = {name: module.weight for name, module in ebc.embedding_bags.items()}
    assert weights["sparse"].grad.to_dense()[:3].tolist() == [[0, 0], [2, 2], [1, 1]]
    assert weights["dense"].grad[:3].tolist() == [[0, 0], [2, 2], [1, 1]]
    for name in ("frozen", "fused", "frozen_fused"):
        assert weights[name].grad is None
    moved = {
        n for n, w in weights.items() if not torch.equal(w, before[f"embedding_bags.{n}.weight"])
    }
    assert moved == {"fused"}
    change = weights["fused"] - before["embedding_bags.fused.weight"]
    torch.testing.assert_close(change[:3], torch.tensor([[0.0, 0], [-2, -2], [-1, -1]]))


@pytest.mark.parametrize(
    "options", [{}, {"sparse": True}, {"optimizer": "adagrad", "lr": 0.5}], ids=str
)
def test_requires_grad_is_switched_later(options: dict) -> None:
    ebc = EmbeddingBagCollection(tables=tables(enable_grad=False, **options))
    optimizer = torch.optim.SGD(ebc.parameters(), lr=0.5)
    kjt = KeyedJaggedTensor.from_lists({"a": [[1]], "b": [[2]], "c": [[3]]})
    for trained in ((), ("t",), ("t", "u"), ("u",), ()):
        for name, bag in ebc.embedding_bags.items():
            bag.weight.requires_grad_(name in trained)
        before = {k: v.clone() for k, v in ebc.state_dict().items()}
        out = ebc(kjt).values()
        assert out.requires_grad == bool(trained)
        optimizer.zero_grad()
        if trained:
            out.sum().backward()
        optimizer.step()
        for name, bag in ebc.embedding_bags.items():
            moved = not torch.equal(bag.weight, before[f"embedding_bags.{name}.weight"])
            assert moved == (name in trained), (name, trained)


# ---- gradients to the last digit


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Many tiny look-ups: waking threads would cost more than all else."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def doubled(pooling: PoolingType, weighted: bool) -> EmbeddingBagCollection:
    configs = [
        EmbeddingBagConfig(6, 2, "t", feature_names=["a", "b"], pooling=pooling),
        EmbeddingBagConfig(6, 3, "u", feature_names=["b"]),
    ]
    return EmbeddingBagCollection(
        tables=configs, is_weighted=weighted, output_dtype=torch.float64
    ).double()


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("pooling", [PoolingType.SUM, PoolingType.MEAN], ids=lambda p: p.value)
def test_gradcheck_pooled(pooling: PoolingType, weighted: bool, one_thread: None) -> None:
    ebc = doubled(pooling, weighted)
    values, lengths = torch.tensor([0, 1, 1, 5, 4, 0, 2]), torch.tensor([3, 0, 2, 2])
    names = [name for name, _ in ebc.named_parameters()]

    def run(factors: Tensor, *weights: Tensor) -> Tensor:
        kjt = KeyedJaggedTensor(["a", "b"], values, factors if weighted else None, lengths=lengths)
        new = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(ebc, new, (kjt,)).values()

    factors = torch.rand(7, dtype=torch.float64, requires_grad=weighted)
    weights = [p.detach().clone().requires_grad_() for p in ebc.parameters()]
    assert torch.autograd.gradcheck(run, (factors, *weights))


def test_gradcheck_sequence(one_thread: None) -> None:
    configs = [EmbeddingConfig(6, 2, "t", feature_names=["a", "b"])]
    ec = EmbeddingCollection(tables=configs, output_dtype=torch.float64).double()
    kjt = KeyedJaggedTensor.from_lists({"a": [[0, 1], []], "b": [[1], [5, 1]]})

    def run(weight: Tensor) -> tuple[Tensor, ...]:
        out = torch.func.functional_call(ec, {"embeddings.t.weight": weight}, (kjt,))
        return tuple(jagged.values() for jagged in out.values())

    weight = ec.embeddings["t"].weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(run, (weight,))


@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
def test_gradients_of_weights_of_ids(fused: bool) -> None:
    """The gradient of the factors is that before the update, also where the table is fused."""
    options = {"optimizer": "sgd", "lr": 1.0} if fused else {}
    config = EmbeddingBagConfig(ROWS, 3, "t", feature_names=["a"], **options)
    ebc = EmbeddingBagCollection(tables=[config], is_weighted=True)
    before = ebc.embedding_bags["t"].weight.detach().clone()
    factors = torch.rand(4, requires_grad=True)
    ids = torch.tensor([3, 3, 0, 7])
    kjt = KeyedJaggedTensor(["a"], ids, factors, lengths=torch.tensor([1, 3]))
    direction = torch.randn(2, 3)
    (ebc(kjt).values() * direction).sum().backward()
    expected = (before[ids] * direction[[0, 1, 1, 1]]).sum(1)
    torch.testing.assert_close(factors.grad, expected)


@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
def test_gradients_of_weights_of_ids_of_two_lookups(fused: bool) -> None:
    """The update comes when both have read the weights."""
    options = {"optimizer": "sgd", "lr": 1.0} if fused else {}
    config = EmbeddingBagConfig(ROWS, 3, "t", feature_names=["a"], **options)
    ebc = EmbeddingBagCollection(tables=[config], is_weighted=True)
    before = ebc.embedding_bags["t"].weight.detach().clone()
    factors = torch.rand(1, requires_grad=True)
    kjt = KeyedJaggedTensor(["a"], torch.tensor([3]), factors, lengths=torch.tensor([1]))
    total = ebc(kjt).values().sum() + ebc(kjt).values().sum()
    total.backward()
    torch.testing.assert_close(factors.grad, 2 * before[3].sum()[None])
    if fused:
        moved = (before - ebc.embedding_bags["t"].weight.detach())[3]
        torch.testing.assert_close(moved, (2 * factors.detach()).expand(3))


def test_fused_updates_are_seen_by_autograd() -> None:
    """A tensor that autograd saved before the update must not be read after it."""
    config = EmbeddingBagConfig(ROWS, 3, "t", feature_names=["a"], optimizer="sgd", lr=1.0)
    ebc = EmbeddingBagCollection(tables=[config])
    version = ebc.embedding_bags["t"].weight._version
    ebc(KeyedJaggedTensor.from_lists({"a": [[1]]})).values().sum().backward()
    assert ebc.embedding_bags["t"].weight._version > version


def test_a_table_that_is_not_used_has_no_gradient() -> None:
    configs = [
        EmbeddingConfig(ROWS, 2, "t", feature_names=["a"]),
        EmbeddingConfig(ROWS, 2, "u", feature_names=["b"]),
    ]
    ec = EmbeddingCollection(tables=configs)
    ec(KeyedJaggedTensor.from_lists({"a": [[1]], "b": [[2]]}))["a"].values().sum().backward()
    assert ec.embeddings["t"].weight.grad is not None
    assert ec.embeddings["u"].weight.grad is None


def test_graphs_of_gradients_are_refused() -> None:
    config = EmbeddingBagConfig(ROWS, 2, "t", feature_names=["a"])
    ebc = EmbeddingBagCollection(tables=[config])
    scale = torch.ones(2, requires_grad=True)
    out = (ebc(KeyedJaggedTensor.from_lists({"a": [[1]]})).values() * scale).sum()
    (grad,) = torch.autograd.grad(out, ebc.embedding_bags["t"].weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
