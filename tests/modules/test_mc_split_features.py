"""One feature in several tables with a map of their own each: as if each table stood alone."""

from __future__ import annotations

import copy

import pytest
import torch

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
)
from torchrec.modules.mc_embedding_modules import (
    ManagedCollisionEmbeddingBagCollection,
    ManagedCollisionEmbeddingCollection,
)
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)

Managed = ManagedCollisionEmbeddingBagCollection | ManagedCollisionEmbeddingCollection
# rows of the table, rows of its map (None: its ids are rows), dimension, features, policy
TABLES = {
    "wide": (8, 8, 2, ["f"], LFU_EvictionPolicy),
    "deep": (5, 4, 3, ["g", "f"], LRU_EvictionPolicy),
    "rows": (12, None, 1, ["f", "h"], None),
    "alone": (3, 3, 2, ["k"], DistanceLFU_EvictionPolicy),
}
KEYS = ["x", "k", "f", "h", "g"]
TRAINED = {"fused": dict.fromkeys(TABLES, True), "plain": dict.fromkeys(TABLES, False)}
TRAINED["mixed"] = {name: name in ("deep", "alone") for name in TABLES}


def make(names: list[str], pooled: bool, fused: dict[str, bool]) -> Managed:
    kind = EmbeddingBagConfig if pooled else EmbeddingConfig
    configs, maps = [], {}
    for name in names:
        rows, mapped, dim, features, policy = TABLES[name]
        trained = {"optimizer": "adagrad", "lr": 0.5} if fused[name] else {}
        configs.append(kind(rows, dim, name, feature_names=features, **trained))
        maps[name] = policy and MCHManagedCollisionModule(mapped, torch.device("cpu"), policy(), 1)
    collisions = ManagedCollisionCollection(maps, configs)
    if pooled:
        tables = EmbeddingBagCollection(tables=configs)
        return ManagedCollisionEmbeddingBagCollection(tables, collisions, True)
    return ManagedCollisionEmbeddingCollection(
        EmbeddingCollection(tables=configs), collisions, True
    )


def draw(step: int, samples: int = 3) -> KeyedJaggedTensor:
    generator = torch.Generator().manual_seed(step)
    lists = {
        key: [
            torch.randint(12, (int(n),), generator=generator).tolist()
            for n in torch.randint(0, 4, (samples,), generator=generator)
        ]
        for key in KEYS
    }
    return KeyedJaggedTensor.from_lists(lists)


def look_up(module: Managed, batch: KeyedJaggedTensor) -> tuple[dict, KeyedJaggedTensor]:
    output, rows = module(batch)
    if isinstance(output, dict):
        return {name: jt.values() for name, jt in output.items()}, rows
    return output.to_dict(), rows


def weight_of(module: Managed, table: str) -> torch.nn.Parameter:
    return next(p for name, p in module.named_parameters() if f".{table}." in name)


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("pooled", [True, False], ids=["pooled", "sequences"])
def test_each_table_maps_learns_and_evicts_as_if_alone(pooled, trained):
    together = make(list(TABLES), pooled, TRAINED[trained])
    alone = {name: make([name], pooled, TRAINED[trained]) for name in TABLES}
    for name, module in alone.items():
        with torch.no_grad():
            weight_of(module, name).copy_(weight_of(together, name))
    optimizers = {
        name: [torch.optim.SGD([weight_of(m, name)], 0.5) for m in (module, together)]
        for name, module in alone.items()
        if not TRAINED[trained][name]
    }
    evicted = 0
    for step in range(12):
        batch = draw(step)
        outputs, rows = look_up(together, batch)
        assert rows.keys() == ["x", "k", "f@wide", "f@deep", "f@rows", "h", "g"]
        loss = sum((output**2).sum() for output in outputs.values())
        for name, module in alone.items():
            own, own_rows = look_up(module, batch)
            for feature in TABLES[name][3]:
                key = f"{feature}@{name}" if feature == "f" else feature
                assert torch.equal(outputs[key], own[feature])
                for part in ("values", "lengths"):
                    mine, its = (getattr(r, part)() for r in (rows[key], own_rows[feature]))
                    assert torch.equal(mine, its)
            loss = loss + sum((output**2).sum() for output in own.values())
        for pair in optimizers.values():
            for optimizer in pair:
                optimizer.zero_grad()
        loss.backward()
        for pair in optimizers.values():
            for optimizer in pair:
                optimizer.step()
        for name, module in alone.items():
            torch.testing.assert_close(weight_of(together, name), weight_of(module, name))
        stats = together.stats()
        evicted = evicted + stats["deep"].evicted
        assert stats["deep"].evicted == alone["deep"].stats()["deep"].evicted
    assert evicted > 0


