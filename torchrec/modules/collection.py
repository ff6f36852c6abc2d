"""What every collection of embedding tables can do, whichever class it is of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.optim.keyed import KeyedOptimizer

__all__ = ["Collection", "TableShard", "TableStore", "collections_in"]


class TableShard(NamedTuple):
    """The part of a table that one tensor holds.

    Attributes:
        rows: of the table, that are here.
        columns: of the table, that are here.
        weight: their values, ``(len(rows), len(columns))``.
    """

    rows: range
    columns: range
    weight: Tensor


class TableStore(Protocol):
    """The tables of a collection, by name: what they are, their weights, and what becomes of rows.

    Who reports on tables, counts ids or evicts rows speaks to this, and not to a class.

    Example:
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
        >>> table = EmbeddingBagConfig(10, 4, "t", feature_names=["f"])
        >>> store = EmbeddingBagCollection(tables=[table]).table_store()
        >>> [config.name for config in store.table_configs()]
        ['t']
        >>> [(shard.rows, shard.columns) for shard in store.table_shards("t")]
        [(range(0, 10), range(0, 4))]
    """

    @property
    def device(self) -> torch.device:
        """The device of the tables."""
        ...

    @property
    def fused_optimizer(self) -> KeyedOptimizer:
        """The optimizer of the tables that are updated in the backward pass."""
        ...

    def table_configs(self) -> Sequence[BaseEmbeddingConfig]:
        """Return the tables."""
        ...

    def table_shards(self, table: str) -> list[TableShard]:
        """Return the tensors that hold the weights of a table, by its name."""
        ...

    def embedding_names_by_table(self) -> list[list[str]]:
        """Return, for each table, the names of the outputs of its features."""
        ...

    def out_of_range_counts(self, reset: bool = False) -> dict[str, int]:
        """Return how many ids outside ``[0, num_embeddings)`` each table has been given."""
        ...

    def set_out_of_range_counts(self, counts: Mapping[str, int]) -> None:
        """Go on counting from other numbers, say without the ids of an evaluation."""
        ...

    def load_rows(
        self, table: str, ids: Tensor, vectors: Tensor, reset_state: bool = False
    ) -> None:
        """Write rows of a table."""
        ...

    def export_rows(self, table: str, ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Read rows of a table."""
        ...

    def reset_rows(self, table: str, rows: Tensor) -> None:
        """Make rows as they were before any training."""
        ...


@runtime_checkable
class Collection(Protocol):
    """A module that looks embedding tables up.

    Plain, fused, feature-processed and managed-collision collections all are collections.

    Example:
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
        >>> table = EmbeddingBagConfig(10, 4, "t", feature_names=["f"])
        >>> ebc = EmbeddingBagCollection(tables=[table])
        >>> isinstance(ebc, Collection), isinstance(nn.Linear(2, 1), Collection)
        (True, False)
    """

    def table_store(self) -> TableStore:
        """Return the tables; of a collection around another one, the tables of that."""
        ...


def collections_in(model: nn.Module) -> Iterator[tuple[str, Collection]]:
    """Yield the collections of a model with their paths; of one around another, the outer one.

    Args:
        model: the model; may be a collection itself, whose path is then ``""``.

    Example:
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
        >>> table = EmbeddingBagConfig(10, 4, "t", feature_names=["f"])
        >>> model = nn.Sequential(EmbeddingBagCollection(tables=[table]), nn.Linear(4, 1))
        >>> [path for path, _ in collections_in(model)]
        ['0']
    """
    seen: set[nn.Module] = set()
    waiting = [("", model)]
    while waiting:
        path, module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        if isinstance(module, Collection):
            yield path, module
            continue
        children = [(f"{path}.{n}" if path else n, child) for n, child in module.named_children()]
        waiting += reversed(children)
