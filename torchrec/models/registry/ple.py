"""PLE: experts of each task beside those that all tasks share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt
from torch import nn

from torchrec.datasets.initial_weights import Normal
from torchrec.models.multi_task import PLE
from torchrec.models.registry._multi_task import InteractionOptions, TowerLayers, with_tasks
from torchrec.models.registry._registry import ModelInputs, ModelSection, RegisteredModel
from torchrec.models.registry._tower import TowerOptions


class PLESection(InteractionOptions, TowerOptions, ModelSection):
    """Experts of all tasks and of each alone, in levels: https://doi.org/10.1145/3383313.3412236."""

    name: Literal["ple"] = Field(default="ple", description="the model")
    layers: list[PositiveInt] = Field(
        default=[128], min_length=1, description="widths of the layers of each expert"
    )
    tower_layers: TowerLayers = Field(default=[64])
    levels: PositiveInt = Field(default=1, description="levels of experts; of one it is CGC")
    shared_experts: PositiveInt = Field(
        default=2, description="experts of all tasks in every level"
    )
    task_experts: PositiveInt = Field(
        default=2, description="experts of each task alone in every level"
    )


def build(section: PLESection, inputs: ModelInputs) -> nn.Module:
    """Return a model with `PLE` over its interaction."""
    return with_tasks(
        inputs,
        lambda width: PLE(
            width,
            inputs.outputs,
            section.levels,
            section.shared_experts,
            section.task_experts,
            section.layers,
            section.tower_layers,
            section.layer_options,
        ),
        section,
        section,
    )


MODEL = RegisteredModel(PLESection, build, table_init=lambda dim: Normal(std=1e-4), tasks="several")
