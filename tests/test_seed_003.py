"""The embedding collections' examples of the module documents, as written there."""

import torch

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
)


def features() -> KeyedJaggedTensor:
    #        0       1        2  <-- batch
    # "f1"   [0,1] None    [2]
    # "f2"   [3]    [4]    [5,6,7]
    return KeyedJaggedTensor(
        keys=["f1", "f2"],
        values=torch.tensor([0, 1, 2, 3, 4, 5, 6, 7]),
        offsets=torch.tensor([0, 2, 2, 3, 4, 5, 8]),
    )


def test_pooled_embeddings_of_two_tables() -> None:
    table_0 = EmbeddingBagConfig(
        name="t1", embedding_dim=3, num_embeddings=10, feature_names=["f1"]
    )
    table_1 = EmbeddingBagConfig(
        name="t2", embedding_dim=4, num_embeddings=10, feature_names=["f2"]
    )
    ebc = EmbeddingBagCollection(tables=[table_0, table_1])
    pooled_embeddings = ebc(features())
    t1, t2 = ebc.embedding_bags["t1"].weight, ebc.embedding_bags["t2"].weight
    expected = torch.stack(
        [
            torch.cat([t1[0] + t1[1], t2[3]]),
            torch.cat([torch.zeros(3), t2[4]]),  # the document prints 0.0000 for the empty bag
            torch.cat([t1[2], t2[5] + t2[6] + t2[7]]),
        ]
    )
    torch.testing.assert_close(pooled_embeddings.values(), expected)
    assert pooled_embeddings.values().grad_fn is not None
    assert pooled_embeddings.keys() == ["f1", "f2"]
    # The document prints tensor([0, 3, 7]); the signature says a list, and a list it is.
    assert pooled_embeddings.offset_per_key() == [0, 3, 7]


def test_embeddings_of_sequences() -> None:
    e1_config = EmbeddingConfig(name="t1", embedding_dim=3, num_embeddings=10, feature_names=["f1"])
    e2_config = EmbeddingConfig(name="t2", embedding_dim=3, num_embeddings=10, feature_names=["f2"])
    ec = EmbeddingCollection(tables=[e1_config, e2_config])
    given = KeyedJaggedTensor.from_offsets_sync(
        keys=["f1", "f2"],
        values=torch.tensor([0, 1, 2, 3, 4, 5, 6, 7]),
        offsets=torch.tensor([0, 2, 2, 3, 4, 5, 8]),
    )
    feature_embeddings = ec(given)
    assert feature_embeddings["f2"].values().shape == (5, 3)
    assert torch.equal(feature_embeddings["f2"].values(), ec.embeddings["t2"].weight[3:8])
    assert feature_embeddings["f1"].lengths().tolist() == [2, 0, 1]
