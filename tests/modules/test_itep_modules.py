"""In-training pruning is refused; collections whose pruning is off look ids up as they are."""

from __future__ import annotations

import inspect

import pytest
import torch

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
)
from torchrec.modules.itep_embedding_modules import (
    ITEPEmbeddingBagCollection,
    ITEPEmbeddingCollection,
)
from torchrec.modules.itep_modules import GenericITEPModule, RowwiseShardedITEPModule

IDS = KeyedJaggedTensor.from_lists({"f": [[1, 2], [3]]})


@pytest.mark.parametrize("cls", [GenericITEPModule, RowwiseShardedITEPModule])
def test_pruning_is_refused(cls):
    with pytest.raises(NotImplementedError, match="In-training embedding pruning is not supported"):
        cls({"t": 100})
    module = cls({"t": 100}, enable_pruning=False, pruning_interval=7)
    assert module(IDS, 3) is IDS
    assert module.state_dict() == {}
    module.load_state_dict({})
    module.flush_uvm_cache()


@pytest.mark.parametrize(
    "method",
    [
        "create_itep_buffers",
        "get_buffer_param",
        "get_full_values_list",
        "get_itp_state_dict",
        "get_remap_info",
        "get_table_hash_sizes",
        "init_itep_state",
        "print_itep_eviction_stats",
        "reset_weight_momentum",
    ],
)
def test_what_only_pruning_needs_is_refused(method):
    function = getattr(RowwiseShardedITEPModule({"t": 100}, enable_pruning=False), method)
    needed = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    with pytest.raises(NotImplementedError, match="enable_pruning=False"):
        function(*[None] * len(needed))


def test_bags_are_looked_up_and_steps_counted():
    ebc = EmbeddingBagCollection(tables=[EmbeddingBagConfig(10, 4, "t", feature_names=["f"])])
    module = ITEPEmbeddingBagCollection(ebc, GenericITEPModule({"t": 10}, enable_pruning=False))
    for step in range(3):
        assert module.state_dict()["_iter"].item() == step
        assert torch.equal(module(IDS).values(), ebc(IDS).values())
    assert list(module.state_dict()) == [
        "_iter",
        "_embedding_bag_collection.embedding_bags.t.weight",
    ]
    assert module.embedding_bag_configs() == ebc.embedding_bag_configs()


def test_ids_are_looked_up_and_steps_counted():
    ec = EmbeddingCollection(tables=[EmbeddingConfig(10, 4, "t", feature_names=["f"])])
    module = ITEPEmbeddingCollection(ec, GenericITEPModule({"t": 10}, enable_pruning=False))
    assert torch.equal(module(IDS)["f"].values(), ec(IDS)["f"].values())
    assert module.state_dict()["_iter"].item() == 1
    assert list(module.state_dict()) == ["_iter", "_embedding_collection.embeddings.t.weight"]
    assert module.embedding_bag_configs() == ec.embedding_configs()
