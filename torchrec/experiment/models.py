"""The models that an experiment can name: a function each, from sizes and tables to a module.

A module takes dense features ``(B, number of dense features)`` and sparse features, a
``KeyedJaggedTensor``, and gives logits ``(B, 1)``. To add one, write a function like those below,
enter it in `MODELS`, and add its name to `torchrec.experiment.schema.ModelName`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from torch import Tensor, nn

from torchrec.experiment.schema import ModelSection
from torchrec.models.deepfm import DeepFactorizationMachine
from torchrec.models.dlrm import DLRM, DLRM_DCN, OverArch
from torchrec.models.tower import Tower
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

__all__ = ["MODELS", "Builder", "DenseOnly"]

Builder: TypeAlias = Callable[[ModelSection, EmbeddingBagCollection, int], nn.Module]
"""Makes a model of its section, the tables and the number of dense features."""


def dlrm(section: ModelSection, collection: EmbeddingBagCollection, num_dense: int) -> nn.Module:
    """Return a `DLRM` whose network over the interaction is a `Tower`."""
    model = DLRM(collection, num_dense, _dense_layers(section, collection), [1])
    return _with_tower(model, section)


def dlrm_dcn(
    section: ModelSection, collection: EmbeddingBagCollection, num_dense: int
) -> nn.Module:
    """Return a `DLRM_DCN` whose network over the interaction is a `Tower`."""
    layers = _dense_layers(section, collection)
    model = DLRM_DCN(collection, num_dense, layers, [1], section.cross_layers, section.cross_rank)
    return _with_tower(model, section)


def deepfm(section: ModelSection, collection: EmbeddingBagCollection, num_dense: int) -> nn.Module:
    """Return a `DeepFactorizationMachine`."""
    return DeepFactorizationMachine(
        collection,
        num_dense,
        section.layers,
        section.dropout,
        section.batch_norm,
        section.dense_layers,
    )


MODELS: Mapping[str, Builder] = {"dlrm": dlrm, "dlrm_dcn": dlrm_dcn, "deepfm": deepfm}


class DenseOnly(nn.Module):
    """A `Tower` over dense features: what every model comes to where there is nothing to look up.

    Args:
        section: sizes of the tower.
        num_dense: number of dense features.
    """

    def __init__(self, section: ModelSection, num_dense: int) -> None:
        super().__init__()
        self.tower = Tower(num_dense, section.layers, section.dropout, section.batch_norm)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """Predict from ``dense_features`` ``(B, num_dense)``; ``sparse_features`` are not read."""
        logits: Tensor = self.tower(dense_features)
        return logits


def _dense_layers(section: ModelSection, collection: EmbeddingBagCollection) -> list[int]:
    """Return the sizes of the network over the dense features, which ends as wide as a table."""
    return [*section.dense_layers, collection.embedding_bag_configs()[0].embedding_dim]


def _with_tower(model: DLRM, section: ModelSection) -> DLRM:
    assert isinstance(model.over_arch, OverArch)
    width = model.over_arch.in_features
    model.over_arch = Tower(width, section.layers, section.dropout, section.batch_norm)
    return model
