"""What one rank holds of tables: its parts, and blocks of them as tables of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec.distributed.split_columns import (
    RowSumExchange,
    SplitColumnsStep,
    SplitColumnsUpdate,
)
from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.modules.tables import Tables, has_sparse_gradient
from torchrec.optim.joint_update import JointUpdate
from torchrec.optim.table_update import TableUpdate

__all__ = ["BlockTables", "Part", "new_part"]


class _Part(nn.Module):
    """Holds this rank's part of a table."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


class _SparseCopy(nn.EmbeddingBag):
    """Holds a copy of a table with sparse gradients: DistributedDataParallel asks modules of this kind for them."""

    weight: nn.Parameter

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight.shape[0], weight.shape[1], sparse=True, _weight=weight)


Part = _Part | _SparseCopy


def new_part(config: BaseEmbeddingConfig, weight: Tensor, is_replicated: bool) -> Part:
    """Return what holds a rank's part of a table as ``weight``.

    Args:
        config: the table.
        weight: the part.
        is_replicated: whether it is a copy of the whole, and other ranks have one as well.

    Raises:
        ValueError: if there is nobody to add gradients of copies up.
    """
    adds_sparse = is_replicated and has_sparse_gradient(config)
    if adds_sparse and weight.dtype == torch.float16:
        raise ValueError(
            f"Table '{config.name}' should have dense gradients, another type or another sharding type: PyTorch "
            "adds no sparse gradients of copies up (data_parallel) in float16. Received "
            f"{'sparse=True' if config.optimizer is None else 'an `optimizer` without `lr`'}."
        )
    part = _SparseCopy(weight) if adds_sparse else _Part(weight)
    part.weight.requires_grad_(config.enable_grad)
    return part


class BlockTables(Tables):
    """What one rank holds of the tables of a collection.

    Args:
        configs: the blocks as tables.
        modules: what holds the weight of each.
        prefix: of the names of the weights.
        row_sums: how tables are updated whose columns are split, by rules that look at rows as a whole.
    """

    def __init__(
        self,
        configs: Sequence[BaseEmbeddingConfig],
        modules: Sequence[nn.Module],
        prefix: str,
        row_sums: RowSumExchange | None,
    ) -> None:
        self._row_sums = row_sums
        self.split: SplitColumnsUpdate | None = None
        super().__init__(configs, modules, prefix, partial=True)

    def bind(self) -> None:
        """Meet the weights, and find what takes part for this rank in updates that ranks make together."""
        super().bind()
        if self._row_sums is not None:
            split = [joint for joint, _ in self._joints if isinstance(joint, SplitColumnsUpdate)]
            if split:
                (self.split,) = split
            elif self.split is None or self.split.updates:
                self.split = SplitColumnsUpdate([], self._row_sums)  # this rank has none of them

    def _apart(self, numbers: list[int]) -> list[list[int]]:
        split = [t for t in numbers if self._is_split(t)]
        rest = [t for t in numbers if not self._is_split(t)]
        return [each for each in (rest, split) if each]

    def _is_split(self, t: int) -> bool:
        name, sums = self.configs[t].name, self._row_sums
        return sums is not None and name in sums.tables and sums.sums_of(name) > 0

    def _new_joint(self, numbers: list[int], updates: list[TableUpdate]) -> JointUpdate:
        name, sums = self.configs[numbers[0]].name, self._row_sums
        if sums is None or name not in sums.tables:
            return super()._new_joint(numbers, updates)
        if sums.sums_at_step(name):
            return SplitColumnsStep(updates[0], sums)
        return SplitColumnsUpdate(updates, sums) if sums.sums_of(name) else JointUpdate(updates)
