"""Factorization machines against the sum over all pairs."""

from __future__ import annotations

import itertools

import pytest
import torch

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.models.fm import FactorizationMachineModel

WEIGHTS = ["t1_linear", "t2_linear"]
IDS = {"f1": [[1, 2], [], [8]], "f2": [[0, 4], [3], [1]], "f3": [[0], [7], []]}


def tables(dim: int = 4, other: int = 4) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(9, dim, "t1", feature_names=["f1", "f3"]),
            EmbeddingBagConfig(9, 1, "t1_linear", feature_names=["f1", "f3"]),
            EmbeddingBagConfig(5, other, "t2", feature_names=["f2"]),
            EmbeddingBagConfig(5, 1, "t2_linear", feature_names=["f2"]),
        ]
    )


@pytest.mark.parametrize("num_dense", [0, 1, 3])
@pytest.mark.parametrize("order", [["f1", "f2", "f3"], ["f3", "f1", "f2"]], ids=",".join)
def test_by_hand(num_dense: int, order: list[str]) -> None:
    model = FactorizationMachineModel(tables(), WEIGHTS, num_dense)
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
    p = model.state_dict()
    bags = "embedding_bag_collection.embedding_bags"
    dense = torch.randn(3, num_dense)
    logits = model(dense, KeyedJaggedTensor.from_lists({name: IDS[name] for name in order}))
    assert logits.shape == (3, 1)
    for b in range(3):
        linear, vectors = p["bias"].clone(), []
        for table, feature in (("t1", "f1"), ("t1", "f3"), ("t2", "f2")):
            ids = IDS[feature][b]
            vectors.append(p[f"{bags}.{table}.weight"][ids].sum(0))
            linear += p[f"{bags}.{table}_linear.weight"][ids].sum(0)
        for i in range(num_dense):
            vectors.append(dense[b, i] * p["dense_vectors.weight"][:, i])
            linear += dense[b, i] * p["linear.weight"][0, i]
        pairs = sum(v @ w for v, w in itertools.combinations(vectors, 2))
        torch.testing.assert_close(logits[b], linear + pairs)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("linear_tables", "message"),
    [
        (["t1"], r"of dimension 1\. Received 't1' of a collection with dimension 4"),
        (["t1_linear", "t3"], r"dimension 1\. Received 't3' .* with tables \['t1', 't1_linear',"),
        ([], r"of the same `embedding_dim`, but for its `linear_tables`\. Received {'t1': 4, 't1_"),
    ],
    ids=str,
)
def test_tables_that_do_not_fit(linear_tables, message) -> None:
    with pytest.raises(ValueError, match=message):
        FactorizationMachineModel(tables(), linear_tables)


def test_it_needs_vectors_and_weights() -> None:
    of_weights = EmbeddingBagCollection(tables=[EmbeddingBagConfig(9, 1, "t", feature_names=["f"])])
    with pytest.raises(
        ValueError, match=r"and tables of vectors\. Received \['t'\] and outputs \[\]"
    ):
        FactorizationMachineModel(of_weights, ["t"])
    with pytest.raises(
        ValueError, match=r"and tables of vectors\. Received \[\] and outputs \['f'\]"
    ):
        FactorizationMachineModel(of_weights, [])
    with pytest.raises(ValueError, match=r"Received {'t1': 4, 't2': 3}"):
        FactorizationMachineModel(tables(other=3), WEIGHTS)
