"""What planning needs to know of the modules that hold tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import nn

from torchrec.distributed.planner._options import sharder_name
from torchrec.distributed.types import ModuleSharder
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollectionInterface,
    EmbeddingCollectionInterface,
)
from torchrec.modules.feature_processor_ import FeatureProcessor, FeatureProcessorsCollection
from torchrec.modules.mc_modules import ManagedCollisionModule

__all__ = ["CollectionFacts", "dense_bytes", "facts_of", "sharded_modules"]


def sharded_modules(
    model: nn.Module, sharders: Sequence[ModuleSharder[Any]]
) -> Iterator[tuple[str, nn.Module, ModuleSharder[Any]]]:
    """Yield the modules of a model that have a sharder, with their paths; nothing from inside of one.

    Args:
        model: the model.
        sharders: at most one for each type of module.
    """
    by_type = {sharder_name(sharder.module_type): sharder for sharder in sharders}
    taken: list[str] = []
    for path, module in model.named_modules():
        sharder = by_type.get(sharder_name(type(module)))
        inside = any(path.startswith(f"{other}.") or not other for other in taken)
        if sharder is not None and not inside:
            taken.append(path)
            yield path, module, sharder


def dense_bytes(model: nn.Module, sharders: Sequence[ModuleSharder[Any]]) -> int:
    """Return the bytes of parameters and buffers that are not of tables.

    Args:
        model: the model.
        sharders: who will shard its tables.
    """
    not_dense: set[int] = set()
    for _, module, sharder in sharded_modules(model, sharders):
        tables = sharder.shardable_parameters(module).values()
        not_dense.update(map(id, chain(tables, module.buffers())))
    return sum(
        tensor.nelement() * tensor.element_size()
        for tensor in chain(model.parameters(), model.buffers())
        if id(tensor) not in not_dense
    )


@dataclass(frozen=True)
class CollectionFacts:
    """What a module says of its tables.

    Attributes:
        is_weighted: whether it takes weights of ids, or makes them.
        features: name of a table -> its features.
        sequences: names of the tables that give a vector for each id.
        is_managed: whether maps of ids choose the rows.
    """

    is_weighted: bool
    features: Mapping[str, Sequence[str]]
    sequences: frozenset[str]
    is_managed: bool = False


def facts_of(module: nn.Module) -> CollectionFacts:
    """Return what a module says of its tables; it looks through all of them, once for all is enough."""
    features: dict[str, Sequence[str]] = {}
    sequences: set[str] = set()
    weighted = managed = False
    for inner in module.modules():
        if isinstance(inner, EmbeddingBagCollectionInterface):
            weighted |= inner.is_weighted()
            features |= {c.name: c.feature_names for c in inner.embedding_bag_configs()}
        elif isinstance(inner, EmbeddingCollectionInterface):
            features |= {c.name: c.feature_names for c in inner.embedding_configs()}
            sequences |= {c.name for c in inner.embedding_configs()}
        elif isinstance(inner, FeatureProcessor | FeatureProcessorsCollection):
            weighted = True
        elif isinstance(inner, ManagedCollisionModule):
            managed = True
    return CollectionFacts(weighted, features, frozenset(sequences), managed)
