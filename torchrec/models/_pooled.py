"""What all models ask of the embeddings that they work on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from torchrec.fx.proxies import is_proxy
from torchrec.modules.collection import Collection
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollectionInterface,
    get_embedding_names_by_table,
)
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

PooledCollection: TypeAlias = Collection | EmbeddingBagCollectionInterface
"""What looks features up and pools them: plain, fused, managed, or what stands in for these."""


def check_pooled(collection: object) -> nn.Module:
    """Return a collection that pools, as the module that it is.

    Raises:
        TypeError: this is no collection of embedding bags.
    """
    _bag_configs(collection)
    assert isinstance(collection, nn.Module)
    return collection


def embedding_names(collection: PooledCollection) -> list[str]:
    """Return the names of a collection's outputs, table after table."""
    names = get_embedding_names_by_table(_bag_configs(collection))
    return [name for of_table in names for name in of_table]


def embedding_dim(collection: PooledCollection) -> int:
    """Return D, which all tables of a collection have.

    Raises:
        TypeError: this is no collection of embedding bags.
        ValueError: there is no table, or their dimensions differ.
    """
    dims = {table.name: table.embedding_dim for table in _bag_configs(collection)}
    if len(set(dims.values())) != 1:
        received = f"{dims}" if dims else "no tables"
        raise ValueError(
            "`embedding_bag_collection` should have one or more tables of the same "
            f"`embedding_dim`. Received {received}."
        )
    return next(iter(dims.values()))


class Terms(NamedTuple):
    """The outputs of a collection by what they are to a model.

    Attributes:
        dim: D, which all tables of vectors have; 0 where there is none.
        vectors: names of the outputs of these.
        weights: names of the outputs of the other tables, which have dimension 1.
    """

    dim: int
    vectors: list[str]
    weights: list[str]


def terms_of(collection: PooledCollection, linear_tables: Sequence[str]) -> Terms:
    """Return the outputs of a collection, those of some of its tables as weights.

    Args:
        collection: of tables.
        linear_tables: names of the tables of dimension 1 that hold a weight an id.

    Raises:
        TypeError: this is no collection of embedding bags.
        ValueError: one of ``linear_tables`` is not there or has another dimension, or the dimensions
            of the others differ.
    """
    configs = _bag_configs(collection)
    known = {config.name: config.embedding_dim for config in configs}
    for table in linear_tables:
        if known.get(table) != 1:
            has = f"dimension {known[table]}" if table in known else f"tables {list(known)}"
            raise ValueError(
                f"`linear_tables` should be tables of dimension 1. Received '{table}' of a collection "
                f"with {has}."
            )
    dims = {name: dim for name, dim in known.items() if name not in linear_tables}
    if len(set(dims.values())) > 1:
        raise ValueError(
            "`embedding_bag_collection` should have tables of the same `embedding_dim`, but for its "
            f"`linear_tables`. Received {dims}."
        )
    named = list(zip(configs, get_embedding_names_by_table(configs), strict=True))
    return Terms(
        next(iter(dims.values()), 0),
        [name for config, names in named if config.name in dims for name in names],
        [name for config, names in named if config.name not in dims for name in names],
    )


def vectors_and_weights(pooled: KeyedTensor, terms: Terms) -> tuple[Tensor, Tensor | None]:
    """Return vectors ``(B, F D)`` and weights ``(B, F)``, each side by side; uncopied where they are.

    Raises:
        ValueError: a name is missing.
    """
    both = joined(pooled, terms.vectors + terms.weights)
    if not terms.weights:
        return both, None
    parts = both.split([len(terms.vectors) * terms.dim, len(terms.weights)], dim=1)
    return parts[0], parts[1]


def pool(collection: nn.Module, features: KeyedJaggedTensor) -> KeyedTensor:
    """Look ``features`` up and pool them; a managed collection gives remapped ids besides."""
    return _pooled_of(collection(features))


def _pooled_of(looked_up: KeyedTensor | tuple[KeyedTensor, object]) -> KeyedTensor:
    return looked_up[0] if isinstance(looked_up, tuple) else looked_up


def _bag_configs(collection: object) -> list[EmbeddingBagConfig]:
    if isinstance(collection, Collection):
        tables = list(collection.table_store().table_configs())
        bags = [table for table in tables if isinstance(table, EmbeddingBagConfig)]
        if len(bags) == len(tables):
            return bags
    else:  # what stands in for one need not show its weights, only say what it has
        configs = getattr(collection, "embedding_bag_configs", None)
        if callable(configs):
            return list(configs())
    raise TypeError(
        "`embedding_bag_collection` should be an EmbeddingBagCollection. "
        f"Received {type(collection).__name__}."
    )


def joined(pooled: KeyedTensor, names: list[str]) -> Tensor:
    """Return the embeddings of ``names`` side by side, ``(B, sum of D)``; uncopied where they are.

    Raises:
        ValueError: a name is missing.
    """
    return _joined(pooled, names)


def _joined(pooled: KeyedTensor, names: list[str]) -> Tensor:
    keys = pooled.keys()
    if keys == names:
        return pooled.values()
    for name in names:
        if name not in keys:
            raise ValueError(f"`sparse_features` should have the key '{name}'. Received {keys}.")
    return KeyedTensor.regroup([pooled], [names])[0]


# What is pooled, and which keys it has, is not known to a tracer: it records calls of these.
torch.fx.wrap("_joined")
torch.fx.wrap("_pooled_of")


def check_columns(argument: str, features: Tensor, columns: int) -> None:
    """Raise unless ``features``, passed as ``argument``, has ``columns`` numbers a sample.

    Raises:
        ValueError: the shape is another.
    """
    if is_proxy(features):
        return
    if features.dim() != 2 or features.size(1) != columns:
        raise ValueError(
            f"`{argument}` should have shape (B, {columns}). Received {tuple(features.shape)}."
        )


def check_dropout(argument: str, probability: float) -> None:
    """Raise unless ``probability``, passed as ``argument``, is that of dropping something.

    Raises:
        ValueError: it is not in ``[0, 1)``.
    """
    if not 0 <= probability < 1:
        raise ValueError(f"`{argument}` should be in [0, 1). Received {probability}.")


def check_module(argument: str, module: object) -> None:
    """Raise unless ``module``, passed as ``argument``, is a module.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"`{argument}` should be an nn.Module. Received {type(module).__name__}.")
