"""Outputs of collections that come in parts."""

from __future__ import annotations

import pytest
import torch

from torchrec import KeyedJaggedTensor, KeyedTensor
from torchrec.distributed.embedding import EmbeddingCollectionAwaitable
from torchrec.distributed.embeddingbag import (
    EmbeddingBagCollectionAwaitable,
    ShardedEmbeddingBagCollection,
)
from torchrec.distributed.types import NoWait

pytestmark = pytest.mark.once

LEFT, RIGHT = torch.arange(6.0).view(2, 3), torch.arange(8.0).view(2, 4)


def test_columns_of_parts_stand_side_by_side():
    output = EmbeddingBagCollectionAwaitable(
        [NoWait(LEFT), NoWait(RIGHT)], [3, 2, 2], ["a", "b", "c"]
    )
    assert isinstance(output, KeyedTensor)
    assert torch.equal(output["b"] + 0, RIGHT[:, :2])
    assert output.keys() == ["a", "b", "c"]
    assert output.length_per_key() == [3, 2, 2]
    assert torch.equal(output.values(), torch.cat([LEFT, RIGHT], 1))
    wrong = EmbeddingBagCollectionAwaitable([NoWait(LEFT)], [2], ["a"], "tables")
    with pytest.raises(
        ValueError, match=r"output of 'tables' should have 2 columns in all\. Received 3"
    ):
        wrong.wait()


def test_vectors_of_parts_by_feature():
    features = KeyedJaggedTensor.from_lists({"f": [[7], []], "g": [[8], []]})
    part = NoWait(RIGHT), features, ["f", "g@t"]
    other = NoWait(LEFT), features, ["f", "h"]
    parts = list(zip(part, other, strict=True))
    output = EmbeddingCollectionAwaitable(*parts, ctx=None, need_indices=True)
    assert isinstance(output, dict)
    assert list(output) == ["f", "g@t", "h"]
    assert torch.equal(output["f"].values(), torch.cat([RIGHT[:1], LEFT[:1]], 1))
    assert torch.equal(output["h"].values(), LEFT[1:])
    assert output["g@t"].weights().tolist() == [8]
    assert output["g@t"].lengths().tolist() == [1, 0]
    assert EmbeddingCollectionAwaitable(*parts, ctx=None)["f"].weights_or_none() is None
    short = EmbeddingCollectionAwaitable([NoWait(LEFT[:1])], [features], [["f", "g"]], None)
    with pytest.raises(ValueError, match=r"a vector for each of 2 ids\. Received 1"):
        short.wait()
    with pytest.raises(ValueError, match="`features_to_permute_indices` should be None"):
        EmbeddingCollectionAwaitable(*parts, ctx=None, features_to_permute_indices={"f": [0]})


def test_what_else_there_is_to_wait_for_comes_first():
    waited = []

    class Other(NoWait[torch.Tensor]):
        def _wait_impl(self):
            waited.append("other")
            return super()._wait_impl()

    output = EmbeddingBagCollectionAwaitable(
        [NoWait(LEFT)], [3], ["a"], resize_awaitables=[Other(LEFT)]
    )
    assert waited == []
    assert torch.equal(output.values(), LEFT)
    assert waited == ["other"]


def test_names_of_weights():
    assert ShardedEmbeddingBagCollection.extend_shard_name("t") == "embedding_bags.t.weight"
