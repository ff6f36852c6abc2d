"""One training step in which a new id takes a row from another: look-up, loss, update."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, OptimizerType
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    LFU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)


def prepare(folder: Path) -> Callable[[], None]:
    optimizer = OptimizerType.ROWWISE_ADAGRAD
    tables = [EmbeddingBagConfig(3, 4, "t", feature_names=["f"], optimizer=optimizer, lr=0.1)]
    maps = {"t": MCHManagedCollisionModule(3, "cpu", LFU_EvictionPolicy(), 1, name="t")}
    module = ManagedCollisionEmbeddingBagCollection(
        EmbeddingBagCollection(tables=tables), ManagedCollisionCollection(maps, tables)
    )

    def batch(*ids: int) -> KeyedJaggedTensor:
        return KeyedJaggedTensor.from_lists({"f": [[i] for i in ids]})

    def step(features: KeyedJaggedTensor) -> None:
        module(features)[0].values().sum().backward()

    for _ in range(2):  # what is made once is made
        step(batch(1, 2))
    features = batch(9, 9, 9, 9)
    return lambda: step(features)
