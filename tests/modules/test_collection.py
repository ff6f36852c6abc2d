"""The protocol of collections, over every class that there is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    IdPolicy,
    KeyedJaggedTensor,
)
from torchrec.modules.collection import Collection, collections_in
from torchrec.modules.feature_processor_ import PositionWeightedModuleCollection
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.modules.fused_embedding_modules import (
    FusedEmbeddingBagCollection,
    FusedEmbeddingCollection,
)
from torchrec.modules.mc_embedding_modules import (
    ManagedCollisionEmbeddingBagCollection,
    ManagedCollisionEmbeddingCollection,
)
from torchrec.modules.mc_modules import (
    LFU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)

SIZES = {"t": 5, "u": 9}


def configs(kind: type) -> list:
    """Two tables of uneven sizes; one feature is looked up in both."""
    policy = {"id_policy": IdPolicy.CLAMP}
    return [
        kind(5, 2, "t", feature_names=["a", "b"], **policy),
        kind(9, 2, "u", feature_names=["b"], **policy),
    ]


def maps(tables: list) -> ManagedCollisionCollection:
    shared = {"t": None, "u": None}
    return ManagedCollisionCollection(shared, tables)


def bags(**options) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(tables=configs(EmbeddingBagConfig), **options)


SGD = (torch.optim.SGD, {"lr": 0.5})
EVERY: dict[str, Callable[[], nn.Module]] = {
    "bags": bags,
    "sequences": lambda: EmbeddingCollection(tables=configs(EmbeddingConfig)),
    "fused_bags": lambda: FusedEmbeddingBagCollection(configs(EmbeddingBagConfig), *SGD),
    "fused_sequences": lambda: FusedEmbeddingCollection(configs(EmbeddingConfig), *SGD),
    "processed": lambda: FeatureProcessedEmbeddingBagCollection(
        bags(is_weighted=True), PositionWeightedModuleCollection({"a": 3, "b": 3})
    ),
    "managed_bags": lambda: ManagedCollisionEmbeddingBagCollection(
        bags(), maps(configs(EmbeddingBagConfig))
    ),
    "managed_sequences": lambda: ManagedCollisionEmbeddingCollection(
        EmbeddingCollection(tables=configs(EmbeddingConfig)), maps(configs(EmbeddingConfig))
    ),
}
BATCH = {"a": [[1, 77]], "b": [[8, -4]]}


@pytest.mark.parametrize("name", EVERY)
def test_every_collection_shows_its_tables(name: str) -> None:
    module = EVERY[name]()
    assert isinstance(module, Collection)
    store = module.table_store()
    assert [config.name for config in store.table_configs()] == ["t", "u"]
    assert store.embedding_names_by_table() == [["a", "b@t"], ["b@u"]]
    assert store.device == torch.device("cpu")
    fused = name.startswith("fused")
    assert len(store.fused_optimizer.params) == 2 * fused
    weights = dict(module.named_parameters())
    for table, rows in SIZES.items():
        (shard,) = store.table_shards(table)
        assert (shard.rows, shard.columns) == (range(rows), range(2))
        assert any(shard.weight is weight for weight in weights.values())


@pytest.mark.parametrize("name", EVERY)
def test_counts_go_on_from_other_numbers(name: str) -> None:
    module = EVERY[name]()
    store = module.table_store()
    module(KeyedJaggedTensor.from_lists(BATCH))
    assert store.out_of_range_counts() == {"t": 3, "u": 1}  # t: 77, 8, -4; u: -4
    store.set_out_of_range_counts({"u": 40})
    module(KeyedJaggedTensor.from_lists(BATCH))
    assert store.out_of_range_counts(reset=True) == {"t": 6, "u": 41}
    assert store.out_of_range_counts() == {"t": 0, "u": 0}
    with pytest.raises(ValueError, match=r"`table` should be one of \['t', 'u'\]. Received 'x'"):
        store.set_out_of_range_counts({"x": 1})


@pytest.mark.parametrize("name", EVERY)
def test_rows_are_written_read_and_started_anew(name: str) -> None:
    store = EVERY[name]().table_store()
    rows = torch.tensor([4, 1])
    store.load_rows("u", rows, torch.full((2, 2), 7.0))
    store.reset_rows("u", torch.tensor([1]))
    _, vectors = store.export_rows("u", rows)
    assert vectors[0].tolist() == [7.0, 7.0]
    assert (vectors[1].abs() <= 1 / 3).all()  # within sqrt(1 / 9), where rows of this table start


def test_collections_of_a_model() -> None:
    twice = bags()
    inside = nn.ModuleDict({"managed": EVERY["managed_bags"](), "dense": nn.Linear(1, 1)})
    model = nn.ModuleDict({"z": EVERY["fused_bags"](), "inside": inside, "a": twice, "b": twice})
    found = list(collections_in(model))
    assert [path for path, _ in found] == ["z", "inside.managed", "a"]
    assert [path for path, _ in collections_in(twice)] == [""]
    assert list(collections_in(nn.Linear(1, 1))) == []


def test_a_module_that_has_tables_is_no_collection_for_that() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = bags()

    assert [path for path, _ in collections_in(Model())] == ["tables"]


def test_managed_ids_are_counted_by_their_maps_instead() -> None:
    tables = [EmbeddingBagConfig(5, 2, "t", feature_names=["a"])]
    policy = MCHManagedCollisionModule(5, "cpu", LFU_EvictionPolicy(), 1, name="t")
    module = ManagedCollisionEmbeddingBagCollection(
        EmbeddingBagCollection(tables=tables), ManagedCollisionCollection({"t": policy}, tables)
    )
    module(KeyedJaggedTensor.from_lists({"a": [[2**40, 7]]}))
    assert module.table_store().out_of_range_counts() == {"t": 0}
