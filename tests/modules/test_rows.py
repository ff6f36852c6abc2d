"""Rows by id: read and written, with the state of fused tables."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    OptimizerType,
)

ROWS = 8


def pooled(**options) -> EmbeddingBagCollection:
    configs = [
        EmbeddingBagConfig(ROWS, 3, "t", feature_names=["f"], **options),
        EmbeddingBagConfig(ROWS, 2, "u", feature_names=["f"], **options),
    ]
    return EmbeddingBagCollection(tables=configs)


def sequence(**options) -> EmbeddingCollection:
    configs = [
        EmbeddingConfig(ROWS, 3, "t", feature_names=["f"], **options),
        EmbeddingConfig(ROWS, 2, "u", feature_names=["f"], **options),
    ]
    return EmbeddingCollection(tables=configs)


def train(module: nn.Module) -> None:
    out = module(KeyedJaggedTensor.from_lists({"f": [[1, 2, 1], [7]]}))
    parts = [j.values() for j in out.values()] if isinstance(out, dict) else [out.values()]
    torch.cat([part.flatten() for part in parts]).sin().sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("maker", [pooled, sequence])
def test_rows_go_in_and_come_out(maker, dtype: torch.dtype) -> None:
    module = maker(dtype=dtype)
    before = module.export_rows("t")[1]
    vectors = torch.tensor([[1.0, 2, 3], [4, 5, 6]], dtype=torch.float64)
    module.load_rows("t", torch.tensor([6, 0], dtype=torch.int32), vectors)
    ids, rows = module.export_rows("t", torch.tensor([0, 6, 0]))
    assert ids.tolist() == [0, 6, 0]
    assert rows.dtype == dtype
    assert rows.tolist() == [[4, 5, 6], [1, 2, 3], [4, 5, 6]]
    everything = module.export_rows("t")
    assert everything[0].tolist() == list(range(ROWS))
    assert torch.equal(everything[1][1:6], before[1:6])
    everything[1].zero_()  # a copy
    assert module.export_rows("t", torch.tensor([6]))[1].tolist() == [[1, 2, 3]]
    out = module(KeyedJaggedTensor.from_lists({"f": [[6]]}))
    values = out["f@t"].values() if isinstance(out, dict) else out["f@t"]
    assert values.tolist() == [[1, 2, 3]]


def test_rows_behind_the_known_ones() -> None:
    module = pooled(hash_size=2)
    module.load_rows("t", torch.tensor([ROWS + 1]), torch.ones(1, 3))
    assert module.export_rows("t")[1].shape == (ROWS + 2, 3)
    with pytest.raises(IndexError, match=r"should be in \[0, 10\). Received 10"):
        module.load_rows("t", torch.tensor([ROWS + 2]), torch.ones(1, 3))


@pytest.mark.parametrize("reset", [False, True], ids=["kept", "reset"])
@pytest.mark.parametrize("kind", OptimizerType, ids=lambda kind: kind.value)
@pytest.mark.parametrize("maker", [pooled, sequence])
def test_state_of_loaded_rows(maker, kind: OptimizerType, reset: bool) -> None:
    options = {"momentum": 0.9} if kind in (OptimizerType.SGD, OptimizerType.LARS_SGD) else {}
    if kind is OptimizerType.ADAGRAD:
        options = {"initial_accumulator_value": 0.25}
    module = maker(optimizer=kind, lr=0.1, optimizer_options=options)
    first = {k: v.clone() for k, v in state(module, "t").items()}
    train(module)
    before = {t: {k: v.clone() for k, v in state(module, t).items()} for t in ("t", "u")}
    module.load_rows("t", torch.tensor([2, 5]), torch.ones(2, 3), reset_state=reset)
    after = state(module, "t")
    assert after["step"] == 1
    for name in set(after) - {"step"}:
        loaded = first[name] if reset else before["t"][name]
        assert torch.equal(after[name][[2, 5]], loaded[[2, 5]])
        rest = [0, 1, 3, 4, 6, 7]
        assert torch.equal(after[name][rest], before["t"][name][rest])
        assert not torch.equal(before["t"][name][2], first[name][2])
    for name, value in state(module, "u").items():
        assert torch.equal(value, before["u"][name])
    train(module)
    assert state(module, "t")["step"] == 2


def state(module: nn.Module, table: str) -> dict[str, torch.Tensor]:
    states = module.fused_optimizer.state_dict()["state"]
    return next(values for name, values in states.items() if f".{table}." in name)


@pytest.mark.parametrize("requires_grad", [True, False])
def test_loading_leaves_autograd_alone(requires_grad: bool) -> None:
    module = pooled(enable_grad=requires_grad)
    module.load_rows("t", torch.tensor([1]), torch.ones(1, 3, requires_grad=True))
    weight = module.embedding_bags["t"].weight
    assert weight.requires_grad == requires_grad
    assert weight.is_leaf
    assert not module.export_rows("t")[1].requires_grad
    assert not module.export_rows("t", torch.tensor([1]))[1].requires_grad


def test_no_rows() -> None:
    module = pooled()
    none = torch.empty(0, dtype=torch.int64)
    module.load_rows("t", none, torch.empty(0, 3))
    ids, rows = module.export_rows("t", none)
    assert (ids.shape, rows.shape) == ((0,), (0, 3))


@pytest.mark.parametrize(
    ("table", "ids", "vectors", "error", "message"),
    [
        ("x", [0], (1, 3), ValueError, r"`table` should be one of \['t', 'u'\]. Received 'x'"),
        ("t", [8], (1, 3), IndexError, r"'t' should be in \[0, 8\). Received 8"),
        ("t", [0, -1], (2, 3), IndexError, r"Received -1"),
        ("t", [0.0], (1, 3), ValueError, "should be integers of shape"),
        ("t", [True], (1, 3), ValueError, "should be integers of shape"),
        ("t", [[0]], (1, 3), ValueError, "should be integers of shape"),
        ("t", [0], (1, 2), ValueError, r"the shape \(1, 3\). Received \(1, 2\)"),
        ("t", [0, 1], (1, 3), ValueError, r"the shape \(2, 3\). Received \(1, 3\)"),
        ("t", [3, 3], (2, 3), ValueError, "`ids` of table 't' should be distinct"),
    ],
)
def test_refused(table: str, ids: list, vectors: tuple, error: type, message: str) -> None:
    module = pooled()
    before = module.state_dict()["embedding_bags.t.weight"].clone()
    with pytest.raises(error, match=message):
        module.load_rows(table, torch.tensor(ids), torch.ones(vectors))
    assert torch.equal(module.embedding_bags["t"].weight, before)
    if "shape (" not in message.replace("\\", "") and "distinct" not in message:
        with pytest.raises(error, match=message):
            module.export_rows(table, torch.tensor(ids))
