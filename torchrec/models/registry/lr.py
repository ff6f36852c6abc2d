"""Logistic regression: the baseline."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from torchrec.datasets.initial_weights import Zeros
from torchrec.models.lr import LogisticRegression
from torchrec.models.registry._registry import ModelInputs, ModelSection, RegisteredModel


class LRSection(ModelSection):
    """Logistic regression: a weight an id, a weight a dense feature, and a bias.

    An id has one number whatever `dim` is, which is taken so that `model.name=lr` can be tried behind
    the file of another model.
    """

    name: Literal["lr"] = Field(default="lr", description="the model")


def build(section: LRSection, inputs: ModelInputs) -> nn.Module:
    """Return a `LogisticRegression`."""
    return LogisticRegression(inputs.pooled, inputs.num_dense)


MODEL = RegisteredModel(
    LRSection,
    build,
    dims="several",
    terms=lambda section: "weights",
    table_init=lambda dim: Zeros(),
)
