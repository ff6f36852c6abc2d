"""What the models with a `Tower` on top have in common: its options, and what it is alone."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, Field, PositiveInt
from torch import Tensor, nn

from torchrec.models.multi_task import LayerOptions
from torchrec.models.tower import Tower
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

ActivationName: TypeAlias = Literal[
    "elu",
    "gelu",
    "leaky_relu",
    "mish",
    "prelu",
    "relu",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "swish_layernorm",
    "tanh",
]
"""The activations of `torchrec.modules.mlp`."""


class TowerOptions(BaseModel):
    """Options of models with layers over the dense features, and a `Tower` on top."""

    dense_layers: list[PositiveInt] = Field(
        default=[64],
        description="widths of the layers over the dense features; one of `dim` follows",
    )
    layers: list[PositiveInt] = Field(
        default=[256, 128], description="widths of the layers over everything; one of 1 follows"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="share of activations dropped in training"
    )
    embedding_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="share of the numbers of pooled vectors dropped in training"
    )
    batch_norm: bool = Field(default=False, description="normalise over the batch in every layer")
    activation: ActivationName = Field(
        default="relu", description="of all layers but cross layers and the last"
    )

    @property
    def layer_options(self) -> LayerOptions:
        """What all layers over the interaction have in common."""
        return LayerOptions(self.dropout, self.batch_norm, self.activation)

    def tower(self, in_features: int) -> Tower:
        """Return the tower over ``in_features`` numbers a sample."""
        return Tower(in_features, self.layers, *self.layer_options)


class DenseOnly(nn.Module):
    """A network over dense features alone: what models come to where there is nothing to look up.

    Args:
        tower: over as many numbers as there are dense features.
    """

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """Predict from ``dense_features`` ``(B, num_dense)``; ``sparse_features`` are not read."""
        logits: Tensor = self.tower(dense_features)
        return logits
