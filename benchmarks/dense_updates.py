"""Measures a training step of tables whose fused optimizer updates the rows of the batch, or all rows.

``python -m benchmarks.dense_updates`` prints, for 26 tables of 100,000 x 16 under Adam, a batch of 4,096 and one id a
feature, the processor time of look-up, backward pass and update: lazy, dense, dense with L2, and with a dense gradient
and PyTorch's fused Adam; last, that optimizer's step alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

LR = 1e-3


def make(rows: int, dim: int, tables: int, **training: Any) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(rows, dim, f"t{t}", feature_names=[f"f{t}"], **training)
            for t in range(tables)
        ]
    )


def measure(name: str, step: Callable[[], object], repeat: int) -> None:
    """Print the least processor time of a step."""
    step()
    least = float("inf")
    for _ in range(repeat):
        start = time.process_time()
        step()
        least = min(least, time.process_time() - start)
    print(f"{name:<28}{least * 1e3:8.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("rows", 100_000), ("dim", 16), ("tables", 26), ("batch", 4096)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    shape = given.rows, given.dim, given.tables
    ids = given.tables * given.batch
    features = KeyedJaggedTensor(
        [f"f{t}" for t in range(given.tables)],
        torch.randint(given.rows, (ids,)),
        lengths=torch.ones(ids, dtype=torch.int64),
    )
    kinds: dict[str, dict[str, Any]] = {
        "lazy": {},
        "dense": {"optimizer_options": {"lazy": False}},
        "dense, L2": {"optimizer_options": {"lazy": False}, "weight_decay": 1e-5},
    }
    for name, options in kinds.items():
        fused = make(*shape, optimizer="adam", lr=LR, **options)
        measure(name, lambda ebc=fused: ebc(features).values().sum().backward(), given.repeat)
    plain = make(*shape)
    adam = torch.optim.Adam(plain.parameters(), lr=LR, fused=True)

    def step() -> None:
        adam.zero_grad()
        plain(features).values().sum().backward()
        adam.step()

    measure("PyTorch's fused Adam", step, given.repeat)
    measure("its step alone", adam.step, given.repeat)


if __name__ == "__main__":
    main()
