"""The tutorial on tables and inputs, snippet by snippet, with what it prints."""

from __future__ import annotations

import re

import pytest
import torch

import torchrec
from torchrec import JaggedTensor, KeyedJaggedTensor


def words(value: object) -> str:
    """Return what is printed, without the white space that formatters change."""
    return re.sub(r"\s+", " ", str(value)).strip()


# ---- tables in torch

WEIGHTS = torch.tensor(
    [
        [0.3446, 0.3614, 0.8938, 0.8157],
        [0.1830, 0.0326, 0.8241, 0.2995],
        [0.7328, 0.0531, 0.9528, 0.0592],
        [0.7800, 0.1797, 0.0167, 0.7401],
        [0.4837, 0.2052, 0.3360, 0.9656],
        [0.7887, 0.3066, 0.0956, 0.3344],
        [0.5904, 0.8541, 0.5963, 0.2800],
        [0.5751, 0.4341, 0.6218, 0.4101],
        [0.6881, 0.5363, 0.4747, 0.2301],
        [0.6088, 0.1060, 0.1100, 0.7290],
    ]
)


def test_tables_in_torch() -> None:
    num_embeddings, embedding_dim = 10, 4
    embedding_collection = torch.nn.Embedding(num_embeddings, embedding_dim, _weight=WEIGHTS)
    embedding_bag_collection = torch.nn.EmbeddingBag(num_embeddings, embedding_dim, _weight=WEIGHTS)
    for table in (embedding_collection, embedding_bag_collection):
        printed = words(table.weight)
        assert printed.startswith("Parameter containing: tensor([[0.3446, 0.3614, 0.8938, 0.8157],")
        assert printed.endswith("[0.6088, 0.1060, 0.1100, 0.7290]], requires_grad=True)")
    ids = torch.tensor([[1, 3]])
    assert words(ids) == "tensor([[1, 3]])"
    embeddings = embedding_collection(ids)
    assert words(embeddings) == (
        "tensor([[[0.1830, 0.0326, 0.8241, 0.2995], [0.7800, 0.1797, 0.0167, 0.7401]]], "
        "grad_fn=<EmbeddingBackward0>)"
    )
    assert embeddings.shape == (1, 2, 4)
    pooled = embedding_bag_collection(ids)
    assert pooled.shape == (1, 4)
    assert words(pooled) == (
        "tensor([[0.4815, 0.1062, 0.4204, 0.5198]], grad_fn=<EmbeddingBagBackward0>)"
    )
    torch.testing.assert_close(torch.mean(embedding_collection(ids), dim=1), pooled)


@pytest.mark.parametrize("pooling", [torchrec.PoolingType.SUM, torchrec.PoolingType.MEAN])
def test_the_same_tables_here(pooling: torchrec.PoolingType) -> None:
    table = torchrec.EmbeddingBagConfig(
        name="t", embedding_dim=4, num_embeddings=10, feature_names=["f"], pooling=pooling,
        init_fn=lambda weight: weight.copy_(WEIGHTS),
    )  # fmt: skip
    ebc = torchrec.EmbeddingBagCollection(tables=[table])
    plain = torch.nn.EmbeddingBag(10, 4, mode=pooling.value.lower(), _weight=WEIGHTS)
    pooled = ebc(KeyedJaggedTensor.from_lists({"f": [[1, 3]]})).values()
    torch.testing.assert_close(pooled, plain(torch.tensor([[1, 3]])))


# ---- tables here


def test_the_whole_configuration() -> None:
    config = torchrec.EmbeddingBagConfig(
        name="user_behavior",
        embedding_dim=128,
        num_embeddings=10_000_000,
        feature_names=["user_id", "behavior_sequence"],
        pooling=torchrec.PoolingType.SUM,
        optimizer=torchrec.OptimizerType.ADAM,
        enable_grad=True,  # written `Ture` there
        lr=0.001,
        weight_decay=0.01,
        sparse=True,
        table_size=4,
        hash_size=20_000_000,
        dtype=torch.float16,
    )
    assert config.num_rows == 30_000_000
    assert config.data_type == torchrec.DataType.FP16
    assert (config.lr, config.weight_decay, config.table_size) == (0.001, 0.01, 4)
    assert (config.enable_grad, config.sparse) == (True, True)


