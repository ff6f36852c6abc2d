"""A model of ids in order: pooled features beside the last vector of each sequence."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from torchrec.models.registry import ModelInputs, ModelSection, RegisteredModel
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


class RecentSection(ModelSection):
    """A line over pooled features and what came last."""

    name: Literal["recent"] = Field(default="recent", description="the model")
    scale: PositiveFloat = Field(default=1.0, description="of the logits")


class Recent(nn.Module):
    def __init__(self, section: RecentSection, inputs: ModelInputs) -> None:
        super().__init__()
        self.pooled, self.sequences, self.scale = inputs.pooled, inputs.sequences, section.scale
        width = inputs.num_dense
        for configs in (
            [] if self.pooled is None else self.pooled.embedding_bag_configs(),
            [] if self.sequences is None else self.sequences.embedding_configs(),
        ):
            width += sum(config.embedding_dim * len(config.feature_names) for config in configs)
        self.line = nn.Linear(width, 1)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        parts = [dense_features]
        if self.pooled is not None:
            parts.append(self.pooled(sparse_features).values())
        if self.sequences is not None:
            for one in self.sequences(sparse_features).values():
                ends, lengths = one.offsets()[1:], one.lengths()
                vectors = torch.cat([one.values(), one.values().new_zeros(1, one.values().size(1))])
                last = torch.where(lengths > 0, ends - 1, len(vectors) - 1)
                parts.append(vectors[last])
        return self.scale * self.line(torch.cat(parts, dim=1))


MODEL = RegisteredModel(RecentSection, Recent, lookups="both", dims="several")
