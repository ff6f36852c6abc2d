"""Collections and maps made in one call."""

from __future__ import annotations

import pytest
import torch

from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor, KeyedTensor
from torchrec.modules.hash_mc_modules import HashZchManagedCollisionModule
from torchrec.modules.mc_adapter import (
    McEmbeddingBagCollectionAdapter,
    McEmbeddingCollectionAdapter,
)
from torchrec.modules.mc_modules import DistanceLFU_EvictionPolicy, MCHManagedCollisionModule

IDS = {"f": [[10**15, -1], [7]], "g": [[7], []]}


@pytest.mark.parametrize("pooled", [True, False], ids=["pooled", "sequence"])
def test_adapters(pooled):
    kind = EmbeddingBagConfig if pooled else EmbeddingConfig
    cls = McEmbeddingBagCollectionAdapter if pooled else McEmbeddingCollectionAdapter
    tables = [kind(5, 2, "t", feature_names=["f", "g"])]  # 5 rows on 3 ranks: nothing divides
    adapter = cls(tables, 2**40, torch.device("cpu"), 3, eviction_interval=2, zch_method="sort_zch")
    maps = [m for m in adapter.modules() if isinstance(m, MCHManagedCollisionModule)]
    assert [m.output_size() for m in maps] == [5]
    assert isinstance(maps[0]._eviction_policy, DistanceLFU_EvictionPolicy)
    assert maps[0].input_size() == 2**40
    assert adapter.embedding_bag_configs() == tables
    assert [tuple(weight.shape) for weight in adapter.parameters()] == [(5, 2)]
    batch = KeyedJaggedTensor.from_lists(IDS)
    for _ in range(2):
        out = adapter(batch)
    assert maps[0].held()[1].tolist() == [10**15, -1, 7]
    weight = next(adapter.parameters())
    if pooled:
        assert isinstance(out, KeyedTensor)
        assert torch.equal(out["f"], torch.stack([weight[0] + weight[1], weight[2]]))
    else:
        assert torch.equal(out["f"].values(), weight[:3])
        assert out["g"].lengths().tolist() == [1, 0]


def test_other_methods_are_refused():
    tables = [EmbeddingConfig(5, 2, "t", feature_names=["f"])]
    with pytest.raises(ValueError, match=r"should be 'sort_zch'.* 'zch' for tables \['t'\]"):
        McEmbeddingCollectionAdapter(tables, 9, torch.device("cpu"), 1, zch_method="zch")
    with pytest.raises(ValueError, match="`eviction_interval` should be 1 for 'mpzch'"):
        McEmbeddingCollectionAdapter(tables, 9, torch.device("cpu"), 1, 2, zch_method="mpzch")


@pytest.mark.parametrize("pooled", [True, False], ids=["pooled", "sequence"])
def test_multi_probe_hashing(pooled):
    kind = EmbeddingBagConfig if pooled else EmbeddingConfig
    cls = McEmbeddingBagCollectionAdapter if pooled else McEmbeddingCollectionAdapter
    tables = [kind(160, 2, "t", feature_names=["f", "g"]), kind(80, 2, "u", feature_names=["h"])]
    adapter = cls(tables, 1000, torch.device("cpu"), 1, zch_method="mpzch", mpzch_max_probe=2)
    maps = [m for m in adapter.modules() if isinstance(m, HashZchManagedCollisionModule)]
    assert [(m.output_size(), m.buckets(), m.max_probe, m.input_size()) for m in maps] == [
        (160, 80, 2, 1000),
        (80, 80, 2, 1000),
    ]
    adapter(KeyedJaggedTensor.from_lists({"f": [[999, 0]], "g": [[7]], "h": [[13]]}))
    assert sorted(maps[0].held()[1].tolist()) == [0, 7, 999]
    assert maps[1].held()[0].tolist() == [1]  # 13 ids a bucket
    assert maps[0].eviction_flag == 0
    adapter = cls(
        tables[:1], 0, "cpu", 1, zch_method="mpzch", mpzch_num_buckets=None, mpzch_max_probe=None
    )
    (only,) = [m for m in adapter.modules() if isinstance(m, HashZchManagedCollisionModule)]
    assert (only.buckets(), only.max_probe) == (1, 160)
