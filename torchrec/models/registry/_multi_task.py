"""What models of several tasks have in common: an interaction, and a head on top."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt
from torch import nn

from torchrec.models._interactions import FMVectors
from torchrec.models._pooled import embedding_dim
from torchrec.models.dlrm import DLRM, DLRM_DCN
from torchrec.models.registry._dlrm import with_head
from torchrec.models.registry._registry import ModelInputs
from torchrec.models.registry._tower import DenseOnly, TowerOptions

MakeHead: TypeAlias = Callable[[int], nn.Module]
"""Makes what gives the outputs of all tasks of so many numbers a sample."""


TowerLayers: TypeAlias = Annotated[
    list[PositiveInt], Field(description="widths of the layers of each task; its outputs follow")
]


class InteractionOptions(BaseModel):
    """Which interaction a model of several tasks has."""

    interaction: Literal["cross", "dot", "fm"] = Field(
        default="cross",
        description="what is made of the vectors of a sample: `cross` as dlrm_dcn does, `dot` as dlrm "
        "does, `fm` the sum of products of pairs, as fm and deepfm do",
    )
    cross_layers: NonNegativeInt = Field(
        default=3, description="cross layers, where `interaction` is `cross`"
    )
    cross_rank: PositiveInt = Field(
        default=64, description="rank of the cross layers, where `interaction` is `cross`"
    )


def with_tasks(
    inputs: ModelInputs, make_head: MakeHead, options: TowerOptions, chosen: InteractionOptions
) -> nn.Module:
    """Return the model whose interaction a head takes its numbers of.

    Args:
        inputs: what it is built on.
        make_head: makes the head.
        options: of its layers.
        chosen: its interaction.
    """
    if inputs.pooled is None:
        return DenseOnly(make_head(inputs.num_dense))
    layers = [*options.dense_layers, embedding_dim(inputs.pooled)]
    if chosen.interaction == "cross":
        cross = chosen.cross_layers, chosen.cross_rank
        crossed = DLRM_DCN(inputs.pooled, inputs.num_dense, layers, [1], *cross)
        return with_head(crossed, options, inputs, make_head)
    model = DLRM(inputs.pooled, inputs.num_dense, layers, [1])
    if chosen.interaction == "dot":
        return with_head(model, options, inputs, make_head, vectors=True)
    model.inter_arch = FMVectors()
    width = (model.sparse_arch.F + 2) * model.sparse_arch.D
    return with_head(model, options, inputs, make_head, width=width)
