"""Quantised sequences in parts answer to the last bit as the whole collection, under every plan."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed.quantised import DTYPES, PLANS, batch, quantised, sequence_tables, sharded
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
from torchrec.distributed.quant_embedding import (
    QuantEmbeddingCollectionSharder,
    QuantManagedCollisionEmbeddingCollectionSharder,
    ShardedQuantEmbeddingCollection,
)
from torchrec.errors import IdOutOfRangeError
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingCollection
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)
from torchrec.quant.embedding_modules import QuantManagedCollisionEmbeddingCollection
from torchrec.quant.weights import new_config

SHARDER = QuantEmbeddingCollectionSharder()


def assert_same(parts: Any, whole: Any) -> None:
    for seed, size in enumerate((5, 1, 8)):
        features = batch(seed, size)
        found, expected = parts(features), whole(features)
        assert list(found) == list(expected)
        for name, vectors in expected.items():
            assert torch.equal(found[name].values(), vectors.values())
            assert torch.equal(found[name].lengths(), vectors.lengths())
            assert torch.equal(found[name].weights(), vectors.weights())


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parts_answer_as_the_whole(dtype: torch.dtype, plan: str) -> None:
    whole = quantised(EmbeddingCollection(tables=sequence_tables(), need_indices=True), dtype)
    parts = sharded(whole, SHARDER, plan)
    assert type(parts) is ShardedQuantEmbeddingCollection
    assert_same(parts, whole)
    assert parts.out_of_range_counts() == whole.out_of_range_counts()
    assert parts.need_indices()
    assert [table.name for table in parts.embedding_configs()] == ["t1", "t2", "t3"]


def test_maps_stay_whole() -> None:
    tables = [EmbeddingConfig(8, 8, f"t{n}", feature_names=[f"f{n}"]) for n in (1, 2)]
    maps = {
        table.name: MCHManagedCollisionModule(
            zch_size=8,
            device=torch.device("cpu"),
            eviction_policy=DistanceLFU_EvictionPolicy(),
            eviction_interval=1,
            input_hash_size=1000,
        )
        for table in tables
    }
    managed: Any = ManagedCollisionEmbeddingCollection(
        EmbeddingCollection(tables=tables), ManagedCollisionCollection(maps, tables)
    )
    features = KeyedJaggedTensor.from_lists({"f1": [[900, 7], [], [7]], "f2": [[5], [6, 5], []]})
    for _ in range(4):
        managed(features)
    managed.qconfig = new_config(torch.quint4x2, torch.float32)
    whole = QuantManagedCollisionEmbeddingCollection.from_float(managed)
    parts = sharded(whole, QuantManagedCollisionEmbeddingCollectionSharder(SHARDER), "mixed")
    (found, rows), (expected, _) = parts(features), whole(features)
    assert rows is None
    for name, vectors in expected.items():
        assert torch.equal(found[name].values(), vectors.values())


@pytest.mark.once
def test_stray_ids_are_refused_by_name() -> None:
    table = EmbeddingConfig(7, 8, "t", feature_names=["f"])
    whole = quantised(EmbeddingCollection(tables=[table]), torch.qint8)
    parts = sharded(whole, SHARDER, "row_wise")
    with pytest.raises(
        IdOutOfRangeError, match=r"'f' should be in \[0, 7\), the rows of table 't'"
    ):
        parts(KeyedJaggedTensor.from_lists({"f": [[1], [7]]}))
