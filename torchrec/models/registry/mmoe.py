"""MMoE: each task mixes the same experts in its own way."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt
from torch import nn

from torchrec.datasets.initial_weights import Normal
from torchrec.models.multi_task import MMoE
from torchrec.models.registry._multi_task import InteractionOptions, TowerLayers, with_tasks
from torchrec.models.registry._registry import ModelInputs, ModelSection, RegisteredModel
from torchrec.models.registry._tower import TowerOptions


class MMoESection(InteractionOptions, TowerOptions, ModelSection):
    """Experts, of which each task has its own mixture: https://doi.org/10.1145/3219819.3220007."""

    name: Literal["mmoe"] = Field(default="mmoe", description="the model")
    layers: list[PositiveInt] = Field(
        default=[128], min_length=1, description="widths of the layers of each expert"
    )
    tower_layers: TowerLayers = Field(default=[64])
    experts: PositiveInt = Field(default=4, description="experts")


def build(section: MMoESection, inputs: ModelInputs) -> nn.Module:
    """Return a model with `MMoE` over its interaction."""
    return with_tasks(
        inputs,
        lambda width: MMoE(
            width,
            inputs.outputs,
            section.experts,
            section.layers,
            section.tower_layers,
            section.layer_options,
        ),
        section,
        section,
    )


MODEL = RegisteredModel(
    MMoESection, build, table_init=lambda dim: Normal(std=1e-4), tasks="several"
)
