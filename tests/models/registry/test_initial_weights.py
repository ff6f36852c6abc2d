"""Weights that models start from: of tables and of layers, by the rules of an experiment."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from torchrec import KeyedJaggedTensor
from torchrec.datasets.features import AnyFeature, DenseFeature, SparseFeature
from torchrec.datasets.initial_weights import Normal, Pretrained, Uniform, XavierNormal, Zeros
from torchrec.datasets.transform import FeatureTransform, TableSpec
from torchrec.models.registry import ModelSection, TableOptimizer, _build, build_model, find, names

ADAM = TableOptimizer(optimizer="adam", lr=0.01)
ROWS, DIM = 2000, 8

each_model = pytest.mark.parametrize("name", names())
each_with_layers = pytest.mark.parametrize("name", ["deepfm", "dlrm", "dlrm_dcn"])


def transform(*tables: TableSpec, num_dense: int = 3) -> SimpleNamespace:
    names = [f"d{i}" for i in range(num_dense)]
    return SimpleNamespace(dense_names=names, tables=list(tables), is_weighted=False, outputs=[1])


def two_tables(**changes) -> SimpleNamespace:
    """Two tables, of which the second has what is said."""
    return transform(
        TableSpec("user", ("user",), ROWS, ids="plain"),
        TableSpec("item", ("item",), **{"rows": 50, "ids": "plain"} | changes),
    )


def tables_of(model: nn.Module) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    found = {key.split(".")[-2]: value for key, value in state.items() if "embedding_bags" in key}
    assert set(found) >= {"user", "item"}
    return {"user": found["user"], "item": found["item"]}


@each_model
@pytest.mark.parametrize(
    ("rule", "std", "most"),
    [
        ({"rule": "normal", "std": 1e-3}, 1e-3, math.inf),
        ({"rule": "uniform", "bound": 0.3}, 0.3 / math.sqrt(3), 0.3),
        ({"rule": "uniform"}, math.sqrt(1 / ROWS / 3), math.sqrt(1 / ROWS)),
        ({"rule": "xavier_normal"}, lambda dim: math.sqrt(2 / (ROWS + dim)), math.inf),
        ({"rule": "xavier_uniform"}, lambda dim: math.sqrt(2 / (ROWS + dim)), 0.06),
        ({"rule": "kaiming"}, lambda dim: math.sqrt(2 / dim), math.inf),
        ({"rule": "zeros"}, 0.0, 0.0),
    ],
    ids=str,
)
def test_tables_start_by_the_rule(name, rule, std, most) -> None:
    torch.manual_seed(0)
    model = build_model(ModelSection(name=name, dim=DIM, table_init=rule), two_tables(), ADAM)
    weight = tables_of(model)["user"]
    dim = 1 if name == "lr" else DIM
    std = std(dim) if callable(std) else std
    assert weight.shape == (ROWS, dim)
    assert weight.std().item() == pytest.approx(std, rel=0.05)
    assert weight.mean().item() == pytest.approx(0.0, abs=0.05 * std)
    assert weight.abs().max() <= most


def test_a_feature_has_a_rule_of_its_own() -> None:
    torch.manual_seed(0)
    section = ModelSection(name="deepfm", dim=DIM, table_init=Normal(std=1e-4))
    tables = tables_of(build_model(section, two_tables(rows=ROWS, init=Normal(std=0.1)), ADAM))
    assert tables["user"].std().item() == pytest.approx(1e-4, rel=0.03)
    assert tables["item"].std().item() == pytest.approx(0.1, rel=0.03)


@each_model
def test_uniform_without_a_bound_is_how_tables_and_layers_start_by_themselves(
    name, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers, so that an experiment can say it where a model has another default."""

    def weights(**options: object) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        return build_model(ModelSection(name=name, **options), two_tables(), ADAM).state_dict()

    model = dataclasses.replace(find(name), table_init=lambda dim: Uniform(), layer_init=Uniform())
    monkeypatch.setattr(_build, "find", lambda name: model)
    expected = weights()
    monkeypatch.undo()
    for key, value in weights(table_init=Uniform(), layer_init=Uniform()).items():
        assert torch.equal(value, expected[key])