def test_the_whole_configuration_at_work() -> None:
    """The same table with fewer rows: looked up, trained, and given ids that it does not know."""
    config = torchrec.EmbeddingBagConfig(
        name="user_behavior", embedding_dim=128, num_embeddings=100,
        feature_names=["user_id", "behavior_sequence"], pooling=torchrec.PoolingType.SUM,
        optimizer=torchrec.OptimizerType.ADAM, enable_grad=True, lr=0.001, weight_decay=0.01,
        sparse=True, table_size=4, hash_size=200, dtype=torch.float16,
    )  # fmt: skip
    ebc = torchrec.EmbeddingBagCollection(device="cpu", tables=[config])
    weight = ebc.embedding_bags["user_behavior"].weight
    assert (weight.shape, weight.dtype) == ((300, 128), torch.float16)
    before = weight.detach().clone()
    lists = {"user_id": [[7], [10**12]], "behavior_sequence": [[1, 2, -5], []]}
    ebc(KeyedJaggedTensor.from_lists(lists)).values().float().sum().backward()
    assert weight.grad is None
    moved = (weight != before).any(1).nonzero().flatten().tolist()
    assert moved[:3] == [1, 2, 7]
    assert len(moved) == 5
    assert all(row >= 100 for row in moved[3:])
    assert ebc.out_of_range_counts() == {"user_behavior": 2}


@pytest.fixture
def ebc() -> torchrec.EmbeddingBagCollection:
    """Build the two tables of products and users."""
    return torchrec.EmbeddingBagCollection(
        device="cpu",
        tables=[
            torchrec.EmbeddingBagConfig(
                name="product_table",
                embedding_dim=64,
                num_embeddings=4096,
                feature_names=["product"],
                pooling=torchrec.PoolingType.SUM,
            ),
            torchrec.EmbeddingBagConfig(
                name="user_table",
                embedding_dim=64,
                num_embeddings=4096,
                feature_names=["user"],
                pooling=torchrec.PoolingType.SUM,
            ),
        ],
    )


def test_printing_of_a_collection(ebc: torchrec.EmbeddingBagCollection) -> None:
    assert str(ebc.embedding_bags) == (
        "ModuleDict(\n"
        "  (product_table): EmbeddingBag(4096, 64, mode='sum')\n"
        "  (user_table): EmbeddingBag(4096, 64, mode='sum')\n"
        ")"
    )


# ---- inputs

LENGTHS, VALUES = torch.tensor([1, 2]), torch.tensor([5, 7, 1])


def test_offsets() -> None:
    offsets = torch.cumsum(LENGTHS, dim=0)
    assert words(offsets) == "tensor([1, 3])"
    assert words(VALUES[: offsets[0]]) == "tensor([5])"
    assert words(VALUES[offsets[0] : offsets[1]]) == "tensor([7, 1])"


def test_jagged_tensor() -> None:
    jt = JaggedTensor(values=VALUES, lengths=LENGTHS)
    assert words(jt.offsets()) == "tensor([0, 1, 3])"
    assert words(jt.to_dense()) == "[tensor([5]), tensor([7, 1])]"
    assert words(jt) == words("JaggedTensor({ [[5], [7, 1]] })")


@pytest.fixture
def kjt() -> KeyedJaggedTensor:
    """Join two features."""
    product_jt = JaggedTensor(values=torch.tensor([1, 2, 1, 5]), lengths=torch.tensor([3, 1]))
    user_jt = JaggedTensor(values=torch.tensor([2, 3, 4, 1]), lengths=torch.tensor([2, 2]))
    return KeyedJaggedTensor.from_jt_dict({"product": product_jt, "user": user_jt})


def test_keyed_jagged_tensor(kjt: KeyedJaggedTensor) -> None:
    assert str(kjt.keys()) == "['product', 'user']"
    assert words(kjt.lengths()) == "tensor([3, 1, 2, 2])"
    assert words(kjt.values()) == "tensor([1, 2, 1, 5, 2, 3, 4, 1])"
    parts = kjt.to_dict()
    assert list(parts) == ["product", "user"]
    assert all(type(part) is JaggedTensor for part in parts.values())
    shown = r"<torchrec\.sparse\.jagged_tensor\.JaggedTensor object at 0x[0-9a-f]+>"
    assert re.fullmatch(rf"{{'product': {shown}, 'user': {shown}}}", str(parts))
    assert (
        words(kjt) == 'KeyedJaggedTensor({ "product": [[1, 2, 1], [5]], "user": [[2, 3], [4, 1]] })'
    )


def test_look_up(ebc: torchrec.EmbeddingBagCollection, kjt: KeyedJaggedTensor) -> None:
    result = ebc(kjt)
    assert str(result.keys()) == "['product', 'user']"
    assert str(result.values().shape) == "torch.Size([2, 128])"
    printed = [f"{key} {embedding.shape}" for key, embedding in result.to_dict().items()]
    assert printed == ["product torch.Size([2, 64])", "user torch.Size([2, 64])"]
    product = ebc.embedding_bags["product_table"].weight
    torch.testing.assert_close(result["product"][0], product[1] * 2 + product[2])
