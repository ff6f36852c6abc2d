"""Weights of ids: in tables of their own beside vectors, and alone."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from torchrec import EmbeddingBagCollection, KeyedJaggedTensor
from torchrec.datasets.initial_weights import Normal
from torchrec.datasets.transform import TableSpec
from torchrec.models.registry import ModelSection, TableOptimizer, build_model

BOTH = [("deepfm", {"linear": True}), ("fm", {})]
with_both = pytest.mark.parametrize(("name", "options"), BOTH, ids=["deepfm", "fm"])


def transform(*tables: TableSpec, num_dense: int = 2) -> SimpleNamespace:
    names = [f"d{i}" for i in range(num_dense)]
    return SimpleNamespace(dense_names=names, tables=list(tables), is_weighted=False, outputs=[1])


def two_tables(num_dense: int = 2, **changes) -> SimpleNamespace:
    """A shared table, and one of which everything else is said."""
    return transform(
        TableSpec("user", ("user", "friend"), 7, ids="plain"),
        TableSpec("item", ("item",), **{"rows": 5, "ids": "plain"} | changes),
        num_dense=num_dense,
    )


def tables_of(model: nn.Module) -> dict[str, torch.Tensor]:
    state = model.state_dict().items()
    return {key.split(".")[-2]: value for key, value in state if "embedding_bags" in key}


def ids(samples: int = 3) -> KeyedJaggedTensor:
    values, lengths = torch.arange(3 * samples) % 5, torch.ones(3 * samples).int()
    return KeyedJaggedTensor(["user", "friend", "item"], values, lengths=lengths)


@with_both
@pytest.mark.parametrize("num_dense", [0, 2])
def test_each_table_has_one_of_weights_beside_it(name, options, num_dense) -> None:
    section = ModelSection(name=name, dim=4, table_init=Normal(std=1.0), **options)
    model = build_model(section, two_tables(num_dense))
    tables = tables_of(model)
    assert {table: tuple(weight.shape) for table, weight in tables.items()} == {
        "user": (7, 4),
        "item": (5, 4),
        "user_linear": (7, 1),
        "item_linear": (5, 1),
    }
    assert tables["user"].all()
    assert not tables["user_linear"].any()
    collection = getattr(model, "sparse_arch", model).embedding_bag_collection
    assert isinstance(collection, EmbeddingBagCollection)  # one, so that ids are looked up once
    dense = torch.randn(3, num_dense)
    before = model(dense, ids())
    with torch.no_grad():
        state = model.state_dict()
        prefix = next(key for key in state if key.endswith("item_linear.weight"))
        state[prefix][2] = 10.0
    changed = (model(dense, ids()) - before).squeeze(1)
    torch.testing.assert_close(changed, 10.0 * (ids()["item"].values() == 2).float())


@with_both
def test_weights_are_trained_as_vectors_are(name, options) -> None:
    optimizer = TableOptimizer(optimizer="sgd", lr=0.5)
    model = build_model(ModelSection(name=name, dim=4, **options), two_tables(0), optimizer)
    model(torch.empty(3, 0), ids()).sum().backward()
    counts = torch.bincount(ids()["item"].values(), minlength=5)
    torch.testing.assert_close(tables_of(model)["item_linear"][:, 0], -0.5 * counts.float())


@with_both
def test_dense_features_are_linear_too(name, options) -> None:
    """With all tables at zero and one layer of none, what is left of a number is linear."""
    section = ModelSection(name=name, dim=4, table_init={"rule": "zeros"}, **options)
    model = build_model(section, transform(TableSpec("user", ("user",), 7, ids="plain")))
    assert model.linear.weight.shape == (1, 2)
    none = KeyedJaggedTensor(["user"], torch.empty(0).long(), lengths=torch.zeros(2).int())
    dense = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    before = model(dense, none)
    with torch.no_grad():
        model.linear.weight += torch.tensor([[0.5, -1.0]])
    torch.testing.assert_close(model(dense, none) - before, torch.tensor([[0.5], [-3.0]]))


@with_both
@pytest.mark.parametrize("evict", ["lfu", "lru", "distance_lfu"])
def test_an_id_has_one_row_in_both_tables_and_loses_both_at_once(name, options, evict) -> None:
    managed = two_tables(0, rows=4, ids="managed", evict=evict, evict_every=1)
    section = ModelSection(name=name, dim=4, table_init=Normal(std=1.0), **options)
    model = build_model(section, managed, TableOptimizer(optimizer="adam", lr=0.1))
    none = torch.empty(3, 0)

    def batch(first: int, times: int = 1) -> KeyedJaggedTensor:
        items = [[first + i] * times for i in range(3)]
        return KeyedJaggedTensor.from_lists(
            {"user": [[0], [1], [2]], "friend": [[], [], []], "item": items}
        )

    for _ in range(3):
        model(none, batch(10**12)).sum().backward()
    old = copy.deepcopy(tables_of(model))
    trained = (old["item_linear"] != 0).squeeze(1)
    assert trained.sum() == 3
    collection = getattr(model, "sparse_arch", model).embedding_bag_collection.tables
    held = {table: collection.export_rows(table) for table in ("item", "item_linear")}
    assert torch.equal(held["item"][0], held["item_linear"][0])
    for _ in range(6):
        with torch.no_grad():
            model(none, batch(50, times=9))
    new = tables_of(model)
    changed = (new["item"] != old["item"]).any(1)
    assert changed.any()
    assert torch.equal(new["item_linear"][changed], torch.zeros(int(changed.sum()), 1))
    kept = ~changed
    assert torch.equal(new["item_linear"][kept], old["item_linear"][kept])


@with_both
def test_the_state_is_loaded_with_maps_and_all(name, options) -> None:
    section = ModelSection(name=name, dim=4, **options)
    make = lambda: build_model(section, two_tables(2, rows=4, ids="managed"))  # noqa: E731
    model, other = make(), make()
    dense = torch.randn(3, 2)
    for _ in range(3):
        model(dense, ids())
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(dense, ids()), model.eval()(dense, ids()))


@with_both
def test_a_name_that_the_weights_need(name, options) -> None:
    taken = transform(
        TableSpec("user", ("user",), 7, ids="plain"),
        TableSpec("user_linear", ("friend",), 7, ids="plain"),
    )
    message = r"other names than 'user_linear', in which .* terms of table 'user': rename it with"
    with pytest.raises(ValueError, match=message):
        build_model(ModelSection(name=name, **options), taken)


@pytest.mark.parametrize("num_dense", [0, 2])
def test_logistic_regression_has_weights_alone(num_dense) -> None:
    section = ModelSection(name="lr", dim=16)
    model = build_model(section, two_tables(num_dense, dim=8))
    assert {table: tuple(weight.shape) for table, weight in tables_of(model).items()} == {
        "user": (7, 1),
        "item": (5, 1),
    }
    assert not any(parameter.any() for parameter in model.parameters())
    assert torch.equal(model(torch.randn(3, num_dense), ids()), torch.zeros(3, 1))


@pytest.mark.parametrize("name", ["fm", "lr"])
def test_dense_features_alone_make_logistic_regression(name) -> None:
    model = build_model(ModelSection(name=name), transform(num_dense=2))
    assert type(model).__name__ == "LogisticRegression"
    assert [tuple(parameter.shape) for parameter in model.parameters()] == [(1,), (1, 2)]
