"""The tables of a sharded collection, as who reports on tables, counts ids or writes rows speaks to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from torchrec.checks import require_type
from torchrec.distributed.placement import Block
from torchrec.distributed.wire import Wire
from torchrec.modules.collection import TableShard
from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.modules.stray_ids import counts_by_table, set_counts
from torchrec.modules.table_collection import check_rows
from torchrec.modules.tables import embedding_names_by_table
from torchrec.optim.embedding_optimizer import EmbeddingFusedOptimizer, ShownUpdates
from torchrec.optim.keyed import KeyedOptimizer
from torchrec.optim.owners import owner_of
from torchrec.optim.table_update import TableUpdate

__all__ = ["ShardedTableStore"]


class Tables(Protocol):
    """What is asked of tables that are spread over ranks; see `ShardedTables`."""

    configs: list[BaseEmbeddingConfig]
    device: torch.device
    wire: Wire | None
    parts: nn.ModuleDict

    def block(self, config: BaseEmbeddingConfig) -> Block | None: ...

    def is_here(self, table: str) -> bool: ...

    def shown_updates(self) -> ShownUpdates: ...

    def reset_rows(self, table: str, rows: Tensor) -> None: ...


class ShardedTableStore:
    """A `torchrec.modules.collection.TableStore` of tables that are spread over ranks.

    Shards and counts are those of this rank. Rows are read and written by all ranks alike, which
    call with the same arguments.

    Args:
        tables: the tables.
        counts: of ids out of range that this rank's batches had, by table; changed.
    """

    def __init__(self, tables: Tables, counts: Tensor) -> None:
        self._tables, self._counts = tables, counts

    @property
    def device(self) -> torch.device:
        """The device of this rank's parts."""
        return self._tables.device

    @property
    def fused_optimizer(self) -> KeyedOptimizer:
        """The optimizer of the tables that are updated in the backward pass."""
        return EmbeddingFusedOptimizer(self._tables.shown_updates)

    def table_configs(self) -> Sequence[BaseEmbeddingConfig]:
        """Return the tables, as a whole."""
        return self._tables.configs

    def embedding_names_by_table(self) -> list[list[str]]:
        """Return, for each table, the names of the outputs of its features."""
        return embedding_names_by_table(self._tables.configs)

    def _number(self, table: str) -> int:
        names = [config.name for config in self._tables.configs]
        if table not in names:
            raise ValueError(f"`table` should be one of {names}. Received {table!r}.")
        return names.index(table)

    def _part(self, table: str) -> tuple[BaseEmbeddingConfig, Tensor, Block]:
        """Return a table, this rank's weights of it, and which rows and columns they are; perhaps none."""
        config = self._tables.configs[self._number(table)]
        block = self._tables.block(config)
        weight = self._tables.parts.get_parameter(f"{table}.weight")
        return config, weight, Block((), ()) if block is None else block

    def table_shards(self, table: str) -> list[TableShard]:
        """Return the parts of a table that this rank has.

        Args:
            table: its name.

        Raises:
            ValueError: for an unknown table.
        """
        _, weight, block = self._part(table)
        shards = []
        for rows in block.rows:
            for columns in block.columns:
                row, column = block.row_of(rows), block.column_of(columns)
                part = weight[row : row + len(rows), column : column + len(columns)]
                shards.append(TableShard(rows, columns, part))
        return shards

    def out_of_range_counts(self, reset: bool = False) -> dict[str, int]:
        """Return how many ids of this rank's batches were outside the rows of each table.

        Args:
            reset: start again from 0.
        """
        names = [config.name for config in self._tables.configs]
        return counts_by_table(self._counts, names, reset)

    def set_out_of_range_counts(self, counts: Mapping[str, int]) -> None:
        """Go on counting ids out of range from other numbers, say without those of an evaluation.

        Args:
            counts: by table; others stay as they are.

        Raises:
            ValueError: for an unknown table.
        """
        set_counts(self._counts, counts, self._number)

    def load_rows(
        self, table: str, ids: Tensor, vectors: Tensor, reset_state: bool = False
    ) -> None:
        """Write rows of a table, each rank those parts that it has.

        Args:
            table: name of the table.
            ids: rows of the table, ``(N,)``, distinct.
            vectors: ``(N, D)``, of any floating type.
            reset_state: also set the state of the fused optimizer for these rows to what it was
                before any update.

        Raises:
            ValueError: for an unknown table, shapes that do not fit, or a row that comes twice.
            IndexError: for a row that the table does not have.
        """
        config, weight, block = self._part(table)
        ids = check_rows(config, ids)
        require_type(vectors, f"`vectors` of table '{table}'", Tensor)
        if tuple(vectors.shape) != (len(ids), config.embedding_dim):
            raise ValueError(
                f"`vectors` of table '{table}' should have the shape {(len(ids), config.embedding_dim)}. "
                f"Received {tuple(vectors.shape)}."
            )
        if len(ids.unique()) != len(ids):
            raise ValueError(f"`ids` of table '{table}' should be distinct.")
        places, chosen = _found(block, ids)
        if not len(places):
            return
        mine = torch.cat([vectors[chosen, c.start : c.stop] for c in block.columns], dim=1)
        with torch.no_grad():
            weight.index_copy_(0, places, mine.to(weight))
        update = owner_of(weight)
        if reset_state and isinstance(update, TableUpdate):
            update.reset_state(places)

    def export_rows(self, table: str, ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Read rows of a table, on every rank.

        Args:
            table: name of the table.
            ids: rows of the table, ``(N,)``. Default: all.

        Returns:
            The rows, int64 ``(N,)``, and a copy of their vectors, ``(N, D)``.

        Raises:
            ValueError: for an unknown table.
            IndexError: for a row that the table does not have.
        """
        config, weight, block = self._part(table)
        ids = torch.arange(config.num_rows) if ids is None else check_rows(config, ids)
        places, chosen = _found(block, ids)
        # In float32, which holds all that tables can be of; a number is on one rank, the others have zeros.
        found = torch.zeros((len(ids), config.embedding_dim), dtype=torch.float32)
        at = 0
        for columns in block.columns:
            part = weight.detach()[places, at : at + len(columns)].float()
            found[chosen, columns.start : columns.stop] = part
            at += len(columns)
        if self._tables.wire is not None and not self._tables.is_here(table):
            self._tables.wire.reduce(found, f"rows of table '{table}' that are read")
        return ids, found.to(weight.dtype)

    def reset_rows(self, table: str, rows: Tensor) -> None:
        """Make rows as they were before any training, each rank those parts that it has.

        Args:
            table: name of the table.
            rows: int64 ``(N,)``, distinct.

        Raises:
            ValueError: for an unknown table.
            IndexError: for a row that the table does not have.
        """
        self._tables.reset_rows(table, check_rows(self._part(table)[0], rows))


def _found(block: Block, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of a block that some rows of its table are, and which of these they are."""
    places, chosen = [ids.new_empty(0)], [ids.new_empty(0)]
    for rows in block.rows:
        here = ((ids >= rows.start) & (ids < rows.stop)).nonzero()[:, 0]
        places.append(ids[here] - rows.start + block.row_of(rows))
        chosen.append(here)
    return torch.cat(places), torch.cat(chosen)
