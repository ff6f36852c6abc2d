"""A factory that is put into packages, with code of its own.

Without ``from __future__ import annotations``: dataclasses look for their annotations in ``sys.modules``, where modules
of packages are not.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.inference.model_packager import load_config_text, load_pickle_config
from torchrec.inference.modules import (
    BatchingMetadata,
    PredictFactory,
    PredictModule,
    quantize_inference_model,
)


@dataclass
class Sizes:
    rows: int
    dim: int


class Bags(PredictModule):
    def predict_forward(self, batch: dict[str, Tensor]) -> Tensor:
        features = KeyedJaggedTensor(["f"], batch["values"], lengths=batch["lengths"])
        found: Tensor = self.predict_module(features).values()
        return found


class Factory(PredictFactory):
    def create_predict_module(self) -> nn.Module:
        sizes = load_pickle_config("sizes", Sizes)
        name = load_config_text("name")
        config = EmbeddingBagConfig(sizes.rows, sizes.dim, name, feature_names=["f"])
        collection = EmbeddingBagCollection(tables=[config])
        nn.init.constant_(collection.embedding_bags[name].weight, 0.5)
        return self.run_weights_dependent_transformations(Bags(collection))

    def batching_metadata(self) -> dict[str, BatchingMetadata]:
        return {"values": BatchingMetadata("sparse", "cpu", [])}

    def result_metadata(self) -> str:
        return "tensor"

    def run_weights_independent_tranformations(self, predict_module: nn.Module) -> nn.Module:
        return predict_module

    def run_weights_dependent_transformations(self, predict_module: nn.Module) -> nn.Module:
        return quantize_inference_model(predict_module, quantization_dtype=torch.qint8)
