"""Pools of vectors whose rows are spread over ranks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchrec.distributed.object_pool import ShardedObjectPool
from torchrec.distributed.types import (
    ModuleSharder,
    ObjectPoolShardingPlan,
    ShardingEnv,
)
from torchrec.modules.tensor_pool import TensorPool, check_vectors

__all__ = ["ShardedTensorPool", "TensorPoolSharder"]


class ShardedTensorPool(ShardedObjectPool[Tensor]):
    """A `TensorPool` whose rows are spread over ranks, all 0 at first; see `ShardedObjectPool`.

    Args:
        env: the ranks.
        pool_size: number of vectors, E.
        dim: their length, D.
        dtype: their dtype.
        sharding_plan: where the rows go.
        device: where this rank has its rows. Default: the CPU.
        enable_uvm: without effect: memory that an accelerator shares with the host is not used.

    Example:
        >>> from torchrec.distributed.types import ObjectPoolShardingType
        >>> plan = ObjectPoolShardingPlan(ObjectPoolShardingType.ROW_WISE)
        >>> env = ShardingEnv.from_local(world_size=1, rank=0)
        >>> pool = ShardedTensorPool(env, 4, 2, torch.float32, plan)
        >>> pool.update(torch.tensor([3]), torch.tensor([[1.0, 2.0]]))
        >>> pool.lookup(torch.tensor([3, 0])).wait().tolist()
        [[1.0, 2.0], [0.0, 0.0]]
    """

    def __init__(
        self,
        env: ShardingEnv,
        pool_size: int,
        dim: int,
        dtype: torch.dtype,
        sharding_plan: ObjectPoolShardingPlan,
        device: torch.device | None = None,
        enable_uvm: bool = False,
    ) -> None:
        whole = TensorPool(pool_size, dim, dtype, torch.device("meta"))
        super().__init__(dict(whole.named_buffers()), env, sharding_plan, device)
        self._dim, self._dtype = dim, dtype

    @property
    def dim(self) -> int:
        """The length of the vectors."""
        return self._dim

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the vectors."""
        return self._dtype

    @property
    def unsharded_module_type(self) -> type[nn.Module]:
        """What it was before it was sharded."""
        return TensorPool

    def _rows_from(self, values: Tensor, count: int) -> list[Tensor]:
        check_vectors("values", values, count, self._dim, self._dtype)
        return [values]

    def _objects_from(self, rows: list[Tensor]) -> Tensor:
        return rows[0]


class TensorPoolSharder(ModuleSharder[TensorPool]):
    """Spreads the rows of a `TensorPool` over ranks."""

    def __init__(self) -> None:
        super().__init__()

    def shard(  # type: ignore[override]
        self,
        module: TensorPool,
        plan: ObjectPoolShardingPlan,
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedTensorPool:
        """Return the pool spread over ranks, with what is in it.

        Args:
            module: the pool; on all ranks the same.
            plan: where the rows go.
            env: the ranks.
            device: where this rank has its rows. Default: the CPU.
            module_fqn: its path in the model.
        """
        pool = ShardedTensorPool(env, module.pool_size, module.dim, module.dtype, plan, device)
        pool.take(module)
        return pool

    @property
    def module_type(self) -> type[TensorPool]:
        """What it shards."""
        return TensorPool

    @property
    def plan_type(self) -> type[ObjectPoolShardingPlan]:
        """What its plans are."""
        return ObjectPoolShardingPlan
