"""DLRM_DCN: a cross network over all vectors."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt
from torch import nn

from torchrec.datasets.initial_weights import Normal
from torchrec.models._pooled import embedding_dim
from torchrec.models.dlrm import DLRM_DCN
from torchrec.models.registry._dlrm import with_options
from torchrec.models.registry._registry import ModelInputs, ModelSection, RegisteredModel
from torchrec.models.registry._tower import DenseOnly, TowerOptions


class DLRMDCNSection(TowerOptions, ModelSection):
    """A cross network over all vectors, and layers over it: https://arxiv.org/abs/2008.13535."""

    name: Literal["dlrm_dcn"] = Field(default="dlrm_dcn", description="the model")
    cross_layers: NonNegativeInt = Field(default=3, description="cross layers")
    cross_rank: PositiveInt = Field(default=64, description="rank of the cross layers")


def build(section: DLRMDCNSection, inputs: ModelInputs) -> nn.Module:
    """Return a `DLRM_DCN` whose network over the interaction is a `Tower`."""
    if inputs.pooled is None:
        return DenseOnly(section.tower(inputs.num_dense))
    layers = [*section.dense_layers, embedding_dim(inputs.pooled)]
    cross = section.cross_layers, section.cross_rank
    model = DLRM_DCN(inputs.pooled, inputs.num_dense, layers, [1], *cross)
    return with_options(model, section, inputs)


MODEL = RegisteredModel(DLRMDCNSection, build, table_init=lambda dim: Normal(std=1e-4))
