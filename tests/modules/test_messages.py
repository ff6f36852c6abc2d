"""Collections, feature processors and maps of ids: given something odd, the message names the argument."""

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
)
from torchrec.modules import feature_processor
from torchrec.modules.embedding_modules import (
    get_embedding_names_by_table,
    process_pooled_embeddings,
    reorder_inverse_indices,
)
from torchrec.modules.feature_processor import (
    PositionWeightedProcessor,
    offsets_to_range_traceble,
    position_weighted_module_update_features,
)
from torchrec.modules.feature_processor_ import (
    PositionWeightedModule,
    PositionWeightedModuleCollection,
    get_weights_list,
)
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.modules.fused_embedding_modules import (
    FusedEmbeddingBagCollection,
    convert_optimizer_type_and_kwargs,
    fuse_embedding_optimizer,
)
from torchrec.modules.hash_mc_modules import HashZchManagedCollisionModule
from torchrec.modules.mc_embedding_modules import (
    ManagedCollisionEmbeddingBagCollection,
    evict,
    return_remapped_lengths_as_mask,
)
from torchrec.modules.mc_modules import (
    LFU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)

T = torch.tensor
BAGS = [EmbeddingBagConfig(10, 4, "t", feature_names=["a"])]
SEQUENCES = [EmbeddingConfig(10, 4, "t", feature_names=["a"])]
ROW = torch.ones(1, 4)


def ebc() -> EmbeddingBagCollection:
    return EmbeddingBagCollection(tables=BAGS)


def mcc() -> ManagedCollisionCollection:
    module = MCHManagedCollisionModule(10, torch.device("cpu"), LFU_EvictionPolicy(), 1)
    return ManagedCollisionCollection({"t": module}, BAGS)


def mc_ebc() -> ManagedCollisionEmbeddingBagCollection:
    return ManagedCollisionEmbeddingBagCollection(ebc(), mcc())


TAKE_FEATURES = {
    "ebc": ebc(),
    "ec": EmbeddingCollection(tables=SEQUENCES),
    "fused": FusedEmbeddingBagCollection(BAGS, torch.optim.SGD, {"lr": 0.1}),
    "maps": mcc(),
    "managed": mc_ebc(),
    "position_weights": PositionWeightedModuleCollection({"a": 2}),
    "processor": PositionWeightedProcessor({"a": 2}),
    "one_feature": PositionWeightedModule(2),
    "mask": return_remapped_lengths_as_mask,
}


@pytest.mark.parametrize("odd", [None, 5, "x", [1], {}, T([1])], ids=repr)
@pytest.mark.parametrize("module", TAKE_FEATURES.values(), ids=TAKE_FEATURES)
def test_features(module, odd):
    with pytest.raises(TypeError, match=r"`features` should be a (Keyed)?JaggedTensor. Received"):
        module(odd)


