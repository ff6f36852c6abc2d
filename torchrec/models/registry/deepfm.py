"""DeepFM: linear terms, products of pairs, and a network."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from torchrec.models.deepfm import DeepFactorizationMachine
from torchrec.models.registry._registry import ModelInputs, ModelSection, RegisteredModel
from torchrec.models.registry._tower import DenseOnly, TowerOptions


class DeepFMSection(TowerOptions, ModelSection):
    """Linear terms, products of pairs and a network, added up: https://arxiv.org/abs/1703.04247."""

    name: Literal["deepfm"] = Field(default="deepfm", description="the model")


def build(section: DeepFMSection, inputs: ModelInputs) -> nn.Module:
    """Return a `DeepFactorizationMachine`."""
    if inputs.pooled is None:
        return DenseOnly(section, inputs.num_dense)
    return DeepFactorizationMachine(
        inputs.pooled,
        inputs.num_dense,
        section.layers,
        section.dropout,
        section.batch_norm,
        section.dense_layers,
        section.activation,
        section.embedding_dropout,
    )


MODEL = RegisteredModel(DeepFMSection, build)
