"""Quantised bags in parts answer to the last bit as the whole collection, under every plan."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.distributed.quantised import (
    DTYPES,
    PLANS,
    RANKS,
    bag_tables,
    batch,
    quantised,
    sharded,
)
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import sharding_plan
from torchrec.distributed.quant_embeddingbag import (
    QuantEmbeddingBagCollectionSharder,
    QuantFeatureProcessedEmbeddingBagCollectionSharder,
    QuantManagedCollisionEmbeddingBagCollectionSharder,
    ShardedQuantEmbeddingBagCollection,
)
from torchrec.distributed.sharding_plan import construct_module_sharding_plan
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingEnv
from torchrec.errors import IdOutOfRangeError
from torchrec.inference.modules import DEFAULT_FUSED_PARAMS, quantize_embeddings
from torchrec.modules.feature_processor_ import PositionWeightedModuleCollection
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)
from torchrec.quant.embedding_modules import QuantManagedCollisionEmbeddingBagCollection
from torchrec.quant.weights import new_config

SHARDER = QuantEmbeddingBagCollectionSharder()


def assert_same(parts: nn.Module, whole: nn.Module, weighted: bool = False) -> None:
    for seed, size in enumerate((5, 1, 8)):
        features = batch(seed, size, weighted)
        found, expected = parts(features), whole(features)
        assert torch.equal(found.values(), expected.values())
        assert found.keys() == expected.keys()
        assert found.offset_per_key() == expected.offset_per_key()


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parts_answer_as_the_whole(dtype: torch.dtype, plan: str) -> None:
    whole = quantised(EmbeddingBagCollection(tables=bag_tables()), dtype)
    parts = sharded(whole, SHARDER, plan)
    assert type(parts) is ShardedQuantEmbeddingBagCollection
    assert_same(parts, whole)
    assert parts.out_of_range_counts() == whole.out_of_range_counts()
    assert any(parts.out_of_range_counts(reset=True).values())
    assert not any(parts.out_of_range_counts().values())
    assert [table.name for table in parts.embedding_bag_configs()] == ["t1", "t2", "t3"]


@pytest.mark.parametrize("plan", ["row_wise", "mixed"])
def test_weights_of_ids_go_along(plan: str) -> None:
    whole = quantised(EmbeddingBagCollection(tables=bag_tables(), is_weighted=True), torch.qint8)
    parts = sharded(whole, SHARDER, plan)
    assert parts.is_weighted()
    assert_same(parts, whole, weighted=True)
    with pytest.raises(ValueError, match="`features` should have weights, as `is_weighted` says"):
        parts(batch(0))


def test_the_steps_can_be_taken_apart() -> None:
    whole = quantised(EmbeddingBagCollection(tables=bag_tables()), torch.quint4x2)
    parts, features = sharded(whole, SHARDER, "mixed"), batch(3)
    context = parts.create_context()
    given = parts.input_dist(context, features)
    assert len(given) == RANKS
    output = parts.output_dist(context, parts.compute(context, given))
    assert torch.equal(output.values(), whole(features).values())
    assert parts.shardings["row_wise"].feature_names_per_rank() == [["f1", "f2"]] * 2 + [[]]
    assert parts.shardings["column_wise"].feature_names_per_rank() == [[], ["f2"], []]


def test_vectors_come_in_the_dtype_of_the_collection_and_batches_may_be_shared() -> None:
    whole: Any = quantize_embeddings(
        EmbeddingBagCollection(tables=bag_tables()), torch.qint8, False, output_dtype=torch.bfloat16
    )
    parts = sharded(whole, SHARDER, "mixed")
    assert parts(batch(1)).values().dtype is torch.bfloat16
    assert_same(parts, whole)
    features = KeyedJaggedTensor(
        ["f1", "f2", "f3"],
        torch.tensor([0, 5, 3, 1, 2]),
        lengths=torch.tensor([1, 1, 1, 1, 0, 1]),
        stride_per_key_per_rank=[[2], [1], [3]],
        inverse_indices=(["f1", "f2", "f3"], torch.tensor([[0, 1, 1], [0, 0, 0], [2, 0, 1]])),
    )
    assert torch.equal(parts(features).values(), whole(features).values())


def test_feature_processors_and_maps_stay_whole() -> None:
    ebc = EmbeddingBagCollection(tables=bag_tables(), is_weighted=True)
    processors = PositionWeightedModuleCollection({f"f{n}": 5 for n in (1, 2, 3)})
    for weight in processors.parameters():
        nn.init.uniform_(weight)
    processed = quantised(FeatureProcessedEmbeddingBagCollection(ebc, processors), torch.qint8)
    sharder = QuantFeatureProcessedEmbeddingBagCollectionSharder()
    parts = sharded(processed, sharder, "mixed")
    assert_same(parts, processed)

    tables = [EmbeddingBagConfig(8, 8, f"t{n}", feature_names=[f"f{n}"]) for n in (1, 2)]
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
    managed: Any = ManagedCollisionEmbeddingBagCollection(
        EmbeddingBagCollection(tables=tables),
        ManagedCollisionCollection(maps, tables),
        return_remapped_features=True,
    )
    features = KeyedJaggedTensor.from_lists({"f1": [[900, 7], [], [7]], "f2": [[5], [6, 5], []]})
    for _ in range(4):
        managed(features)
    managed.qconfig = new_config(torch.qint8, torch.float32)
    whole = QuantManagedCollisionEmbeddingBagCollection.from_float(managed, True)
    parts = sharded(whole, QuantManagedCollisionEmbeddingBagCollectionSharder(SHARDER), "mixed")
    (found, rows), (expected, expected_rows) = parts(features), whole(features)
    assert torch.equal(found.values(), expected.values())
    assert rows.keys() == expected_rows.keys()
    assert torch.equal(rows.values(), expected_rows.values())
    assert int(rows.values().max()) < 8


def test_no_tables_give_no_columns() -> None:
    whole = quantised(EmbeddingBagCollection(tables=[]), torch.qint8)
    found = sharded(whole, SHARDER, "table_wise")(batch(0))
    assert found.values().shape == whole(batch(0)).values().shape == (5, 0)


@pytest.mark.once
@pytest.mark.filterwarnings("ignore")  # PyTorch's own tracing warns of its own insides
def test_it_is_traced_as_one_call() -> None:
    whole = quantised(EmbeddingBagCollection(tables=bag_tables()), torch.qint8)
    parts = sharded(whole, SHARDER, "mixed")
    for model in (torch.fx.symbolic_trace(nn.Sequential(parts)), torch.fx.symbolic_trace(parts)):
        assert_same(model, whole)


def test_a_copy_has_parts_of_its_own() -> None:
    whole = quantised(EmbeddingBagCollection(tables=bag_tables()), torch.float32)
    parts = sharded(whole, SHARDER, "mixed")
    twin = copy.deepcopy(parts)
    for rows in twin.state_dict().values():
        rows.zero_()
    assert_same(parts, whole)
    assert not twin(batch(0)).values().any()


def test_parts_without_memory_wait_for_their_state() -> None:
    ebc = EmbeddingBagCollection(tables=bag_tables(), device=torch.device("meta"))
    parts = sharded(quantised(ebc, torch.qint8), SHARDER, "mixed")
    assert {rows.device.type for rows in parts.state_dict().values()} == {"meta"}


@pytest.mark.once
def test_stray_ids_are_refused_by_name() -> None:
    table = EmbeddingBagConfig(7, 8, "t", feature_names=["f"])
    whole = quantised(EmbeddingBagCollection(tables=[table]), torch.qint8)
    parts = sharded(whole, SHARDER, "row_wise")
    with pytest.raises(
        IdOutOfRangeError, match=r"'f' should be in \[0, 7\), the rows of table 't'"
    ):
        parts(KeyedJaggedTensor.from_lists({"f": [[1], [7]]}))
    with pytest.raises(ValueError, match="should have the key 'f'"):
        parts(KeyedJaggedTensor.from_lists({"g": [[1]]}))
    with pytest.raises(TypeError, match="`features` should be a KeyedJaggedTensor"):
        parts([1])


def _plan(made: Any, **changes: Any) -> EmbeddingModuleShardingPlan:
    plan = construct_module_sharding_plan(
        made, {"t": sharding_plan.table_wise(0)}, SHARDER, 2, 2, "cpu"
    )
    for name, value in changes.items():
        setattr(plan["t"], name, value)
    return plan


@pytest.mark.once
def test_what_cannot_be_is_refused() -> None:
    tables = [EmbeddingBagConfig(7, 6, "t", feature_names=["f"])]
    made = quantised(EmbeddingBagCollection(tables=tables), torch.quint4x2)
    env = ShardingEnv.from_local(2, 0)
    assert _plan(made)["t"].compute_kernel == "quant"
    with pytest.raises(
        ValueError, match=r"`compute_kernel` 'quant', as it is quantised\. Received 'fused'"
    ):
        SHARDER.shard(made, _plan(made, compute_kernel="fused"), env)
    with pytest.raises(ValueError, match="should not have `enforce_hbm`"):
        SHARDER.shard(made, _plan(made, enforce_hbm=True), env)
    with pytest.raises(ValueError, match="should not be copied to every device"):
        SHARDER.shard(made, _plan(made, sharding_type="data_parallel"), env)
    with pytest.raises(ValueError, match=r"should have table 't'. Received \[\]"):
        SHARDER.shard(made, EmbeddingModuleShardingPlan(), env)
    with pytest.raises(ValueError, match="should have its shards on ranks 0 to 0"):
        SHARDER.shard(
            made,
            construct_module_sharding_plan(
                made, {"t": sharding_plan.table_wise(1)}, SHARDER, 2, 2, "cpu"
            ),
            ShardingEnv.from_local(1, 0),
        )
    with pytest.raises(
        ValueError, match="cut at multiples of 2 columns, as INT4 has so many in a byte"
    ):
        sharded(made, SHARDER, [sharding_plan.column_wise([0, 1])], ranks=2)
    with pytest.raises(ValueError, match=r"`env` should be one of `ShardingEnv\.from_local`"):
        SHARDER.shard(made, _plan(made), {"cpu": env})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`fused_params` of quantised tables should be of"):
        QuantEmbeddingBagCollectionSharder({"learning_rate": 0.1})
    with pytest.raises(ValueError, match="Received '__register_lengths_to_offsets_lookup': True"):
        QuantEmbeddingBagCollectionSharder(
            DEFAULT_FUSED_PARAMS | {"__register_lengths_to_offsets_lookup": True}
        )
    with pytest.raises(TypeError, match="`module` should be a quantised collection"):
        SHARDER.shardable_parameters(nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match="`e_sharder` should be a QuantEmbeddingBagCollectionSharder"
    ):
        QuantManagedCollisionEmbeddingBagCollectionSharder(None)  # type: ignore[arg-type]
