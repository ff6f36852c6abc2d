"""A factorization machine: linear terms and products of pairs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from torchrec.datasets.initial_weights import Normal
from torchrec.models.fm import FactorizationMachineModel
from torchrec.models.lr import LogisticRegression
from torchrec.models.registry._registry import ModelInputs, ModelSection, RegisteredModel


class FMSection(ModelSection):
    """Linear terms and products of pairs: https://ieeexplore.ieee.org/document/5694074.

    Where no feature is an id, this is logistic regression.
    """

    name: Literal["fm"] = Field(default="fm", description="the model")


def build(section: FMSection, inputs: ModelInputs) -> nn.Module:
    """Return a `FactorizationMachineModel`."""
    if inputs.pooled is None:
        return LogisticRegression(None, inputs.num_dense)
    return FactorizationMachineModel(inputs.pooled, inputs.linear_tables, inputs.num_dense)


MODEL = RegisteredModel(
    FMSection, build, terms=lambda section: "both", table_init=lambda dim: Normal(std=0.01)
)
