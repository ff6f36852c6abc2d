"""Both collections against loops over `nn.EmbeddingBag` and `nn.Embedding`."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from torchrec import (
    DataType,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    JaggedTensor,
    KeyedJaggedTensor,
    KeyedTensor,
    PoolingType,
)
from torchrec.modules.embedding_modules import (
    get_embedding_names_by_table,
    process_pooled_embeddings,
    reorder_inverse_indices,
)
from torchrec.modules.fused_embedding_modules import FusedEmbeddingCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingCollection
from torchrec.modules.mc_modules import ManagedCollisionCollection

LISTS = {
    "a": [[1, 2, 1], [], [9]],
    "b": [[0], [0, 0, 3, 4], []],
    "c": [[], [], []],
    "d": [[5, 5], [6], [7, 8, 9, 0]],
}


def bag_config(name: str, dim: int, *features: str, **options) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(10, dim, name, feature_names=list(features), **options)


def config(name: str, dim: int, *features: str, **options) -> EmbeddingConfig:
    return EmbeddingConfig(10, dim, name, feature_names=list(features), **options)


def pool(weight: Tensor, bags: list[list[int]], mode: str = "sum") -> Tensor:
    """Pool bag by bag, as slowly and plainly as can be."""
    rows = []
    for bag in bags:
        chosen = weight[bag] if bag else weight.new_zeros(1, weight.shape[1])
        rows.append(chosen.mean(0) if mode == "mean" else chosen.sum(0))
    return torch.stack(rows)


@pytest.fixture
def batch() -> KeyedJaggedTensor:
    """Three samples of four features."""
    return KeyedJaggedTensor.from_lists(LISTS)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("dims", [(4, 4, 4), (1, 3, 130), (257, 8, 17)], ids=str)
def test_pooled_output(dims: tuple[int, ...], dtype: torch.dtype) -> None:
    ebc = EmbeddingBagCollection(
        tables=[
            bag_config("t0", dims[0], "d", "a"),
            bag_config("t1", dims[1], "b", pooling=PoolingType.MEAN),
            bag_config("t2", dims[2], "a", "c"),
        ]
    )
    out = ebc(KeyedJaggedTensor.from_lists(LISTS, dtype=dtype))
    assert isinstance(out, KeyedTensor)
    assert out.keys() == ["d", "a@t0", "b", "a@t2", "c"]
    assert out.length_per_key() == [dims[0], dims[0], dims[1], dims[2], dims[2]]
    w = [ebc.embedding_bags[t].weight for t in ("t0", "t1", "t2")]
    expected = [
        pool(w[0], LISTS["d"]),
        pool(w[0], LISTS["a"]),
        pool(w[1], LISTS["b"], "mean"),
        pool(w[2], LISTS["a"]),
        pool(w[2], LISTS["c"]),
    ]
    torch.testing.assert_close(out.values(), torch.cat(expected, 1))
    assert out.values().requires_grad


def test_sequence_output(batch: KeyedJaggedTensor) -> None:
    tables = [config("t0", 5, "b", "a"), config("t1", 2, "a", "c")]
    ec = EmbeddingCollection(tables=tables, need_indices=True)
    out = ec(batch)
    assert list(out) == ["b", "a@t0", "a@t1", "c"]
    for name, jagged in out.items():
        feature, table = name[0], "t1" if name in ("a@t1", "c") else "t0"
        ids = [i for bag in LISTS[feature] for i in bag]
        assert isinstance(jagged, JaggedTensor)
        assert torch.equal(jagged.values(), ec.embeddings[table].weight[ids])
        assert jagged.lengths().tolist() == [len(bag) for bag in LISTS[feature]]
        assert jagged.weights().tolist() == ids
    plain = EmbeddingCollection(tables=tables)(batch)
    assert all(jagged.weights_or_none() is None for jagged in plain.values())


def collections() -> list[nn.Module]:
    return [
        EmbeddingBagCollection(tables=[bag_config("t", 4, "a", "b")]),
        EmbeddingCollection(tables=[config("t", 4, "a", "b")]),
    ]


def numbers(out: KeyedTensor | dict[str, JaggedTensor]) -> dict[str, list]:
    parts = (
        out.to_dict() if isinstance(out, KeyedTensor) else {k: j.values() for k, j in out.items()}
    )
    return {key: part.tolist() for key, part in parts.items()}


@pytest.mark.parametrize("module", collections(), ids=["pooled", "sequence"])
def test_keys_in_any_order_and_further_ones(module: nn.Module, batch: KeyedJaggedTensor) -> None:
    expected = numbers(module(batch))
    for order in ([3, 1, 0, 2], [1, 0], [0, 3, 1]):
        assert numbers(module(batch.permute(order))) == expected
    with pytest.raises(ValueError, match=r"the key 'b' of table 't'.*\['a', 'd'\]"):
        module(batch.permute([0, 3]))


@pytest.mark.parametrize("module", collections(), ids=["pooled", "sequence"])
@pytest.mark.parametrize("bags", [0, 1, 3])
def test_batches_without_ids(module: nn.Module, bags: int) -> None:
    empty = torch.empty(0, dtype=torch.int64)
    kjt = KeyedJaggedTensor(["a", "b"], empty, lengths=torch.zeros(2 * bags, dtype=torch.int64))
    out = module(kjt)
    if isinstance(out, KeyedTensor):
        assert out.values().tolist() == [[0.0] * 8] * bags
        total = out.values().sum()
    else:
        assert [tuple(j.values().shape) for j in out.values()] == [(0, 4), (0, 4)]
        total = sum(j.values().sum() for j in out.values())
    total.backward()
    weight = next(module.parameters())
    assert weight.grad.count_nonzero() == 0
    weight.grad = None


@pytest.mark.parametrize("kind", [EmbeddingBagCollection, EmbeddingCollection])
def test_no_tables(kind: type, batch: KeyedJaggedTensor) -> None:
    out = kind(tables=[])(batch)
    if isinstance(out, KeyedTensor):
        assert out.keys() == []
        assert out.values().shape == (3, 0)
    else:
        assert out == {}


def test_weighted(batch: KeyedJaggedTensor) -> None:
    ebc = EmbeddingBagCollection(tables=[bag_config("t", 3, "a", "d")], is_weighted=True)
    factors = torch.rand(batch.values().numel())
    weighted = KeyedJaggedTensor(batch.keys(), batch.values(), factors, lengths=batch.lengths())
    out = ebc(weighted).to_dict()
    for key in ("a", "d"):
        jagged = weighted[key]
        rows = ebc.embedding_bags["t"].weight[jagged.values()] * jagged.weights()[:, None]
        parts = rows.split(jagged.lengths().tolist())
        torch.testing.assert_close(out[key], torch.stack([part.sum(0) for part in parts]))
    with pytest.raises(ValueError, match="`features` should have weights"):
        ebc(batch)
    unweighted = EmbeddingBagCollection(tables=[bag_config("t", 3, "a", "d")])
    unweighted.load_state_dict(ebc.state_dict())
    assert torch.equal(unweighted(weighted).values(), unweighted(batch).values())


def test_pooling_none(batch: KeyedJaggedTensor) -> None:
    table = bag_config("t", 3, "a", pooling=PoolingType.NONE)
    ebc = EmbeddingBagCollection(tables=[table])
    out = ebc(KeyedJaggedTensor.from_lists({"a": [[4], [2]]})).values()
    assert torch.equal(out, ebc.embedding_bags["t"].weight[[4, 2]])
    with pytest.raises(ValueError, match=r"'a' of table 't'.*Received 3 in sample 0"):
        ebc(batch)


TABLE_DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def test_a_layer_takes_what_tables_in_half_precision_give(batch) -> None:
    ebc = EmbeddingBagCollection(tables=[bag_config("t", 6, "d", dtype=torch.float16)])
    model = torch.nn.Linear(6, 1)
    model(ebc(batch).values()).sum().backward()
    assert ebc.embedding_bags["t"].weight.grad.dtype == torch.float16
    halved = EmbeddingBagCollection(tables=[bag_config("t", 6, "d")]).half()
    assert torch.nn.Linear(6, 1).half()(halved(batch).values()).dtype == torch.float16


@pytest.mark.parametrize("output", [None, *TABLE_DTYPES], ids=str)
@pytest.mark.parametrize("dtype", TABLE_DTYPES, ids=str)
def test_output_dtype(dtype: torch.dtype, output: torch.dtype | None, batch) -> None:
    """The output has its own dtype; sums are in float32 whatever it is."""
    ebc = EmbeddingBagCollection(tables=[bag_config("t", 6, "d", dtype=dtype)], output_dtype=output)
    ec = EmbeddingCollection(tables=[config("t", 6, "d", dtype=dtype)], output_dtype=output)
    assert ebc.embedding_bags["t"].weight.dtype == dtype
    pooled, rows = ebc(batch).values(), ec(batch)["d"].values()
    assert pooled.dtype == rows.dtype == (output or torch.promote_types(dtype, torch.float32))
    expected = pool(ebc.embedding_bags["t"].weight.float(), LISTS["d"]).to(pooled.dtype)
    torch.testing.assert_close(pooled, expected)
    pooled.float().sum().backward()
    assert ebc.embedding_bags["t"].weight.grad.dtype == dtype


def test_mixed_dtypes_give_the_wider(batch: KeyedJaggedTensor) -> None:
    half = bag_config("t", 2, "a", data_type=DataType.FP16)
    brain = bag_config("u", 2, "b", data_type=DataType.BF16)
    assert EmbeddingBagCollection(tables=[half, brain])(batch).values().dtype == torch.float32


def test_batches_of_their_own() -> None:
    """Features with fewer samples are spread over the batch by their inverse indices."""
    ebc = EmbeddingBagCollection(tables=[bag_config("t", 3, "a"), bag_config("u", 2, "b")])
    inverse = torch.tensor([[0, 1, 1], [0, 0, 0]])
    kjt = KeyedJaggedTensor(
        keys=["a", "b"],
        values=torch.tensor([1, 2, 3, 4, 5]),
        lengths=torch.tensor([2, 1, 2]),
        stride_per_key_per_rank=[[2], [1]],
        inverse_indices=(["a", "b"], inverse),
    )
    out = ebc(kjt)
    weights = [ebc.embedding_bags[t].weight for t in ("t", "u")]
    expected = [
        pool(weights[0], [[1, 2], [3], [3]]),
        pool(weights[1], [[4, 5], [4, 5], [4, 5]]),
    ]
    torch.testing.assert_close(out.values(), torch.cat(expected, 1))
    out.values().sum().backward()
    assert weights[0].grad[:, 0].tolist() == [0, 1, 1, 2, 0, 0, 0, 0, 0, 0]
    assert weights[1].grad[:, 0].tolist() == [0, 0, 0, 0, 3, 3, 0, 0, 0, 0]


def test_sequences_of_batches_of_their_own() -> None:
    ec = EmbeddingCollection(tables=[config("t", 3, "a"), config("u", 2, "b")])
    kjt = KeyedJaggedTensor(
        keys=["a", "b"],
        values=torch.tensor([1, 2, 3, 4, 5]),
        lengths=torch.tensor([2, 1, 2]),
        stride_per_key_per_rank=[[2], [1]],
    )
    out = ec(kjt)
    assert torch.equal(out["a"].values(), ec.embeddings["t"].weight[[1, 2, 3]])
    assert out["a"].lengths().tolist() == [2, 1]
    assert torch.equal(out["b"].values(), ec.embeddings["u"].weight[[4, 5]])
    assert out["b"].lengths().tolist() == [2]


@pytest.mark.parametrize("with_strides", [True, False], ids=["own_batches", "one_batch"])
@pytest.mark.parametrize("kind", ["plain", "fused", "fused_class", "managed"])
def test_sequences_are_spread_over_the_batch_by_inverse_indices(kind, with_strides) -> None:
    tables = [
        EmbeddingConfig(10, dim, name, feature_names=list(features), **FUSED[kind])
        for name, dim, features in (("t", 3, "a"), ("u", 2, "ba"))
    ]
    if kind == "fused_class":
        ec = FusedEmbeddingCollection(tables, torch.optim.SGD, {"lr": 1.0}, need_indices=True)
    else:
        ec = EmbeddingCollection(tables=tables, need_indices=True)
    before = [ec.embeddings[name].weight.detach().clone() for name in "tu"]
    lengths = [2, 1, 2] if with_strides else [2, 1, 2, 0]
    kjt = KeyedJaggedTensor(
        keys=["a", "b"],
        values=torch.tensor([1, 2, 3, 4, 5]),
        lengths=torch.tensor(lengths),
        stride_per_key_per_rank=[[2], [1]] if with_strides else None,
        inverse_indices=(["b", "a"], torch.tensor([[0, 0, 0], [0, 1, 1]])),
    )
    if kind == "managed":  # rows are the ids; none of them changes hands
        maps = ManagedCollisionCollection(dict.fromkeys("tu"), tables)
        out, _ = ManagedCollisionEmbeddingCollection(ec, maps)(kjt)
    else:
        out = ec(kjt)
    bags = {"a@t": [[1, 2], [3], [3]], "b": [[4, 5], [4, 5], [4, 5]], "a@u": [[1, 2], [3], [3]]}
    assert list(out) == list(bags)
    for (name, ids), table in zip(bags.items(), (0, 1, 1), strict=True):
        flat = [i for bag in ids for i in bag]
        assert out[name].lengths().tolist() == [len(bag) for bag in ids]
        assert out[name].weights().tolist() == flat
        assert torch.equal(out[name].values(), before[table][flat])
    sum(jt.values().sum() for jt in out.values()).backward()
    # How often each id stands in the full batch is its gradient, in plain tables and in steps of 1.
    for name, old, counts in zip("tu", before, ([0, 1, 1, 2], [0, 1, 1, 2, 3, 3]), strict=True):
        weight = ec.embeddings[name].weight
        moved = (weight.grad if kind in ("plain", "managed") else old - weight)[:, 0]
        torch.testing.assert_close(moved, torch.tensor(counts + [0] * (10 - len(counts))).float())


FUSED: dict[str, dict] = {
    "plain": {},
    "managed": {},
    "fused_class": {},
    "fused": {"optimizer": "sgd", "lr": 1.0},
}


def test_pooled_features_of_one_batch_are_spread_by_inverse_indices_too() -> None:
    ebc = EmbeddingBagCollection(tables=[bag_config("t", 3, "a"), bag_config("u", 2, "b")])
    kjt = KeyedJaggedTensor(
        ["a", "b"],
        torch.tensor([1, 2, 3, 4, 5]),
        lengths=torch.tensor([2, 1, 2, 0]),
        inverse_indices=(["a", "b"], torch.tensor([[1, 0, 1], [0, 0, 1]])),
    )
    weights = [ebc.embedding_bags[t].weight for t in ("t", "u")]
    expected = [pool(weights[0], [[3], [1, 2], [3]]), pool(weights[1], [[4, 5], [4, 5], []])]
    torch.testing.assert_close(ebc(kjt).values(), torch.cat(expected, 1))


def test_printing_and_names() -> None:
    ebc = EmbeddingBagCollection(tables=[bag_config("t", 4, "a", pooling=PoolingType.MEAN)])
    assert "(t): EmbeddingBag(10, 4, mode='mean'" in str(ebc)
    assert list(ebc.state_dict()) == ["embedding_bags.t.weight"]
    assert not ebc.is_weighted()
    assert ebc.device == torch.device("cpu")
    ec = EmbeddingCollection(tables=[config("t", 4, "a"), config("u", 4, "a", "b")])
    assert list(ec.state_dict()) == ["embeddings.t.weight", "embeddings.u.weight"]
    assert ec.embedding_dim() == 4
    assert ec.embedding_names_by_table() == [["a@t"], ["a@u", "b"]]
    assert get_embedding_names_by_table(ec.embedding_configs()) == [["a@t"], ["a@u", "b"]]
    assert not ec.need_indices()


def test_embedding_dim_of_different_tables() -> None:
    ec = EmbeddingCollection(tables=[config("t", 4, "a"), config("u", 2, "b")])
    with pytest.raises(ValueError, match=r"one `embedding_dim` here. Received \[2, 4\]"):
        ec.embedding_dim()


def test_initial_weights() -> None:
    bounded = bag_config("t", 50, "a", weight_init_min=0.25, weight_init_max=0.5)
    filled = bag_config("u", 4, "a", init_fn=lambda w: torch.full_like(w, 3.0))
    default = bag_config("v", 50, "a")
    ebc = EmbeddingBagCollection(tables=[bounded, filled, default])
    t, u, v = (ebc.embedding_bags[name].weight for name in ("t", "u", "v"))
    assert 0.25 <= t.min() < 0.27 < 0.48 < t.max() <= 0.5
    assert set(u.flatten().tolist()) == {3.0}
    assert -(0.1**0.5) <= v.min() < -0.3 < 0.3 < v.max() <= 0.1**0.5


# ---- where and how often it is called


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda m: m.__name__)
@pytest.mark.parametrize("module", collections(), ids=["pooled", "sequence"])
def test_without_gradients(mode, module: nn.Module, batch: KeyedJaggedTensor) -> None:
    expected = numbers(module(batch))
    with mode():
        out = module(batch)
    assert numbers(out) == expected
    values = out.values() if isinstance(out, KeyedTensor) else out["a"].values()
    assert not values.requires_grad
    after = module(batch)  # inference must leave nothing behind that training cannot use
    (after.values() if isinstance(after, KeyedTensor) else after["a"].values()).sum().backward()


@pytest.mark.parametrize("module", collections(), ids=["pooled", "sequence"])
def test_autocast_keeps_the_output_dtype(module: nn.Module, batch: KeyedJaggedTensor) -> None:
    expected = numbers(module(batch))
    with torch.autocast("cpu", torch.bfloat16):
        assert numbers(module(batch)) == expected


def test_several_lookups_in_one_step(batch: KeyedJaggedTensor) -> None:
    ebc = EmbeddingBagCollection(tables=[bag_config("t", 4, "a", "b")])
    other = KeyedJaggedTensor.from_lists({"b": [[3]], "a": [[1, 7]]})
    (ebc(batch).values().sum() + 2 * ebc(other).values().sum()).backward()
    grad = [0.0] * 10
    for kjt, factor in ((batch, 1), (other, 2)):
        for key in ("a", "b"):
            for i in kjt[key].values().tolist():
                grad[i] += factor
    assert ebc.embedding_bags["t"].weight.grad[:, 0].tolist() == grad


@pytest.mark.parametrize("module", collections(), ids=["pooled", "sequence"])
def test_from_several_threads(module: nn.Module) -> None:
    torch.manual_seed(3)
    batches = [
        KeyedJaggedTensor(
            ["a", "b"],
            torch.randint(0, 10, (2000,)),
            lengths=torch.full((400,), 5),
        )
        for _ in range(4)
    ]
    expected = [numbers(module(b)) for b in batches]
    wrong: list[int] = []

    def work(i: int) -> None:
        wrong.extend(i for _ in range(20) if numbers(module(batches[i])) != expected[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_other_input_layouts(batch: KeyedJaggedTensor) -> None:
    """Ids that are not contiguous, and offsets instead of lengths."""
    ebc = EmbeddingBagCollection(tables=[bag_config("t", 4, "a", "b")])
    expected = numbers(ebc(batch))
    spread = torch.stack([batch.values(), batch.values() + 99], 1).flatten()[::2]
    assert not spread.is_contiguous()
    strided = KeyedJaggedTensor(batch.keys(), spread, offsets=batch.offsets().int())
    assert numbers(ebc(strided)) == expected


# ---- helpers of the API


def test_inverse_indices_are_put_in_order() -> None:
    indices = (["a", "b"], torch.tensor([[0, 1], [1, 1]]))
    assert reorder_inverse_indices(indices, ["b"]).tolist() == [[1, 1]]
    assert reorder_inverse_indices(None, ["b"]).numel() == 0
    with pytest.raises(ValueError, match="the feature 'c'"):
        reorder_inverse_indices(indices, ["c"])


def test_pooled_embeddings_are_joined() -> None:
    parts = [torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]])]
    assert process_pooled_embeddings(parts, torch.empty(0)).tolist() == [[1, 3], [2, 4]]
    with pytest.raises(ValueError, match=r"one row a feature \(2\). Received 1"):
        process_pooled_embeddings(parts, torch.tensor([[0, 1]]))
