"""Logistic regression, by hand."""

from __future__ import annotations

import pytest
import torch

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType
from torchrec.models.lr import LogisticRegression


def tables(dim: int = 1) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(9, dim, "t1", feature_names=["f1", "f3"]),
            EmbeddingBagConfig(5, dim, "t2", feature_names=["f2"], pooling=PoolingType.MEAN),
        ]
    )


IDS = {"f1": [[1, 2], [], [8]], "f2": [[0, 4], [3], [1]], "f3": [[0], [7], []]}


@pytest.mark.parametrize("num_dense", [0, 2])
@pytest.mark.parametrize("order", [["f1", "f2", "f3"], ["f3", "f1", "f2"]], ids=",".join)
def test_by_hand(num_dense: int, order: list[str]) -> None:
    model = LogisticRegression(tables(), num_dense)
    assert not any(p.any() for n, p in model.named_parameters() if "embedding" not in n)
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
    p = model.state_dict()
    w1, w2 = (p[f"embedding_bag_collection.embedding_bags.{t}.weight"][:, 0] for t in ("t1", "t2"))
    dense = torch.randn(3, num_dense)
    kjt = KeyedJaggedTensor.from_lists({feature: IDS[feature] for feature in order})
    logits = model(dense, kjt)
    expected = torch.stack(
        [
            w1[1] + w1[2] + (w2[0] + w2[4]) / 2 + w1[0],
            w2[3] + w1[7],
            w1[8] + w2[1],
        ]
    )
    if num_dense:
        expected = expected + dense @ p["linear.weight"][0]
    torch.testing.assert_close(logits, (expected + p["bias"]).unsqueeze(1))


def test_dense_features_alone() -> None:
    model = LogisticRegression(None, 2)
    torch.nn.init.normal_(model.linear.weight)
    dense = torch.randn(3, 2)
    none = KeyedJaggedTensor([], torch.empty(0).long(), lengths=torch.empty(0).int())
    assert model.embedding_bag_collection is None
    torch.testing.assert_close(model(dense, none), dense @ model.linear.weight.T + model.bias)


def test_what_it_needs() -> None:
    with pytest.raises(ValueError, match=r"of dimension 1\. Received dimension 4"):
        LogisticRegression(tables(4))
    with pytest.raises(ValueError, match="There should be tables or dense features"):
        LogisticRegression(None)
    with pytest.raises(ValueError, match="`num_dense_features` should be at least 0"):
        LogisticRegression(tables(), -1)
    with pytest.raises(ValueError, match=r"`dense_features` should have shape \(B, 2\)"):
        LogisticRegression(tables(), 2)(torch.zeros(3, 1), KeyedJaggedTensor.from_lists(IDS))
