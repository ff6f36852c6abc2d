"""ESMM: tasks that follow one another, such as a click and a purchase after it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt
from torch import nn

from torchrec.datasets.initial_weights import Normal
from torchrec.models.multi_task import ESMM
from torchrec.models.registry._multi_task import InteractionOptions, with_tasks
from torchrec.models.registry._registry import ModelInputs, ModelSection, RegisteredModel
from torchrec.models.registry._tower import TowerOptions


class ESMMSection(InteractionOptions, TowerOptions, ModelSection):
    """Clicks and what follows them, learned of all samples: https://arxiv.org/abs/1804.07931.

    The tasks are in the order in which things happen, and the label of each is that it and all before
    happened, such as `click == 1 and buy == 1`. A tower a task gives the probability that it happens
    where the one before did; what is predicted is their product.
    """

    name: Literal["esmm"] = Field(default="esmm", description="the model")
    layers: list[PositiveInt] = Field(
        default=[128, 64], description="widths of the layers of each task; one of 1 follows"
    )


def build(section: ESMMSection, inputs: ModelInputs) -> nn.Module:
    """Return a model with `ESMM` over its interaction."""
    return with_tasks(
        inputs,
        lambda width: ESMM(width, len(inputs.outputs), section.layers, section.layer_options),
        section,
        section,
    )


MODEL = RegisteredModel(
    ESMMSection, build, table_init=lambda dim: Normal(std=1e-4), tasks="numbers"
)
