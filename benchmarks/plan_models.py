"""Models to compare plans with steps on: drawn at random, each with a number, the same ones every time."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
)
from torchrec.types import OptimizerType

__all__ = ["Drawn", "Scored"]

_OPTIMIZERS = [
    OptimizerType.ROWWISE_ADAGRAD,
    OptimizerType.ADAM,
    OptimizerType.SGD,
    OptimizerType.ADAGRAD,
    OptimizerType.PARTIAL_ROWWISE_ADAM,
]
_LAYERS = {
    OptimizerType.SGD: torch.optim.SGD,
    OptimizerType.ADAGRAD: torch.optim.Adagrad,
    OptimizerType.ADAM: torch.optim.Adam,
}
_HIDDEN = 256


class Scored(nn.Module):
    """A collection, and layers on its vectors if there are some; it gives a loss.

    Args:
        tables: the collection.
        layers: on the vectors of a sample, side by side, of a sequence their sums. None: there are none.
        batch: samples.
    """

    def __init__(
        self,
        tables: EmbeddingBagCollection | EmbeddingCollection,
        layers: nn.Module | None,
        batch: int,
    ) -> None:
        super().__init__()
        self.tables, self.layers, self._batch = tables, layers, batch

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        """Return the loss of a batch."""
        found = self.tables(features)
        vectors = [found.values()] if not isinstance(found, dict) else []
        if isinstance(found, dict):
            vectors = [each.values() for each in found.values()]
            if self.layers is not None:
                vectors = [each.view(self._batch, -1, each.shape[1]).sum(1) for each in vectors]
        if self.layers is None:
            return torch.stack([each.sum() for each in vectors]).sum()
        together = vectors[0] if len(vectors) == 1 else torch.cat(vectors, 1)
        loss: Tensor = self.layers(together).mean()
        return loss


class Drawn:
    """One of the models: tables, ids a bag, samples, optimizer, layers, and under which types it may be placed.

    Args:
        number: which; each is another.
        most_rows: of a table. Default: as drawn.
        batch: samples. Default: as drawn.
    """

    def __init__(self, number: int, most_rows: int | None = None, batch: int | None = None) -> None:
        draw = random.Random(number)
        self.number = number
        self.tables = draw.choice([4, 8, 16, 26])
        self.columns = [draw.choice([8, 16, 32, 64, 128]) for _ in range(self.tables)]
        self.rows = [int(10 ** draw.uniform(2, 5.3)) for _ in range(self.tables)]
        self.ids = [draw.choice([1, 1, 1, 5, 20]) for _ in range(self.tables)]
        self.batch = batch or draw.choice([256, 512, 1024, 2048])
        self.types = [None, ["table_wise"], ["row_wise"], ["column_wise"]][number % 4]
        self.optimizer = _OPTIMIZERS[number % len(_OPTIMIZERS)]
        self.is_pooled = number % 7 != 6
        self.has_layers = number % 3 == 1
        if most_rows is not None:
            self.rows = [min(rows, most_rows) for rows in self.rows]

    @property
    def words(self) -> str:
        """What it is, in words."""
        kind = "pooled" if self.is_pooled else "sequences"
        layers = ", layers" if self.has_layers else ""
        return f"{self.tables} tables, {kind}, {self.optimizer.value}{layers}"

    def model(self, device: str) -> Scored:
        """Return the model; its layers on the CPU."""
        kinds = EmbeddingBagConfig if self.is_pooled else EmbeddingConfig
        configs = [
            kinds(
                num_embeddings=self.rows[t],
                embedding_dim=self.columns[t],
                name=f"t{t}",
                feature_names=[f"f{t}"],
                optimizer=self.optimizer,
                lr=0.01,
            )
            for t in range(self.tables)
        ]
        collection = EmbeddingBagCollection if self.is_pooled else EmbeddingCollection
        tables = collection(configs, device=torch.device(device))
        layers = None
        if self.has_layers:
            width = sum(self.columns)
            layers = nn.Sequential(
                nn.Linear(width, _HIDDEN),
                nn.ReLU(),
                nn.Linear(_HIDDEN, _HIDDEN),
                nn.ReLU(),
                nn.Linear(_HIDDEN, 1),
            )
        return Scored(tables, layers, self.batch)

    def layer_optimizer(self, layers: nn.Module) -> torch.optim.Optimizer:
        """Return what trains the layers: as the tables, or with Adagrad."""
        kind = _LAYERS.get(self.optimizer, torch.optim.Adagrad)
        return kind(layers.parameters(), lr=0.01)

    def features(self, seed: int) -> KeyedJaggedTensor:
        """Return a batch."""
        generator = torch.Generator().manual_seed(seed)
        values = [
            torch.randint(self.rows[t], (self.batch * self.ids[t],), generator=generator)
            for t in range(self.tables)
        ]
        lengths = [torch.full((self.batch,), ids) for ids in self.ids]
        keys = [f"f{t}" for t in range(self.tables)]
        found = KeyedJaggedTensor(keys, torch.cat(values), lengths=torch.cat(lengths))
        found.offsets()  # which it keeps
        return found
