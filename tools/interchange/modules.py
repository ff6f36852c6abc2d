"""The modules whose states are exchanged."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import torch
from case import (
    CASES,
    Case,
    bag_tables,
    bags,
    case,
    dense,
    features,
    leave,
    of_module,
    tables,
    tensors,
)
from torch import Tensor, nn


@case
def embedding_bag_collection() -> Case:
    return of_module(bags, features())


@case
def embedding_bag_collection_weighted() -> Case:
    return of_module(lambda: bags(is_weighted=True, pooling="SUM"), features(weighted=True))


@case
def embedding_bag_collection_fp16() -> Case:
    from torchrec.types import DataType

    def call(module: Any) -> list[Tensor]:
        return [t.half() for t in tensors(module(features()))]  # there, they were rounded so before

    return Case(lambda: bags(data_type=DataType.FP16), leave, call)


@case
def embedding_collection() -> Case:
    from torchrec import EmbeddingCollection

    return of_module(lambda: EmbeddingCollection(tables=tables()), features())


@case
def feature_processed_bags() -> Case:
    from torchrec.modules.feature_processor_ import PositionWeightedModule
    from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection

    def build() -> nn.Module:
        processors = {key: PositionWeightedModule(max_feature_length=5) for key in ("f", "g")}
        return FeatureProcessedEmbeddingBagCollection(
            bags(is_weighted=True, pooling="SUM"), processors
        )

    return of_module(build, features(weighted=True))


@case
def feature_processed_bags_collection() -> Case:
    from torchrec.modules.feature_processor_ import PositionWeightedModuleCollection
    from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection

    def build() -> nn.Module:
        processors = PositionWeightedModuleCollection({"f": 5, "g": 4})
        return FeatureProcessedEmbeddingBagCollection(
            bags(is_weighted=True, pooling="SUM"), processors
        )

    return of_module(build, features(weighted=True))


@case
def position_weighted_module() -> Case:
    from torchrec.modules.feature_processor import PositionWeightedModule

    return of_module(lambda: PositionWeightedModule({"f": 5, "g": 4}), features().to_dict())


@case
def position_weighted_processor() -> Case:
    from torchrec.modules.feature_processor import PositionWeightedProcessor

    return of_module(lambda: PositionWeightedProcessor({"f": 5, "g": 4}), features())


@case
def mlp() -> Case:
    from torchrec.modules.mlp import MLP

    return of_module(lambda: MLP(6, [5, 4]), dense())


@case
def mlp_swish() -> Case:
    from torchrec.modules.mlp import MLP

    return of_module(lambda: MLP(6, [5, 4], activation="swish_layernorm"), dense())


@case
def perceptron() -> Case:
    from torchrec.modules.mlp import Perceptron

    return of_module(lambda: Perceptron(6, 4), dense())


@case
def swish_layer_norm() -> Case:
    from torchrec.modules.activation import SwishLayerNorm

    return of_module(lambda: SwishLayerNorm(6), dense())


@case
def cross_net() -> Case:
    from torchrec.modules.crossnet import CrossNet

    return of_module(lambda: CrossNet(6, 3), dense())


@case
def low_rank_cross_net() -> Case:
    from torchrec.modules.crossnet import LowRankCrossNet

    return of_module(lambda: LowRankCrossNet(6, 3, 2), dense())


@case
def vector_cross_net() -> Case:
    from torchrec.modules.crossnet import VectorCrossNet

    return of_module(lambda: VectorCrossNet(6, 3), dense())


@case
def low_rank_mixture_cross_net() -> Case:
    from torchrec.modules.crossnet import LowRankMixtureCrossNet

    return of_module(lambda: LowRankMixtureCrossNet(6, 3, 4, 2), dense())


@case
def deep_fm() -> Case:
    from torchrec.modules.deepfm import DeepFM

    return of_module(lambda: DeepFM(nn.Linear(12, 4)), [dense(), dense() * 2])


@case
def factorization_machine() -> Case:
    from torchrec.modules.deepfm import FactorizationMachine

    return of_module(FactorizationMachine, [dense(), dense() * 2])


@case
def simple_deep_fm() -> Case:
    from torchrec.models.deepfm import SimpleDeepFMNN

    return of_module(lambda: SimpleDeepFMNN(6, bags(), 5, 3), dense(), features())


@case
def dlrm() -> Case:
    from torchrec.models.dlrm import DLRM

    return of_module(lambda: DLRM(bags(), 6, [5, 4], [6, 1]), dense(), features())


@case
def dlrm_dcn() -> Case:
    from torchrec.models.dlrm import DLRM_DCN

    return of_module(lambda: DLRM_DCN(bags(), 6, [5, 4], [6, 1], 2, 3), dense(), features())


@case
def dlrm_projection() -> Case:
    from torchrec.models.dlrm import DLRM_Projection

    return of_module(
        lambda: DLRM_Projection(bags(), 6, [5, 4], [6, 1], [8, 4], [8, 4]), dense(), features()
    )


@case
def dlrm_transformer() -> Case:
    from torchrec.models.experimental.transformerdlrm import DLRM_Transformer

    def build() -> nn.Module:
        # Attention runs along the batch there, and here where one asks for it.
        ours = "across_batch" in inspect.signature(DLRM_Transformer.__init__).parameters
        model = DLRM_Transformer(
            bags(),
            6,
            [5, 4],
            [6, 1],
            nhead=2,
            ntransformer_layers=2,
            **({"across_batch": True} if ours else {}),
        )
        return model.eval()

    return of_module(build, dense(), features())


@case
def embedding_tower() -> Case:
    from torchrec.modules.embedding_tower import EmbeddingTower, EmbeddingTowerCollection

    class Interaction(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 2)

        def forward(self, found: Any) -> Tensor:
            return self.linear(found.values())

    def build() -> nn.Module:
        return EmbeddingTowerCollection([EmbeddingTower(bags(), Interaction())])

    return of_module(build, features())


@case
def tensor_pool() -> Case:
    from torchrec.modules.tensor_pool import TensorPool

    def fill(pool: Any) -> None:
        pool.update(torch.tensor([3, 0]), dense(2, 4))

    ids = torch.tensor([0, 1, 3])
    return Case(
        lambda: TensorPool(5, 4, torch.float32, torch.device("cpu")),
        fill,
        lambda pool: tensors(pool.lookup(ids)),
    )


@case
def keyed_jagged_tensor_pool() -> Case:
    from torchrec.modules.keyed_jagged_tensor_pool import KeyedJaggedTensorPool

    def fill(pool: Any) -> None:
        pool.update(torch.tensor([3, 0, 1]), features())

    ids = torch.tensor([0, 2, 3])
    return Case(
        lambda: KeyedJaggedTensorPool(5, {"f": 3, "g": 3}, device=torch.device("cpu")),
        fill,
        lambda pool: tensors(pool.lookup(ids)),
    )


def _raw_ids(step: int) -> Any:
    from torchrec import KeyedJaggedTensor

    values = (torch.arange(8) * 1_000_003 * (1 + step % 2) + step // 2) % 2**40
    return KeyedJaggedTensor(["f"], values, lengths=torch.tensor([3, 0, 5]))


def _managed(policy: str, sequences: bool, fused: bool = False, **more: Any) -> Case:
    from torchrec import EmbeddingBagCollection, EmbeddingCollection
    from torchrec.modules import mc_embedding_modules, mc_modules

    config = (tables() if sequences else bag_tables())[:1]

    def build() -> Any:
        module = mc_modules.MCHManagedCollisionModule(
            20, torch.device("cpu"), getattr(mc_modules, policy)(), 2, 2**40, **more
        )
        maps = mc_modules.ManagedCollisionCollection({"t": module}, config)
        if sequences:
            return mc_embedding_modules.ManagedCollisionEmbeddingCollection(
                EmbeddingCollection(tables=config), maps, return_remapped_features=True
            )
        return mc_embedding_modules.ManagedCollisionEmbeddingBagCollection(
            EmbeddingBagCollection(tables=config), maps, return_remapped_features=True
        )

    def prepare(module: Any) -> None:
        for step in range(4):
            module(_raw_ids(step))

    def call(module: Any) -> list[Tensor]:
        # Which free row a new id takes is left open: what is known is looked up.
        module.eval()
        return tensors(module(_raw_ids(1))) + tensors(module(_raw_ids(2)))

    return Case(build, prepare, call)


for _policy in ("LFU_EvictionPolicy", "LRU_EvictionPolicy", "DistanceLFU_EvictionPolicy"):
    for _sequences in (False, True):
        CASES[f"managed_{'sequences' if _sequences else 'bags'}_{_policy}"] = (
            lambda p=_policy, s=_sequences: _managed(p, s)
        )


@case
def hash_managed_bags() -> Case:
    from torchrec import EmbeddingBagCollection
    from torchrec.modules import hash_mc_modules, mc_embedding_modules, mc_modules

    config = bag_tables()[:1]

    def build() -> Any:
        module = hash_mc_modules.HashZchManagedCollisionModule(
            20, torch.device("cpu"), 2, max_probe=10
        )
        maps = mc_modules.ManagedCollisionCollection({"t": module}, config)
        return mc_embedding_modules.ManagedCollisionEmbeddingBagCollection(
            EmbeddingBagCollection(tables=config), maps, return_remapped_features=True
        ).eval()

    def prepare(module: Any) -> None:
        module.train()
        with contextlib.suppress(RuntimeError):  # on a CPU the original only reads such maps
            module(_raw_ids(0))
        module.eval()

    return Case(build, prepare, lambda module: tensors([module(_raw_ids(0)), module(_raw_ids(1))]))
