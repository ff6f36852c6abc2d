"""PyTorch Lightning drives the model: the tables train themselves, Lightning does the rest.

python examples/lightning.py clicks.parquet click
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, IterableDataset

from torchrec.datasets.loader import Loader
from torchrec.datasets.source import TableSource
from torchrec.datasets.split import FractionSplit
from torchrec.datasets.transform import FeatureTransform
from torchrec.datasets.utils import Batch
from torchrec.experiment.build import build_model
from torchrec.experiment.propose import infer_features
from torchrec.experiment.schema import ModelSection, TrainingSection
from torchrec.metrics import BinaryMetrics
from torchrec.optim.optimizers import in_backward_optimizer_filter


class Clicks(pl.LightningModule):
    """A model of clicks, with its loss, metrics and optimizer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.metrics = BinaryMetrics()

    def forward(self, batch: Batch) -> Tensor:
        """Return one logit a sample."""
        return self.model(batch.dense_features, batch.sparse_features).squeeze(1)

    def training_step(self, batch: Batch, number: int) -> Tensor:
        """Return the loss of a batch."""
        return binary_cross_entropy_with_logits(self(batch), batch.labels)

    def validation_step(self, batch: Batch, number: int) -> None:
        """Take a batch of the validation data in."""
        self.metrics.update(self(batch), batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Report on the validation data."""
        report = self.metrics.compute()
        self.metrics.reset()
        self.log_dict({"auc": report.auc, "ne": report.ne}, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer of what the tables do not update themselves."""
        dense = [p for _, p in in_backward_optimizer_filter(self.named_parameters())]
        return torch.optim.Adam(dense, lr=1e-3)


class Epochs(IterableDataset[Batch]):
    """The batches of a loader, in another order each epoch."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        """Give the batches of an epoch."""
        yield from self.loader
        self.loader.epoch += 1


def main(path: str, label: str, **options: object) -> pl.Trainer:
    """Train on nine tenths of a file; Lightning's trainer knows the metrics of the rest."""
    pl.seed_everything(0, verbose=False)
    split = FractionSplit(valid=0.1, test=0.0)
    source = TableSource(path, split=split)
    features = infer_features(source, label).features
    transform = FeatureTransform(features, label)
    transform.fit(source.scan(transform.columns))
    train = Loader(source, transform, batch_size=1024)
    valid = Loader(source.of(split.of("valid")), transform, batch_size=4096, shuffle_window=0)
    training = TrainingSection(embedding_optimizer="adagrad", embedding_learning_rate=0.05)
    clicks = Clicks(build_model(ModelSection(name="deepfm"), training, transform))
    trainer = pl.Trainer(**{"max_epochs": 1, "accelerator": "cpu", **options})
    # Batches are made in threads of their own: Lightning's loaders only pass them on.
    loaders = [DataLoader(Epochs(loader), batch_size=None) for loader in (train, valid)]
    trainer.fit(clicks, *loaders)
    return trainer


if __name__ == "__main__":
    print(main(*sys.argv[1:3]).callback_metrics)
