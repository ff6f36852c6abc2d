"""A small instance of every module that takes sparse types, and inputs for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tests.fx.dense_samples import Sample
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    JaggedTensor,
    KeyedJaggedTensor,
    KeyedTensor,
)
from torchrec.datasets.utils import Batch
from torchrec.models import deepfm, dlrm
from torchrec.models.ensemble import Ensemble
from torchrec.models.experimental.transformerdlrm import DLRM_Transformer
from torchrec.models.fm import FactorizationMachineModel
from torchrec.models.lr import LogisticRegression
from torchrec.modules import feature_processor, feature_processor_
from torchrec.modules.embedding_tower import EmbeddingTower, EmbeddingTowerCollection
from torchrec.modules.fp_embedding_modules import (
    FeatureProcessedEmbeddingBagCollection,
    FeatureProcessorDictWrapper,
)
from torchrec.modules.fused_embedding_modules import (
    FusedEmbeddingBagCollection,
    FusedEmbeddingCollection,
)
from torchrec.modules.hash_mc_evictions import (
    HashZchEvictionConfig,
    HashZchEvictionModule,
    HashZchEvictionPolicyName,
    HashZchOptEvictionModule,
    HashZchThresholdEvictionModule,
)
from torchrec.modules.hash_mc_modules import HashZchManagedCollisionModule, TrainInputMapper
from torchrec.modules.itep_embedding_modules import (
    ITEPEmbeddingBagCollection,
    ITEPEmbeddingCollection,
)
from torchrec.modules.itep_modules import GenericITEPModule, RowwiseShardedITEPModule
from torchrec.modules.keyed_jagged_tensor_pool import KeyedJaggedTensorPool
from torchrec.modules.mc_adapter import (
    McEmbeddingBagCollectionAdapter,
    McEmbeddingCollectionAdapter,
)
from torchrec.modules.mc_embedding_modules import (
    BaseManagedCollisionEmbeddingCollection,
    ManagedCollisionEmbeddingBagCollection,
    ManagedCollisionEmbeddingCollection,
)
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)
from torchrec.modules.object_pool_lookups import (
    TensorJaggedIndexSelectLookup,
    TensorLookup,
)
from torchrec.modules.regroup import KTRegroupAsDict, PermuteMultiEmbedding
from torchrec.modules.tensor_pool import TensorPool
from torchrec.quant.convert import quantize_embeddings
from torchrec.sparse.jagged_tensor import ComputeJTDictToKJT, ComputeKJTToJTDict

D, DENSE, ROWS, LONGEST = 4, 7, 50, 3
KEYS = ["f1", "f2", "f3"]


def bag_tables(**options: Any) -> list[EmbeddingBagConfig]:
    """Two tables, one with two features; the second is left plain where the first is fused."""
    first = EmbeddingBagConfig(ROWS, D, "t1", feature_names=["f1", "f3"], **options)
    return [first, EmbeddingBagConfig(ROWS, D, "t2", feature_names=["f2"])]


WEIGHTS = ["t1_linear", "t2_linear"]


def weight_tables() -> list[EmbeddingBagConfig]:
    """Tables of dimension 1, of the same features."""
    return [
        EmbeddingBagConfig(ROWS, 1, name, feature_names=features)
        for name, features in zip(WEIGHTS, (["f1", "f3"], ["f2"]), strict=True)
    ]


def sequence_tables(**options: Any) -> list[EmbeddingConfig]:
    first = EmbeddingConfig(ROWS, D, "t1", feature_names=["f1", "f3"], **options)
    return [first, EmbeddingConfig(ROWS, D, "t2", feature_names=["f2"])]


def bags(is_weighted: bool = False, **options: Any) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(tables=bag_tables(**options), is_weighted=is_weighted)


def bags_of_weights() -> EmbeddingBagCollection:
    return EmbeddingBagCollection(tables=weight_tables())


def bags_with_weights(**options: Any) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(tables=[*bag_tables(**options), *weight_tables()])


def sequences(**options: Any) -> EmbeddingCollection:
    return EmbeddingCollection(tables=sequence_tables(**options))


def quantized(module: nn.Module) -> nn.Module:
    return quantize_embeddings(module, torch.qint8, inplace=False)


FUSED = {"optimizer": "rowwise_adagrad", "lr": 0.1}


def ids(batch: int, weighted: bool = False) -> KeyedJaggedTensor:
    lengths = torch.randint(0, LONGEST + 1, (len(KEYS) * batch,))
    values = torch.randint(0, ROWS, (int(lengths.sum()),))
    weights = torch.rand(values.numel()) if weighted else None
    return KeyedJaggedTensor(KEYS, values, weights, lengths=lengths)


def features(batch: int) -> tuple[Any, ...]:
    return (ids(batch),)


def weighted_features(batch: int) -> tuple[Any, ...]:
    return (ids(batch, weighted=True),)


def with_dense(batch: int) -> tuple[Any, ...]:
    return torch.randn(batch, DENSE), ids(batch)


def a_batch(weighted: bool) -> Callable[[int], tuple[Any, ...]]:
    def draw(batch: int) -> tuple[Any, ...]:
        labels = torch.randint(0, 2, (batch,)).float()
        weights = torch.rand(batch) if weighted else None
        return (Batch(*with_dense(batch), labels, weights=weights),)

    return draw


class ModelInput(NamedTuple):
    float_features: Tensor
    idlist_features: KeyedJaggedTensor
    label: Tensor


def model_input(batch: int) -> tuple[Any, ...]:
    dense, sparse = with_dense(batch)
    labels = torch.randint(0, 2, (batch,)).float()
    return (ModelInput(dense, sparse, labels),)


def one_feature(batch: int) -> JaggedTensor:
    return ids(batch)["f1"]


def by_key(batch: int) -> tuple[Any, ...]:
    return ({"f1": one_feature(batch), "f2": one_feature(batch)},)


def keyed(batch: int) -> KeyedTensor:
    return KeyedTensor(["f1", "f2"], [2, 3], torch.randn(batch, 5))


def two_keyed(batch: int) -> tuple[Any, ...]:
    return ([keyed(batch), KeyedTensor(["f3"], [1], torch.randn(batch, 1))],)


def map_of_ids() -> MCHManagedCollisionModule:
    policy = DistanceLFU_EvictionPolicy()
    return MCHManagedCollisionModule(ROWS, torch.device("cpu"), policy, eviction_interval=2)


def hash_map(**options: Any) -> HashZchManagedCollisionModule:
    return HashZchManagedCollisionModule(ROWS, torch.device("cpu"), 1, **options)


def lifetimes() -> HashZchEvictionConfig:
    return HashZchEvictionConfig([], single_ttl=3)


def input_mapper() -> TrainInputMapper:
    return TrainInputMapper(0, 2, torch.tensor([8, 5]), torch.tensor([0, 8]))


def maps(tables: list[Any]) -> ManagedCollisionCollection:
    return ManagedCollisionCollection({t.name: map_of_ids() for t in tables}, tables)


def permute() -> PermuteMultiEmbedding:
    module = PermuteMultiEmbedding([["c", "b"], ["a"]])
    module.init_tensors(
        torch.tensor([[1, 0, 0, 0, 1, 0], [0, 0, 1, 1, 2, 0], [0, 1, 0, 0, 1, 0]]),
        torch.tensor([3, 1]),
        torch.tensor([3, 1]),
        [3, 1],
    )
    return module


def tensor_pool() -> TensorPool:
    pool = TensorPool(ROWS, D, torch.float32)
    pool.update(torch.arange(ROWS), torch.randn(ROWS, D))
    return pool


def sample_pool() -> KeyedJaggedTensorPool:
    pool = KeyedJaggedTensorPool(ROWS, dict.fromkeys(KEYS, LONGEST))
    pool.update(torch.arange(ROWS), ids(ROWS))
    return pool


def tensor_lookup() -> TensorLookup:
    lookup = TensorLookup(ROWS, D, torch.float32, torch.device("cpu"))
    lookup.set_state(torch.randn(ROWS, D))
    return lookup


def sample_lookup() -> TensorJaggedIndexSelectLookup:
    lookup = TensorJaggedIndexSelectLookup(
        ROWS, torch.int64, dict.fromkeys(KEYS, LONGEST), False, torch.device("cpu")
    )
    bags = ids(ROWS)
    lookup.update(torch.arange(ROWS), JaggedTensor(bags.values(), lengths=bags.lengths()))
    return lookup


def unpruned(cls: type[GenericITEPModule] = GenericITEPModule) -> GenericITEPModule:
    return cls({"t1": ROWS, "t2": ROWS}, enable_pruning=False)


class Values(nn.Module):
    def forward(self, pooled: KeyedTensor) -> Tensor:
        return pooled.values()


def tower(**options: Any) -> EmbeddingTower:
    return EmbeddingTower(bags(**options), nn.Sequential(Values(), nn.Linear(3 * D, 2)))


def positions() -> feature_processor_.PositionWeightedModuleCollection:
    return feature_processor_.PositionWeightedModuleCollection(dict.fromkeys(KEYS, LONGEST))


SPARSE = {
    "ComputeKJTToJTDict": Sample(ComputeKJTToJTDict, features),
    "ComputeJTDictToKJT": Sample(ComputeJTDictToKJT, by_key),
    "EmbeddingBagCollection": Sample(bags, features),
    "EmbeddingBagCollection, fused and plain": Sample(lambda: bags(**FUSED), features),
    "EmbeddingBagCollection, weighted": Sample(lambda: bags(True), weighted_features),
    "EmbeddingCollection": Sample(sequences, features),
    "EmbeddingCollection, fused and plain": Sample(lambda: sequences(**FUSED), features),
    "FusedEmbeddingBagCollection": Sample(
        lambda: FusedEmbeddingBagCollection(bag_tables(), torch.optim.Adam, {"lr": 0.1}), features
    ),
    "FusedEmbeddingCollection": Sample(
        lambda: FusedEmbeddingCollection(sequence_tables(), torch.optim.SGD, {"lr": 0.1}), features
    ),
    "ManagedCollisionModule": Sample(map_of_ids, by_key),
    "HashZchManagedCollisionModule": Sample(
        lambda: hash_map(
            eviction_policy_name=HashZchEvictionPolicyName.SINGLE_TTL_EVICTION,
            eviction_config=lifetimes(),
        ),
        by_key,
    ),
    "TrainInputMapper": Sample(
        input_mapper, lambda batch: (torch.randint(-99, 99, (batch,)), torch.tensor([8]))
    ),
    "HashZchOptEvictionModule": Sample(
        lambda: HashZchOptEvictionModule(HashZchEvictionPolicyName.LRU_EVICTION),
        lambda batch: (one_feature(batch), "cpu"),
    ),
    "ManagedCollisionCollection": Sample(lambda: maps(bag_tables()), features),
    "BaseManagedCollisionEmbeddingCollection": Sample(
        lambda: BaseManagedCollisionEmbeddingCollection(bags(), maps(bag_tables()), True), features
    ),
    "ManagedCollisionEmbeddingBagCollection": Sample(
        lambda: ManagedCollisionEmbeddingBagCollection(bags(**FUSED), maps(bag_tables())), features
    ),
    "ManagedCollisionEmbeddingCollection": Sample(
        lambda: ManagedCollisionEmbeddingCollection(
            sequences(**FUSED), maps(sequence_tables()), return_remapped_features=True
        ),
        features,
    ),
    "McEmbeddingCollectionAdapter": Sample(
        lambda: McEmbeddingCollectionAdapter(sequence_tables(), 1000, "cpu", 1), features
    ),
    "McEmbeddingBagCollectionAdapter": Sample(
        lambda: McEmbeddingBagCollectionAdapter(bag_tables(), 1000, "cpu", 1), features
    ),
    "feature_processor.PositionWeightedModule": Sample(
        lambda: feature_processor.PositionWeightedModule({"f1": LONGEST}), by_key
    ),
    "PositionWeightedProcessor": Sample(
        lambda: feature_processor.PositionWeightedProcessor({"f1": LONGEST, "f3": LONGEST}),
        features,
    ),
    "feature_processor_.PositionWeightedModule": Sample(
        lambda: feature_processor_.PositionWeightedModule(LONGEST), lambda b: (one_feature(b),)
    ),
    "PositionWeightedModuleCollection": Sample(positions, features),
    "FeatureProcessorDictWrapper": Sample(
        lambda: FeatureProcessorDictWrapper(
            nn.ModuleDict({"f1": feature_processor_.PositionWeightedModule(LONGEST)})
        ),
        features,
    ),
    "FeatureProcessedEmbeddingBagCollection": Sample(
        lambda: FeatureProcessedEmbeddingBagCollection(bags(True), positions()), features
    ),
    "FeatureProcessedEmbeddingBagCollection, by feature": Sample(
        lambda: FeatureProcessedEmbeddingBagCollection(
            bags(True, **FUSED),
            {key: feature_processor_.PositionWeightedModule(LONGEST) for key in KEYS},
        ),
        features,
    ),
    "quant.EmbeddingBagCollection": Sample(lambda: quantized(bags()), features),
    "quant.EmbeddingBagCollection, weighted": Sample(
        lambda: quantized(bags(True)), weighted_features
    ),
    "quant.EmbeddingCollection": Sample(lambda: quantized(sequences()), features),
    "quant.FeatureProcessedEmbeddingBagCollection": Sample(
        lambda: quantized(FeatureProcessedEmbeddingBagCollection(bags(True), positions())), features
    ),
    "QuantManagedCollisionEmbeddingBagCollection": Sample(
        lambda: quantized(ManagedCollisionEmbeddingBagCollection(bags(), maps(bag_tables()))),
        features,
    ),
    "QuantManagedCollisionEmbeddingCollection": Sample(
        lambda: quantized(
            ManagedCollisionEmbeddingCollection(sequences(), maps(sequence_tables()))
        ),
        features,
    ),
    "EmbeddingTower": Sample(tower, features),
    "EmbeddingTowerCollection": Sample(
        lambda: EmbeddingTowerCollection([tower(), tower(is_weighted=True, **FUSED)]),
        lambda b: (ids(b), ids(b, weighted=True)),
    ),
    "PermuteMultiEmbedding": Sample(permute, lambda b: ([torch.randn(b, 3), torch.randn(b, 1)],)),
    "KTRegroupAsDict": Sample(
        lambda: KTRegroupAsDict([["f3", "f1"], ["f2"]], ["first", "second"]), two_keyed
    ),
    "TensorPool": Sample(tensor_pool, lambda b: (torch.randint(0, ROWS, (b,)),)),
    "KeyedJaggedTensorPool": Sample(sample_pool, lambda b: (torch.randint(0, ROWS, (b,)),)),
    "TensorLookup": Sample(tensor_lookup, lambda b: (torch.randint(0, ROWS, (b,)),)),
    "TensorJaggedIndexSelectLookup": Sample(
        sample_lookup, lambda b: (torch.randint(0, ROWS, (b,)),)
    ),
    "GenericITEPModule": Sample(lambda: unpruned(), lambda b: (ids(b), 1)),
    "RowwiseShardedITEPModule": Sample(
        lambda: unpruned(RowwiseShardedITEPModule), lambda b: (ids(b), 1)
    ),
    "ITEPEmbeddingBagCollection": Sample(
        lambda: ITEPEmbeddingBagCollection(bags(**FUSED), unpruned()), features
    ),
    "ITEPEmbeddingCollection": Sample(
        lambda: ITEPEmbeddingCollection(sequences(**FUSED), unpruned()), features
    ),
    "dlrm.SparseArch": Sample(lambda: dlrm.SparseArch(bags()), features),
    "deepfm.SparseArch": Sample(lambda: deepfm.SparseArch(bags()), features),
    "FMInteractionArch": Sample(
        lambda: deepfm.FMInteractionArch(9, ["f2", "f1"], 3),
        lambda b: (torch.randn(b, 4), keyed(b)),
    ),
    "SimpleDeepFMNN": Sample(lambda: deepfm.SimpleDeepFMNN(DENSE, bags(), 6, 5), with_dense),
    "SimpleDeepFMNNWrapper": Sample(
        lambda: deepfm.SimpleDeepFMNNWrapper(DENSE, bags(), 6, 5), model_input
    ),
    "DeepFactorizationMachine": Sample(
        lambda: deepfm.DeepFactorizationMachine(bags(), DENSE, [3], batch_norm=True), with_dense
    ),
    "DeepFactorizationMachine, weights of ids": Sample(
        lambda: deepfm.DeepFactorizationMachine(
            bags_with_weights(**FUSED), DENSE, [3], activation="prelu", linear_tables=WEIGHTS
        ),
        with_dense,
    ),
    "Ensemble": Sample(
        lambda: Ensemble([LogisticRegression(bags_of_weights(), DENSE) for _ in range(2)]),
        with_dense,
    ),
    "LogisticRegression": Sample(lambda: LogisticRegression(bags_of_weights(), DENSE), with_dense),
    "FactorizationMachineModel": Sample(
        lambda: FactorizationMachineModel(bags_with_weights(), WEIGHTS, DENSE), with_dense
    ),
    "DLRM": Sample(lambda: dlrm.DLRM(bags(**FUSED), DENSE, [6, D], [5, 1]), with_dense),
    "DLRM, no dense features": Sample(
        lambda: dlrm.DLRM(bags(), 0, [D], [5, 1]), lambda b: (torch.randn(b, 0), ids(b))
    ),
    "DLRM, ids without bounds": Sample(
        lambda: dlrm.DLRM(
            ManagedCollisionEmbeddingBagCollection(bags(**FUSED), maps(bag_tables())),
            DENSE,
            [6, D],
            [5, 1],
        ),
        with_dense,
    ),
    "DLRMWrapper": Sample(lambda: dlrm.DLRMWrapper(bags(), DENSE, [6, D], [5, 1]), model_input),
    "DLRM_DCN": Sample(lambda: dlrm.DLRM_DCN(bags(), DENSE, [6, D], [5, 1], 2, 3), with_dense),
    "DLRM_Projection": Sample(
        lambda: dlrm.DLRM_Projection(bags(), DENSE, [6, D], [5, 1], [8, 2 * D], [3 * D]),
        with_dense,
    ),
    "DLRM_Transformer": Sample(
        lambda: DLRM_Transformer(bags(), DENSE, [6, D], [5, 1], nhead=2, ntransformer_layers=1),
        with_dense,
    ),
    "DLRMTrain": Sample(
        lambda: dlrm.DLRMTrain(dlrm.DLRM(bags(**FUSED), DENSE, [6, D], [5, 1])), a_batch(False)
    ),
    "DLRMTrain, weighted": Sample(
        lambda: dlrm.DLRMTrain(dlrm.DLRM(bags(**FUSED), DENSE, [6, D], [5, 1])), a_batch(True)
    ),
}

# What asks for the time, which no graph may keep.
CLOCKS = {
    "HashZchThresholdEvictionModule": Sample(
        lambda: HashZchThresholdEvictionModule(HashZchEvictionPolicyName.LRU_EVICTION, lifetimes()),
        lambda batch: (one_feature(batch), "cpu"),
    ),
    "HashZchEvictionModule": Sample(
        lambda: HashZchEvictionModule(
            HashZchEvictionPolicyName.SINGLE_TTL_EVICTION, torch.device("cpu"), lifetimes()
        ),
        lambda batch: (one_feature(batch),),
    ),
}