@pytest.mark.parametrize("pooled", [True, False], ids=["pooled", "sequences"])
def test_state_there_and_back(pooled):
    module = make(list(TABLES), pooled, TRAINED["fused"])
    for step in range(3):
        look_up(module, draw(step))
    other = make(list(TABLES), pooled, TRAINED["fused"])
    other.load_state_dict(module.state_dict())
    for twin in (other, copy.deepcopy(module)):
        for table in ("wide", "deep"):
            for mine, its in zip(twin.export_rows(table), module.export_rows(table), strict=True):
                assert torch.equal(mine, its)
        expected = look_up(copy.deepcopy(module), draw(9))
        found = look_up(twin, draw(9))
        assert all(torch.equal(found[0][name], value) for name, value in expected[0].items())


def test_maps_by_themselves():
    maps = make(list(TABLES), True, TRAINED["plain"])._managed_collision_collection
    batch = KeyedJaggedTensor.from_lists(
        {"f": [[7, 9], [9]], "g": [[7], []], "h": [[1], [2]], "k": [[], []], "x": [[5], []]},
        weights={k: [[0.5] * len(b) for b in v] for k, v in {
            "f": [[7, 9], [9]], "g": [[7], []], "h": [[1], [2]], "k": [[], []], "x": [[5], []]
        }.items()},
    )  # fmt: skip
    rows = maps(batch)
    assert rows.to_lists() == {
        "f@wide": [[0, 1], [1]],
        "f@deep": [[0, 1], [1]],
        "f@rows": [[7, 9], [9]],
        "g": [[0], []],
        "h": [[1], [2]],
        "k": [[], []],
        "x": [[5], []],
    }
    assert rows.weights().tolist() == [0.5] * 13
    assert maps.remap(batch).to_lists() == rows.to_lists()
    changed = {table: rows.tolist() for table, rows in maps.evict().items()}
    assert changed == {"wide": [0, 1], "deep": [0, 1], "alone": []}


def test_batches_of_their_own():
    module = make(["wide", "deep"], True, TRAINED["plain"]).eval()
    batch = KeyedJaggedTensor(
        ["g", "f"],
        torch.tensor([7, 8, 9]),
        lengths=torch.tensor([1, 1, 1]),
        stride_per_key_per_rank=[[1], [2]],
        inverse_indices=(["f", "g"], torch.tensor([[1, 0, 1], [0, 0, 0]])),
    )
    module.train()
    output, rows = module(batch)
    assert rows.stride_per_key() == [1, 2, 2]
    assert rows.inverse_indices()[1].tolist() == [[0, 0, 0], [1, 0, 1], [1, 0, 1]]
    expected, _ = module(batch.expand_inverse())
    for name in ("g", "f@wide", "f@deep"):
        assert torch.equal(output[name], expected[name])


def test_tables_that_share_a_map_keep_one_key():
    shared = MCHManagedCollisionModule(4, torch.device("cpu"), LFU_EvictionPolicy(), 1)
    own = MCHManagedCollisionModule(4, torch.device("cpu"), LFU_EvictionPolicy(), 1)
    configs = [EmbeddingBagConfig(4, 2, name, feature_names=["f"]) for name in "abc"]
    both = ManagedCollisionCollection({"a": shared, "b": shared}, configs[:2])
    batch = KeyedJaggedTensor.from_lists({"f": [[7], [8, 7]]})
    assert both(batch).to_lists() == {"f": [[0], [1, 0]]}
    three = ManagedCollisionCollection({"a": shared, "b": shared, "c": own}, configs)
    found = three(batch).to_lists()
    assert list(found) == ["f@a", "f@b", "f@c"]
    assert all(lists == [[0], [1, 0]] for lists in found.values())
    # Of two batches and of one: an id counts once for all tables that share a map.
    assert {table: stats.ids for table, stats in three.stats().items()} == {"a": 6, "b": 6, "c": 3}


def test_an_id_out_of_range_is_that_of_its_table():
    module = make(list(TABLES), False, TRAINED["plain"])
    batch = KeyedJaggedTensor.from_lists({key: [[1], [2, 30 if key == "f" else 3]] for key in KEYS})
    with pytest.raises(IndexError, match="'rows'"):
        module(batch)


def test_no_other_feature_has_the_key_that_rows_of_a_table_come_under():
    module = make(list(TABLES), False, TRAINED["plain"])
    batch = KeyedJaggedTensor.from_lists({key: [[1], [2]] for key in [*KEYS, "f@deep"]})
    with pytest.raises(
        ValueError, match="should have no key 'f@deep', under which rows of 'f' com"
    ):
        module(batch)
    assert all(stats.ids == 0 for stats in module.stats().values())  # no map has learnt
