"""Layers that all tasks share, and a tower for each."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt
from torch import nn

from torchrec.datasets.initial_weights import Normal
from torchrec.models.multi_task import SharedBottom
from torchrec.models.registry._multi_task import InteractionOptions, TowerLayers, with_tasks
from torchrec.models.registry._registry import ModelInputs, ModelSection, RegisteredModel
from torchrec.models.registry._tower import TowerOptions


class SharedBottomSection(InteractionOptions, TowerOptions, ModelSection):
    """Layers that all tasks share, and a tower for each: https://doi.org/10.1023/A:1007379606734."""

    name: Literal["shared_bottom"] = Field(default="shared_bottom", description="the model")
    layers: list[PositiveInt] = Field(
        default=[128], min_length=1, description="widths of the layers that all tasks share"
    )
    tower_layers: TowerLayers = Field(default=[64])


def build(section: SharedBottomSection, inputs: ModelInputs) -> nn.Module:
    """Return a model with `SharedBottom` over its interaction."""
    return with_tasks(
        inputs,
        lambda width: SharedBottom(
            width,
            inputs.outputs,
            section.layers,
            section.tower_layers,
            section.layer_options,
        ),
        section,
        section,
    )


MODEL = RegisteredModel(
    SharedBottomSection, build, table_init=lambda dim: Normal(std=1e-4), tasks="several"
)
