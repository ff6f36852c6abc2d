"""DeepFM: linear terms, products of pairs, and a network."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from torchrec.datasets.initial_weights import Normal
from torchrec.models.deepfm import DeepFactorizationMachine
from torchrec.models.registry._registry import ModelInputs, ModelSection, RegisteredModel
from torchrec.models.registry._tower import DenseOnly, TowerOptions


class DeepFMSection(TowerOptions, ModelSection):
    """Linear terms, products of pairs and a network, added up: https://arxiv.org/abs/1703.04247."""

    name: Literal["deepfm"] = Field(default="deepfm", description="the model")
    linear: bool = Field(
        default=False,
        description="give ids weights of their own for the linear terms, which are read off their "
        "vectors otherwise",
    )


def build(section: DeepFMSection, inputs: ModelInputs) -> nn.Module:
    """Return a `DeepFactorizationMachine`."""
    if inputs.pooled is None:
        return DenseOnly(section.tower(inputs.num_dense))
    return DeepFactorizationMachine(
        inputs.pooled,
        inputs.num_dense,
        section.layers,
        section.dropout,
        section.batch_norm,
        section.dense_layers,
        section.activation,
        section.embedding_dropout,
        inputs.linear_tables,
    )


MODEL = RegisteredModel(
    DeepFMSection,
    build,
    terms=lambda section: "both" if section.linear else "vectors",
    table_init=lambda dim: Normal(std=1e-4),
)
