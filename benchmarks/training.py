"""Measures what the trainer and its metrics add to a plain loop.

``python -m benchmarks.training`` trains models of several sizes on batches in memory, with one thread:
by a plain loop, and by ``Trainer``; and gives the metrics what one of these runs gives them. Wanted:
metrics in 3 % of a step. The figures are processor time, medians of rounds in which each has its turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from torchrec.datasets.utils import Batch
from torchrec.metrics import BinaryMetrics
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.training.options import FitOptions
from torchrec.training.trainer import Trainer

DENSE, ROWS = 4, 10_000
SIZES = [(2, 8, 1024), (7, 16, 256), (7, 16, 1024), (26, 16, 1024), (26, 64, 2048)]


def make_model(tables: int, dim: int) -> nn.Module:
    configs = [
        EmbeddingBagConfig(ROWS, dim, f"t{i}", feature_names=[f"f{i}"], optimizer="adam", lr=1e-3)
        for i in range(tables)
    ]
    collection = EmbeddingBagCollection(tables=configs)
    return SimpleDeepFMNN(DENSE, collection, hidden_layer_size=64, deep_fm_dimension=16)


def make_batches(tables: int, size: int, number: int) -> list[Batch]:
    keys = [f"f{i}" for i in range(tables)]
    lengths = torch.ones(tables * size, dtype=torch.int64)
    return [
        Batch(
            torch.randn(size, DENSE),
            KeyedJaggedTensor(keys, torch.randint(ROWS, (tables * size,)), lengths=lengths),
            torch.bernoulli(torch.full((size,), 0.25)),
        )
        for _ in range(number)
    ]


class Logits(nn.Module):
    """The model without its last sigmoid."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, dense: torch.Tensor, sparse: KeyedJaggedTensor) -> torch.Tensor:
        return torch.logit(self.model(dense, sparse), eps=1e-6)


def plain_loop(model: nn.Module, batches: list[Batch], epochs: int) -> None:
    fused = {
        id(p)
        for m in model.modules()
        if isinstance(m, EmbeddingBagCollection)
        for p in m.parameters()
    }
    dense = [p for p in model.parameters() if id(p) not in fused]
    optimizer = torch.optim.Adam(dense, fused=True)
    for _ in range(epochs):
        for batch in batches:
            logits = model(batch.dense_features, batch.sparse_features).reshape(-1)
            loss = binary_cross_entropy_with_logits(logits, batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def trainer(model: nn.Module, batches: list[Batch], epochs: int) -> None:
    Trainer(model, options=FitOptions(epochs=epochs)).fit(batches)


def metrics(logits: list[torch.Tensor], batches: list[Batch], epochs: int) -> None:
    """Do what the trainer does with logits."""
    window, epoch = BinaryMetrics(), BinaryMetrics()
    for step in range(1, epochs * len(batches) + 1):
        number = step % len(batches)
        window.update(logits[number], batches[number].labels)
        if step % 50 == 0:
            window.compute()
            epoch.merge(window)
            window.reset()


def microseconds(work: Callable[[], None], steps: int) -> float:
    """Return the processor time of a step."""
    start = time.process_time()
    work()
    return (time.process_time() - start) / steps * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "tables x dim, batch | plain loop, µs | trainer, µs, over plain | metrics, µs, of trainer"
    )
    for tables, dim, size in SIZES:
        torch.manual_seed(0)
        batches = make_batches(tables, size, 100)
        logits = [torch.randn_like(batch.labels) - 1 for batch in batches]
        model = Logits(make_model(tables, dim))
        epochs = max(options.steps // len(batches), 1)
        steps = epochs * len(batches)
        plain_loop(model, batches, 1)
        rounds = [
            (
                microseconds(lambda: plain_loop(model, batches, epochs), steps),  # noqa: B023
                microseconds(lambda: trainer(model, batches, epochs), steps),  # noqa: B023
                microseconds(lambda: metrics(logits, batches, epochs), steps),  # noqa: B023
            )
            for _ in range(options.rounds)
        ]
        plain, trained, counted = (statistics.median(one) for one in zip(*rounds, strict=True))
        over = statistics.median(b / a - 1 for a, b, _ in rounds)
        share = statistics.median(c / b for _, b, c in rounds)
        print(
            f"{tables} x {dim}, {size} | {plain:,.0f} | {trained:,.0f}, {over:+.1%} | "
            f"{counted:.0f}, {share:.1%}"
        )


if __name__ == "__main__":
    main()
