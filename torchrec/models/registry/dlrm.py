"""DLRM: dot products of all pairs of vectors."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from torchrec.datasets.initial_weights import Normal
from torchrec.models._pooled import embedding_dim
from torchrec.models.dlrm import DLRM
from torchrec.models.registry._dlrm import with_options
from torchrec.models.registry._registry import ModelInputs, ModelSection, RegisteredModel
from torchrec.models.registry._tower import DenseOnly, TowerOptions


class DLRMSection(TowerOptions, ModelSection):
    """Dot products of all pairs of vectors, and layers over them: https://arxiv.org/abs/1906.00091."""

    name: Literal["dlrm"] = Field(default="dlrm", description="the model")
    vectors: bool = Field(
        default=True,
        description="give the layers the vectors themselves beside their products",
    )


def build(section: DLRMSection, inputs: ModelInputs) -> nn.Module:
    """Return a `DLRM` whose network over the interaction is a `Tower`."""
    if inputs.pooled is None:
        return DenseOnly(section.tower(inputs.num_dense))
    layers = [*section.dense_layers, embedding_dim(inputs.pooled)]
    model = DLRM(inputs.pooled, inputs.num_dense, layers, [1])
    return with_options(model, section, inputs, section.vectors)


MODEL = RegisteredModel(DLRMSection, build, table_init=lambda dim: Normal(std=1e-4))
