"""The training loop in plain PyTorch: what the trainer does, without the trainer.

    python examples/plain_loop.py clicks.parquet click

Reads a file of clicks, fits the transform, builds a model and trains it for an epoch; then prints
the metrics of a tenth of the rows that it was not trained on.
"""

from __future__ import annotations

import sys

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from torchrec.datasets.loader import Loader
from torchrec.datasets.source import TableSource
from torchrec.datasets.split import FractionSplit
from torchrec.datasets.transform import FeatureTransform
from torchrec.experiment.build import build_model
from torchrec.experiment.propose import infer_features
from torchrec.experiment.schema import ModelSection, TrainingSection
from torchrec.metrics import BinaryMetrics, Report
from torchrec.optim.optimizers import in_backward_optimizer_filter


def main(path: str, label: str, epochs: int = 1) -> Report:
    """Train on nine tenths of a file, and return the metrics of the rest."""
    torch.manual_seed(0)
    split = FractionSplit(valid=0.1, test=0.0)
    source = TableSource(path, split=split)
    features = infer_features(source, label).features
    transform = FeatureTransform(features, label)
    transform.fit(source.scan(transform.columns))
    train = Loader(source, transform, batch_size=1024)
    valid = Loader(source.of(split.of("valid")), transform, batch_size=4096, shuffle_window=0)

    options = TrainingSection(embedding_optimizer="adagrad", embedding_learning_rate=0.05)
    model = build_model(ModelSection(name="dlrm_dcn"), options, transform)
    # The tables update themselves in the backward pass; this optimizer drives the rest.
    dense = [p for _, p in in_backward_optimizer_filter(model.named_parameters())]
    optimizer = torch.optim.Adam(dense, lr=1e-3)

    for train.epoch in range(epochs):
        for step, batch in enumerate(train, 1):
            logits = model(batch.dense_features, batch.sparse_features).squeeze(1)
            loss = binary_cross_entropy_with_logits(logits, batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 50 == 0:
                print(f"epoch {train.epoch + 1}  step {step:5,}  loss {loss.item():.4f}")

    model.eval()
    metrics = BinaryMetrics()
    with torch.no_grad():
        for batch in valid:
            metrics.update(model(batch.dense_features, batch.sparse_features), batch.labels)
    report = metrics.compute()
    print(f"validation: AUC {report.auc:.4f}  NE {report.ne:.4f}  logloss {report.logloss:.4f}")
    return report


if __name__ == "__main__":
    main(*sys.argv[1:3])
