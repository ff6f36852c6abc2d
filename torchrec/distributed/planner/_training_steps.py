"""Small models that are trained to see how long steps take, and how long they do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from torchrec.heap import expect_tensors
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.types import OptimizerType

__all__ = ["Clock", "batch_of", "pooled", "sequences", "step_ms", "training", "usual_ms"]

Clock = Callable[[], float]
"""Of `time`: seconds, of which the difference counts."""


def pooled(
    tables: int,
    columns: int,
    rows: int,
    device: str = "cpu",
    optimizer: OptimizerType = OptimizerType.ROWWISE_ADAGRAD,
) -> EmbeddingBagCollection:
    """Return tables of one kind, each with a feature of its own."""
    return EmbeddingBagCollection(
        [
            EmbeddingBagConfig(
                rows,
                columns,
                f"t{t}",
                feature_names=[f"f{t}"],
                optimizer=optimizer,
                lr=0.01,
            )
            for t in range(tables)
        ],
        device=torch.device(device),
    )


def sequences(tables: int) -> EmbeddingCollection:
    """Return small tables whose ids each have a vector."""
    return EmbeddingCollection(
        [
            EmbeddingConfig(
                16,
                8,
                f"t{t}",
                feature_names=[f"f{t}"],
                optimizer=OptimizerType.ROWWISE_ADAGRAD,
                lr=0.01,
            )
            for t in range(tables)
        ]
    )


def batch_of(
    features: int, batch: int, bag: int | Sequence[int], rows: int, seed: int = 0
) -> KeyedJaggedTensor:
    """Return a batch.

    Args:
        features: how many.
        batch: samples.
        bag: ids a bag, of all features or of each.
        rows: among which ids choose.
        seed: of ids.
    """
    generator = torch.Generator().manual_seed(seed)
    bags = [bag] * features if isinstance(bag, int) else bag
    lengths = torch.tensor(bags).repeat_interleave(batch)
    values = torch.randint(rows, (batch * sum(bags),), generator=generator)
    return KeyedJaggedTensor([f"f{f}" for f in range(features)], values, lengths=lengths)


def usual_ms(times: Sequence[float]) -> float:
    """Return what a step takes where nothing else runs, in milliseconds: of means of five, the lower quartile.

    Means, as several ranks may share a processor: most steps of one of them are then not interrupted.

    Args:
        times: seconds of steps one behind the other, at least one.
    """
    size = min(5, len(times))
    means = sorted(
        statistics.fmean(times[i : i + size]) for i in range(0, len(times) - size + 1, size)
    )
    return means[len(means) // 4] * 1e3


def step_ms(
    step: Callable[[], object],
    seconds: float,
    most: int = 400,
    clock: Clock = time.perf_counter,
) -> float:
    """Return how long a step takes on this process, in milliseconds; it was taken twice before.

    Args:
        step: takes one.
        seconds: how long to take them.
        most: how many at most. Default 400.
        clock: of `time`. Default: what passes.
    """
    expect_tensors()  # as training does, from its first large look-up on
    step()
    step()
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 10 or (time.perf_counter() - start < seconds and len(times) < most):
        before = clock()
        step()
        times.append(clock() - before)
    return usual_ms(times)


def _loss(model: nn.Module, batch: KeyedJaggedTensor) -> Tensor:
    found = model(batch)
    if isinstance(found, Tensor):
        return found.sum()
    if isinstance(found, dict):
        return torch.cat([each.values() for each in found.values()]).sum()
    values: Tensor = found.values()
    return values.sum()


def training(model: nn.Module, batch: KeyedJaggedTensor) -> Callable[[], None]:
    """Return the step that trains a model on one batch."""
    return lambda: _loss(model, batch).backward()
