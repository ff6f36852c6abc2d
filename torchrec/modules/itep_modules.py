"""In-training embedding pruning: the names, and what remains of them where nothing is pruned.

Pruning maps many ids to few rows, and gives the rows of ids that came seldom to others. Maps of ids with eviction do
that here: see ``torchrec.modules.mc_modules``.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from torchrec.modules.pruning_logger import PruningLogger, PruningLoggerDefault
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

__all__ = ["GenericITEPModule", "RowwiseShardedITEPModule"]


def _refuse() -> NoReturn:
    raise NotImplementedError(
        "In-training embedding pruning is not supported. With `enable_pruning=False` ids are looked up as they are; "
        "ManagedCollisionEmbeddingBagCollection maps many ids to few rows and evicts those that come seldom."
    )


class GenericITEPModule(nn.Module):
    """Passes ids on. Pruning is not supported, and has to be switched off.

    Args:
        table_name_to_unpruned_hash_sizes: table -> the range of its ids.
        lookups: not read.
        enable_pruning: must be False.
        pruning_interval: steps between prunings; not read.
        pg: not read.
        table_name_to_sharding_type: not read.
        pruning_logger_type: the logger; nothing is pruned, so nothing logged.

    Raises:
        NotImplementedError: ``enable_pruning`` is True, the default of the API.

    Example:
        >>> module = GenericITEPModule({"t": 1000}, enable_pruning=False)
        >>> module(KeyedJaggedTensor.from_lists({"f": [[7]]}), cur_iter=0).to_lists()
        {'f': [[7]]}
    """

    def __init__(
        self,
        table_name_to_unpruned_hash_sizes: dict[str, int],
        lookups: list[nn.Module] | None = None,
        enable_pruning: bool = True,
        pruning_interval: int = 1001,
        pg: ProcessGroup | None = None,
        table_name_to_sharding_type: dict[str, str] | None = None,
        pruning_logger_type: type[PruningLogger] = PruningLoggerDefault,
    ) -> None:
        if enable_pruning:
            _refuse()
        super().__init__()
        self.table_name_to_unpruned_hash_sizes = table_name_to_unpruned_hash_sizes
        self.enable_pruning = enable_pruning
        self.pruning_interval = pruning_interval
        self.pruning_logger = pruning_logger_type

    def forward(self, sparse_features: KeyedJaggedTensor, cur_iter: int) -> KeyedJaggedTensor:
        """Return the ids as they are.

        Args:
            sparse_features: ids.
            cur_iter: the step.
        """
        return sparse_features

    def flush_uvm_cache(self) -> None:
        """Do nothing: there is no cache."""

    def init_itep_state(self) -> None:
        """Refuse: there is no state."""
        _refuse()

    def create_itep_buffers(
        self,
        buffer_size: int,
        buffer_offsets: list[int],
        table_names: list[str],
        emb_sizes: list[int],
    ) -> None:
        """Refuse: there are no buffers.

        Args:
            buffer_size: their size.
            buffer_offsets: where those of each table begin.
            table_names: the tables.
            emb_sizes: their rows.
        """
        _refuse()

    def get_table_hash_sizes(self, table: object) -> tuple[int, int]:
        """Refuse: there are no pruned tables.

        Args:
            table: a shard.
        """
        _refuse()

    def get_remap_info(self, features: KeyedJaggedTensor) -> list[Tensor]:
        """Refuse: ids are not mapped.

        Args:
            features: ids.
        """
        _refuse()

    def get_full_values_list(self, features: KeyedJaggedTensor) -> list[Tensor]:
        """Refuse: ids are not mapped.

        Args:
            features: ids.
        """
        _refuse()

    def reset_weight_momentum(self, pruned_indices: Tensor, pruned_indices_offsets: Tensor) -> None:
        """Refuse: no row is pruned.

        Args:
            pruned_indices: rows.
            pruned_indices_offsets: where those of each table begin.
        """
        _refuse()

    def print_itep_eviction_stats(
        self, pruned_indices_offsets: Tensor, pruned_indices_total_length: Tensor, cur_iter: int
    ) -> None:
        """Refuse: no row is pruned.

        Args:
            pruned_indices_offsets: where the rows of each table begin.
            pruned_indices_total_length: their number.
            cur_iter: the step.
        """
        _refuse()


class RowwiseShardedITEPModule(GenericITEPModule):
    """Passes ids on, for tables whose rows are spread over ranks. Pruning is not supported.

    Args and errors: see `GenericITEPModule`.
    """

    def get_table_hash_sizes(self, table: object, num_gpus: int = 8) -> tuple[int, int]:
        """Refuse: there are no pruned tables.

        Args:
            table: a shard.
            num_gpus: number of ranks.
        """
        _refuse()

    def get_buffer_param(self, buffer_params: Tensor, idx: int) -> Tensor:
        """Refuse: there are no buffers.

        Args:
            buffer_params: those of all tables.
            idx: a table.
        """
        _refuse()

    def get_itp_state_dict(
        self,
        embedding_tables: list[Any],
        params: Tensor,
        pg: ProcessGroup | None = None,
        destination: dict[str, Any] | None = None,
        prefix: str = "",
        suffix: str = "",
        dtype: torch.dtype = torch.float32,
    ) -> dict[str, Any]:
        """Refuse: there is no state.

        Args:
            embedding_tables: shards.
            params: what to save of them.
            pg: the ranks.
            destination: what to add it to.
            prefix: of its names.
            suffix: of its names.
            dtype: of what is saved.
        """
        _refuse()