def test_the_model_says_how_its_tables_and_layers_start(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = dataclasses.replace(
        find("dlrm"), table_init=lambda dim: Normal(std=1 / dim), layer_init=Normal(std=1e-5)
    )
    monkeypatch.setattr(_build, "find", lambda name: declared)
    torch.manual_seed(0)
    model = build_model(ModelSection(name="dlrm", dim=4), two_tables(), ADAM)
    assert tables_of(model)["user"].std().item() == pytest.approx(1 / 4, rel=0.03)
    assert model.over_arch.layers[0]._linear.weight.abs().max() < 1e-4
    stated = ModelSection(name="dlrm", dim=4, table_init=Zeros(), layer_init=XavierNormal())
    model = build_model(stated, two_tables(), ADAM)
    assert not tables_of(model)["user"].any()
    assert model.over_arch.layers[0]._linear.weight.abs().max() > 1e-2


@each_with_layers
def test_layers_start_by_the_rule(name) -> None:
    torch.manual_seed(0)
    section = ModelSection(
        name=name,
        dim=DIM,
        layers=[300, 200],
        dense_layers=[100],
        layer_init=Normal(std=1e-3),
        table_init=Normal(std=1.0),
    )
    model = build_model(section, two_tables(), ADAM)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert len(linear) >= 4
    for layer in linear:
        assert layer.weight.abs().max() < 1e-2
        assert layer.weight.unique().numel() > 1
        assert layer.bias is None or not layer.bias.any()
    kernels = [value for key, value in model.state_dict().items() if "kernels" in key]
    assert bool(kernels) == (name == "dlrm_dcn")
    for kernel in kernels:
        assert 0 < kernel.abs().max() < 1e-2
    assert tables_of(model)["item"].abs().max() > 1e-2  # tables are not layers


@pytest.mark.parametrize(
    ("rule", "deviation"),
    [
        ("xavier_normal", math.sqrt(2 / (300 + 200))),
        ("xavier_uniform", math.sqrt(2 / (300 + 200))),
        ("kaiming", math.sqrt(2 / 300)),
    ],
)
def test_layers_are_counted_by_their_inputs_and_outputs(rule, deviation) -> None:
    torch.manual_seed(0)
    section = ModelSection(name="dlrm", dim=DIM, layers=[300, 200], layer_init={"rule": rule})
    model = build_model(section, two_tables(), ADAM)
    weight = model.over_arch.layers[1]._linear.weight
    assert weight.shape == (200, 300)
    assert weight.std().item() == pytest.approx(deviation, rel=0.03)


@each_model
@pytest.mark.parametrize("rule", ["normal", "xavier_uniform", "kaiming"])
def test_nothing_is_drawn_on_the_meta_device(name, rule) -> None:
    options = {"rule": rule, "std": 0.1} if rule == "normal" else {"rule": rule}
    section = ModelSection(name=name, table_init=options, layer_init=options)
    before = torch.get_rng_state()
    model = build_model(section, two_tables(), ADAM, device="meta")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(weight.is_meta for weight in model.state_dict().values())


@each_model
def test_rows_of_new_ids_start_as_the_table_did(name) -> None:
    """A managed table of three rows, whose ids all give way to others, beside one that stays."""
    managed = two_tables(rows=3, ids="managed", evict="lru", evict_every=1, init=Normal(std=1e-6))
    torch.manual_seed(0)
    section = ModelSection(name=name, dim=DIM, table_init=Normal(std=1.0))
    model = build_model(section, managed, TableOptimizer(optimizer="sgd", lr=100.0))
    dense = torch.randn(3, 3)

    def ids(first: int) -> KeyedJaggedTensor:
        return KeyedJaggedTensor.from_lists(
            {"user": [[0], [1], [2]], "item": [[first], [first + 1], [first + 2]]}
        )

    start = copy.deepcopy(tables_of(model))
    for _ in range(2):
        model(dense, ids(10)).sum().backward()
    trained = copy.deepcopy(tables_of(model))
    assert (trained["item"] - start["item"]).abs().max() > 1e-3
    model(dense, ids(50))
    model(dense, ids(50))
    renewed = tables_of(model)["item"]
    changed = (renewed != trained["item"]).any(1)
    assert changed.any()
    assert 0 < renewed[changed].abs().max() < 1e-5


@each_model
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_tables_start_with_vectors_and_stay_if_frozen(name, frozen, tmp_path: Path) -> None:
    vectors = np.arange(4 * DIM, dtype=np.float32).reshape(4, DIM) / 100
    np.save(tmp_path / "v.npy", vectors)
    rule = Pretrained(file=str(tmp_path / "v.npy"), frozen=frozen)
    features: dict[str, AnyFeature] = {
        "user": SparseFeature(ids="plain", rows=9),
        "item": SparseFeature(ids="vocabulary", init=rule),
        "x": DenseFeature(),
    }
    data = pa.table({"user": [1, 2, 3], "item": [3, 3, 2], "x": [0.0, 1, 2], "click": [0, 1, 1]})
    fitted = FeatureTransform(features, "click").fit([data])
    model = build_model(ModelSection(name=name, dim=DIM), fitted, ADAM)
    start = tables_of(model)["item"].clone()
    if name == "lr":
        assert start.shape == (3, 1)  # weights, which are no vectors
        return
    expected = torch.from_numpy(vectors)[[3, 2]]
    assert torch.equal(start, torch.cat([expected, torch.zeros(1, DIM)]))
    batch = fitted(data)
    model(batch.dense_features, batch.sparse_features).square().sum().backward()
    moved = (tables_of(model)["item"] != start).any(1)
    assert moved.tolist() == ([False] * 3 if frozen else [True, True, False])
    if name == "fm":  # whose weights beside the vectors are trained anyway
        (linear,) = [v for k, v in model.state_dict().items() if k.endswith("item_linear.weight")]
        assert linear[:2].ne(0).all()
    assert tables_of(model)["user"][1].ne(0).all()
