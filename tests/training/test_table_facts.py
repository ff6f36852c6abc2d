"""What a report says of tables: plain and fused ones, of one tensor and of several."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import nn

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, IdPolicy, KeyedJaggedTensor
from torchrec.datasets.features import SparseFeature
from torchrec.datasets.transform import FeatureTransform
from torchrec.modules.collection import TableShard, TableStore
from torchrec.training.optimizers import combined_optimizer
from torchrec.training.table_facts import table_facts

pytestmark = pytest.mark.once


class Tables(nn.Module):
    """A fused table with a state a row, a plain one, and one whose rule keeps no state."""

    def __init__(self) -> None:
        super().__init__()
        adagrad, sgd = ({"optimizer": name, "lr": 0.1} for name in ("adagrad", "sgd"))
        self.fused = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(7, 4, "user", feature_names=["user"], **adagrad),
                EmbeddingBagConfig(
                    5, 2, "item", feature_names=["item"], id_policy=IdPolicy.HASH, **sgd
                ),
            ]
        )
        self.plain = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(9, 3, "shop", feature_names=["shop"], id_policy=IdPolicy.UNKNOWN)
            ]
        )

    def forward(self, ids: KeyedJaggedTensor) -> torch.Tensor:
        return self.fused(ids).values().sum() + self.plain(ids).values().sum()


def trained() -> tuple[Tables, Any, FeatureTransform]:
    model = Tables()
    optimizer = combined_optimizer(model)
    ids = {"user": [[1, 2], [2], [6]], "item": [[100], [1], []], "shop": [[8], [50], [3]]}
    model(KeyedJaggedTensor.from_lists(ids)).pow(2).backward()
    optimizer.step()
    columns = {"user": [1, 2], "item": [1, 2], "shop": [3, 4]}
    ids_of = {"user": "vocabulary", "item": "hash", "shop": "vocabulary"}
    features = {
        name: SparseFeature(ids=kind, rows=5 if kind == "hash" else None)
        for name, kind in ids_of.items()
    }
    return model, optimizer, FeatureTransform(features).fit([pa.table(columns)])


def test_tables_are_described() -> None:
    model, optimizer, transform = trained()
    facts = {one.name: one.values for one in table_facts(model, transform, optimizer)}
    assert list(facts) == ["user", "item", "shop"]
    assert [facts[name]["dead_rows"] for name in facts] == [4, None, 10 - 3]
    assert facts["user"]["occupancy"] == pytest.approx(3 / 7)
    assert [facts[name]["hashed"] for name in facts] == [0, 1, 0]
    assert [facts[name]["out_of_range"] for name in facts] == [0, 0, 1]
    assert [facts[name]["bytes"] for name in facts] == [7 * 4 * 4, 5 * 2 * 4, 10 * 3 * 4]
    for name, collection in (("user", model.fused), ("shop", model.plain)):
        norms = collection.state_dict()[f"embedding_bags.{name}.weight"].norm(dim=1)
        assert facts[name]["norm_mean"] == norms.mean().item()
        assert facts[name]["norm_max"] == norms.max().item()


class Parts:
    """The tables of a collection, each in parts of some rows and some columns."""

    def __init__(self, whole: TableStore, optimizer: Any) -> None:
        self.whole = whole
        self.state: dict[torch.Tensor, dict[str, Any]] = {}
        self.shards = {
            config.name: self._cut(whole.table_shards(config.name)[0], optimizer)
            for config in whole.table_configs()
        }

    def _cut(self, one: TableShard, optimizer: Any) -> list[TableShard]:
        rows, columns = len(one.rows), len(one.columns)
        found = []
        for r in (range(2), range(2, rows)):
            for c in (range(1), range(1, columns)):
                part = nn.Parameter(one.weight.detach()[r.start : r.stop, c.start : c.stop].clone())
                state = optimizer.state.get(one.weight, {})
                self.state[part] = {
                    name: value[r.start : r.stop, c.start : c.stop]
                    for name, value in state.items()
                    if isinstance(value, torch.Tensor) and value.dim() == 2
                }
                found.append(TableShard(r, c, part))
        return found

    def table_shards(self, table: str) -> list[TableShard]:
        return self.shards[table]

    def table_configs(self) -> Sequence[Any]:
        return self.whole.table_configs()

    def out_of_range_counts(self, reset: bool = False) -> dict[str, int]:
        return self.whole.out_of_range_counts(reset)


class InParts(nn.Module):
    def __init__(self, store: Parts) -> None:
        super().__init__()
        self.store = store

    def table_store(self) -> Parts:
        return self.store


def test_tables_in_parts_are_described_as_a_whole() -> None:
    model, optimizer, transform = trained()
    expected = table_facts(model, transform, optimizer)
    stores = [Parts(each.table_store(), optimizer) for each in (model.fused, model.plain)]
    states = SimpleNamespace(state={**stores[0].state, **stores[1].state})
    found = table_facts(nn.Sequential(*map(InParts, stores)), transform, states)
    for one, other in zip(found, expected, strict=True):
        assert one.name == other.name
        for key, value in other.values.items():
            assert one.values[key] == (None if value is None else pytest.approx(value, rel=1e-6))
