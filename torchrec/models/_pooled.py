"""What all models ask of the embeddings that they work on."""

from __future__ import annotations

from torch import Tensor, nn

from torchrec.modules.embedding_modules import (
    EmbeddingBagCollectionInterface,
    get_embedding_names_by_table,
)
from torchrec.sparse.jagged_tensor import KeyedTensor


def embedding_names(collection: EmbeddingBagCollectionInterface) -> list[str]:
    """Return the names of a collection's outputs, table after table."""
    tables = collection.embedding_bag_configs()
    return [name for names in get_embedding_names_by_table(tables) for name in names]


def embedding_dim(collection: EmbeddingBagCollectionInterface) -> int:
    """Return D, which all tables of a collection have.

    Raises:
        TypeError: this is no collection of embedding bags.
        ValueError: there is no table, or their dimensions differ.
    """
    if not hasattr(collection, "embedding_bag_configs"):
        raise TypeError(
            "`embedding_bag_collection` should be an EmbeddingBagCollection. "
            f"Received {type(collection).__name__}."
        )
    dims = {table.name: table.embedding_dim for table in collection.embedding_bag_configs()}
    if len(set(dims.values())) != 1:
        received = f"{dims}" if dims else "no tables"
        raise ValueError(
            "`embedding_bag_collection` should have one or more tables of the same "
            f"`embedding_dim`. Received {received}."
        )
    return next(iter(dims.values()))


def joined(pooled: KeyedTensor, names: list[str]) -> Tensor:
    """Return the embeddings of ``names`` side by side, ``(B, sum of D)``; uncopied where they are.

    Raises:
        ValueError: a name is missing.
    """
    keys = pooled.keys()
    if keys == names:
        return pooled.values()
    for name in names:
        if name not in keys:
            raise ValueError(f"`sparse_features` should have the key '{name}'. Received {keys}.")
    return KeyedTensor.regroup([pooled], [names])[0]


def check_columns(argument: str, features: Tensor, columns: int) -> None:
    """Raise unless ``features``, passed as ``argument``, has ``columns`` numbers a sample.

    Raises:
        ValueError: the shape is another.
    """
    if features.dim() != 2 or features.size(1) != columns:
        raise ValueError(
            f"`{argument}` should have shape (B, {columns}). Received {tuple(features.shape)}."
        )


def check_module(argument: str, module: object) -> None:
    """Raise unless ``module``, passed as ``argument``, is a module.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"`{argument}` should be an nn.Module. Received {type(module).__name__}.")