@pytest.mark.parametrize("odd", [None, 5, "x", [1], [0.5]], ids=repr)
def test_rows(odd):
    for call in (
        lambda: ebc().load_rows("t", odd, ROW),
        lambda: ebc().load_rows("t", T([1]), odd),
        lambda: ebc().reset_rows("t", odd),
        lambda: mc_ebc().load_rows("t", odd, ROW),
        lambda: mc_ebc().load_rows("t", T([1]), odd),
        lambda: evict({"t": odd}, ebc()) if odd is not None else ebc().reset_rows("t", odd),
    ):
        with pytest.raises(
            TypeError, match=r"(?i)`?(ids|rows|vectors)`? of table 't' should be a Ten"
        ):
            call()
    for call in (lambda: ebc().load_rows(odd, T([1]), ROW), lambda: ebc().table_shards(odd)):
        with pytest.raises(ValueError, match=r"`table` should be one of \['t'\]. Received"):
            call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: EmbeddingBagCollection(5), "`tables` should be an Iterable. Received int"),
        (lambda: EmbeddingCollection(None), "`tables` should be an Iterable. Received None"),
        (
            lambda: EmbeddingBagCollection(BAGS, device="gpu"),
            "`device` should be a torch.device or",
        ),
        (lambda: EmbeddingBagCollection(BAGS, device=1.5), "`device` should be a torch.device or"),
        (lambda: get_embedding_names_by_table(["t"]), "`tables` should be a list of BaseEmbedding"),
        (
            lambda: reorder_inverse_indices(["a"], ["a"]),
            "`inverse_indices` should be a tuple of keys",
        ),
        (
            lambda: reorder_inverse_indices((["a"], T([[0]])), None),
            "`feature_names` should be a list",
        ),
        (
            lambda: process_pooled_embeddings([ROW], T([[0.5]])),
            "`inverse_indices` should be integers",
        ),
        (
            lambda: process_pooled_embeddings(ROW, T([[0]])),
            "`pooled_embeddings` should be a list of",
        ),
        (
            lambda: ebc().set_out_of_range_counts(None),
            "`counts` should be a Mapping. Received None",
        ),
        (
            lambda: ebc().set_out_of_range_counts({"t": None}),
            "`counts` of table 't' should be an in",
        ),
        (
            lambda: FusedEmbeddingBagCollection(BAGS, torch.optim.SGD, [0.1]),
            "`optimizer_kwargs` should be a dict. Received list",
        ),
        (
            lambda: convert_optimizer_type_and_kwargs(torch.optim.SGD, None),
            "`optimizer_kwargs` should be a dict. Received None",
        ),
        (
            lambda: fuse_embedding_optimizer(None, torch.optim.SGD, {"lr": 0.1}, "cpu"),
            "`model` should be a Module. Received None",
        ),
        (
            lambda: fuse_embedding_optimizer(ebc(), torch.optim.SGD, {"lr": 0.1}, "gpu"),
            "`device` should be a torch.device or its name",
        ),
        (
            lambda: ManagedCollisionCollection(None, BAGS),
            "`managed_collision_modules` should be a Map",
        ),
        (
            lambda: ManagedCollisionCollection({}, [None]),
            "`embedding_configs` should be a list of Ba",
        ),
        (lambda: evict(None, ebc()), "`evictions` should be a dict. Received None"),
        (lambda: PositionWeightedModuleCollection(5), "`max_feature_lengths` should be a Mapping"),
        (lambda: PositionWeightedModule(2, "gpu"), "`device` should be a torch.device or its name"),
        (
            lambda: FeatureProcessedEmbeddingBagCollection(nn.Linear(1, 1), {}),
            "`embedding_bag_collection` should be an EmbeddingBagCollectionInterface",
        ),
        (
            lambda: FeatureProcessedEmbeddingBagCollection(
                EmbeddingBagCollection(BAGS, is_weighted=True), None
            ),
            "`feature_processors` should be a dict of them by feature",
        ),
        (
            lambda: offsets_to_range_traceble(T([0, 2]), T([1])),
            "`offsets` should end at the number",
        ),
        (
            lambda: offsets_to_range_traceble(T([0.5]), T([1])),
            "`offsets` should be of dtype int32 or",
        ),
        (lambda: position_weighted_module_update_features(None, {}), "`features` should be a dict"),
        (
            lambda: feature_processor.PositionWeightedModule({"a": 2})(T([1])),
            "`features` should be a dict of JaggedTensors by feature. Received Tensor",
        ),
        (
            lambda: MCHManagedCollisionModule(10, "gpu", LFU_EvictionPolicy(), 1),
            "`device` should be a torch.device or its name",
        ),
        (lambda: get_weights_list(T([0]), None, {}), "`features` should be a KeyedJaggedTensor"),
    ],
)
def test_messages(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


@pytest.mark.parametrize(
    "new_map",
    [
        lambda: HashZchManagedCollisionModule(4, "cpu", 1, name="t"),
        lambda: MCHManagedCollisionModule(4, "cpu", LFU_EvictionPolicy(), 1, name="t"),
    ],
    ids=["hashing", "counting"],
)
def test_features_of_maps(new_map):
    with pytest.raises(TypeError, match=r"feature 'ids' of table 't' should be a Tensor.*list"):
        new_map().rows_of([1])
    with pytest.raises(TypeError, match=r"`features` of map 't' should be a Mapping.*KeyedJagged"):
        new_map()(KeyedJaggedTensor.from_lists({"f": [[1]]}))
    with pytest.raises(TypeError, match=r"Feature 'f' among .* map 't' should be a JaggedTensor"):
        new_map()({"f": T([1])})


def test_numbers_of_maps():
    module = HashZchManagedCollisionModule(4, "cpu", 1, name="t", write_runtime_meta_dim=1)
    with pytest.raises(TypeError, match=r"`weights` of map 't' should be a Tensor. Received list"):
        module.update_runtime_meta(T([1]), T([0]), [1])
