"""Towers against their parts called by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from torchrec import (
    DataType,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    KeyedTensor,
)
from torchrec.modules.embedding_tower import (
    EmbeddingTower,
    EmbeddingTowerCollection,
    tower_input_params,
)
from torchrec.modules.feature_processor_ import PositionWeightedModule
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection

ROWS = 10


class Interaction(nn.Module):
    def __init__(self, in_size: int, out_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_size, out_size)

    def forward(self, pooled: KeyedTensor) -> Tensor:
        return self.linear(pooled.values())


def bags(name: str, features: str, is_weighted: bool = False) -> EmbeddingBagCollection:
    config = EmbeddingBagConfig(ROWS, 3, name, feature_names=list(features))
    return EmbeddingBagCollection(tables=[config], is_weighted=is_weighted)


def batch_of(batch: int, keys: str, is_weighted: bool = False) -> KeyedJaggedTensor:
    lengths = torch.randint(0, 4, (len(keys) * batch,))
    values = torch.randint(0, ROWS, (int(lengths.sum()),))
    weights = torch.rand(len(values)) if is_weighted else None
    return KeyedJaggedTensor(list(keys), values, weights, lengths)


def by_hand(tower: EmbeddingTower, features: KeyedJaggedTensor) -> Tensor:
    """Bags summed one by one, then the linear layer."""
    (name,) = tower.embedding.embedding_bags
    table = tower.embedding.embedding_bags[name].weight
    weights = features.weights_or_none()
    columns, at = [], 0
    for key_bags in features.to_lists().values():
        rows = []
        for bag in key_bags:
            w = torch.ones(len(bag)) if weights is None else weights[at : at + len(bag)]
            rows.append((table[bag] * w[:, None]).sum(0))
            at += len(bag)
        columns.append(torch.stack(rows) if rows else table[:0])
    linear = tower.interaction.linear
    return torch.cat(columns, 1).to(linear.weight.dtype) @ linear.weight.T + linear.bias


def collection() -> EmbeddingTowerCollection:
    return EmbeddingTowerCollection(
        [
            EmbeddingTower(bags("t", "ab"), Interaction(6, 2)),
            EmbeddingTower(bags("u", "c", is_weighted=True), Interaction(3, 5)),
        ]
    )


@pytest.mark.parametrize("batch", [0, 1, 7])
def test_output_and_gradients(batch) -> None:
    towers = collection()
    features, weighted = batch_of(batch, "ab"), batch_of(batch, "c", is_weighted=True)
    actual = towers(features, weighted)
    expected = torch.cat(
        [by_hand(towers.towers[0], features), by_hand(towers.towers[1], weighted)], 1
    )
    assert actual.shape == (batch, 7)
    torch.testing.assert_close(actual, expected)
    if batch:
        parameters, upstream = list(towers.parameters()), torch.randn_like(actual)
        torch.testing.assert_close(
            torch.autograd.grad(actual, parameters, upstream),
            torch.autograd.grad(expected, parameters, upstream),
        )


def test_bfloat16() -> None:
    config = EmbeddingBagConfig(ROWS, 3, "t", DataType.BF16, feature_names=["a", "b"])
    tables = EmbeddingBagCollection(tables=[config], output_dtype=torch.bfloat16)
    tower = EmbeddingTower(tables, Interaction(6, 2).bfloat16())
    features = batch_of(5, "ab")
    actual, expected = tower(features), by_hand(tower, features)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual, expected, rtol=3e-2, atol=3e-2)


def test_a_module_of_both_kinds_takes_both() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.weighted = bags("t", "a"), bags("u", "b", is_weighted=True)

        def forward(self, features, weighted_features) -> list[KeyedTensor]:
            return [self.plain(features), self.weighted(weighted_features)]

    class Product(nn.Module):
        def forward(self, pooled: list[KeyedTensor]) -> Tensor:
            return pooled[0].values() * pooled[1].values()

    tower = EmbeddingTower(Both(), Product())
    features, weighted = batch_of(3, "a"), batch_of(3, "b", is_weighted=True)
    both = tower.embedding
    expected = both.plain(features).values() * both.weighted(weighted).values()
    towers = EmbeddingTowerCollection([tower])
    assert torch.equal(tower(features=features, weighted_features=weighted), expected)
    assert torch.equal(towers(features, weighted), expected)
    with pytest.raises(ValueError, match=r"`weighted_features` should be given.*number 0"):
        towers(features)


def test_what_towers_take() -> None:
    sequences = EmbeddingCollection(tables=[EmbeddingConfig(ROWS, 3, "t", feature_names=["a"])])
    processed = FeatureProcessedEmbeddingBagCollection(
        bags("t", "a", is_weighted=True), {"a": PositionWeightedModule(3)}
    )
    assert tower_input_params(bags("t", "a")) == (True, False)
    assert tower_input_params(bags("t", "a", is_weighted=True)) == (False, True)
    assert tower_input_params(sequences) == (True, False)
    assert tower_input_params(processed) == (True, False)
    assert tower_input_params(nn.Linear(1, 1)) == (True, True)
    tower = EmbeddingTower(processed, Interaction(3, 2))
    assert EmbeddingTowerCollection([tower])(batch_of(4, "a")).shape == (4, 2)


def test_what_is_missing_or_wrong() -> None:
    with pytest.raises(ValueError, match=r"`features` should be given, as tower number 0"):
        collection()()
    with pytest.raises(ValueError, match=r"`weighted_features` should be given, as tower number 1"):
        collection()(batch_of(2, "ab"))
    with pytest.raises(ValueError, match=r"at least one tower"):
        EmbeddingTowerCollection([])
    with pytest.raises(TypeError, match=r"should hold EmbeddingTowers. Received Linear"):
        EmbeddingTowerCollection([nn.Linear(1, 1)])


def test_state_names_and_device() -> None:
    towers = collection()
    assert list(towers.state_dict())[:3] == [
        "towers.0.embedding.embedding_bags.t.weight",
        "towers.0.interaction.linear.weight",
        "towers.0.interaction.linear.bias",
    ]
    tower = EmbeddingTower(bags("t", "a"), Interaction(3, 2), device="meta")
    assert all(parameter.is_meta for parameter in tower.parameters())


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # PyTorch's
def test_compiles_once_for_changing_batches() -> None:
    torch._dynamo.reset()
    towers = collection()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(towers, fullgraph=True, dynamic=True, backend=counter)
    for batch in (13, 5, 9):  # no size equal to another, which PyTorch would take for a rule
        inputs = batch_of(batch, "ab"), batch_of(batch, "c", is_weighted=True)
        torch.testing.assert_close(compiled(*inputs), towers(*inputs))
    assert counter.frame_count == 1
