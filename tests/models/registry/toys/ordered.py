"""A model that reads all features id by id, with tables of one dimension."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from torchrec.models.registry import ModelInputs, ModelSection, RegisteredModel
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


class OrderedSection(ModelSection):
    """The sum of all vectors of all ids."""

    name: Literal["ordered"] = Field(default="ordered", description="the model")


class Ordered(nn.Module):
    def __init__(self, section: OrderedSection, inputs: ModelInputs) -> None:
        super().__init__()
        assert inputs.pooled is None
        assert inputs.sequences is not None
        self.sequences = inputs.sequences

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        logits = dense_features.sum(1, keepdim=True)
        for one in self.sequences(sparse_features).values():
            for sample, vectors in enumerate(one.to_dense()):
                logits[sample] += vectors.sum()
        return logits


MODEL = RegisteredModel(OrderedSection, Ordered, lookups="sequences")
