"""Pools of samples of jagged features whose rows are spread over ranks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchrec.distributed.object_pool import ShardedObjectPool
from torchrec.distributed.types import (
    ModuleSharder,
    ObjectPoolShardingPlan,
    ShardingEnv,
)
from torchrec.modules.keyed_jagged_tensor_pool import KeyedJaggedTensorPool
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

__all__ = ["KeyedJaggedTensorPoolSharder", "ShardedKeyedJaggedTensorPool"]


class ShardedKeyedJaggedTensorPool(ShardedObjectPool[KeyedJaggedTensor]):
    """A `KeyedJaggedTensorPool` whose samples are spread over ranks, all empty at first; see `ShardedObjectPool`.

    A sample is sent with room for its longest bags.

    Args:
        pool_size: number of samples, E.
        feature_max_lengths: feature -> length of its longest bag.
        values_dtype: of the values.
        is_weighted: whether each value has a weight, float32.
        sharding_env: the ranks.
        sharding_plan: where the samples go.
        device: where this rank has its samples. Default: the CPU.
        enable_uvm: without effect: memory that an accelerator shares with the host is not used.

    Example:
        >>> from torchrec.distributed.types import ObjectPoolShardingType
        >>> plan = ObjectPoolShardingPlan(ObjectPoolShardingType.ROW_WISE)
        >>> env = ShardingEnv.from_local(world_size=1, rank=0)
        >>> pool = ShardedKeyedJaggedTensorPool(4, {"a": 2}, torch.int64, False, env, plan)
        >>> pool.update(torch.tensor([3]), KeyedJaggedTensor.from_lists({"a": [[7, 8]]}))
        >>> pool.lookup(torch.tensor([3, 0])).to_lists()
        {'a': [[7, 8], []]}
    """

    def __init__(
        self,
        pool_size: int,
        feature_max_lengths: dict[str, int],
        values_dtype: torch.dtype,
        is_weighted: bool,
        sharding_env: ShardingEnv,
        sharding_plan: ObjectPoolShardingPlan,
        device: torch.device | None = None,
        enable_uvm: bool = False,
    ) -> None:
        whole = KeyedJaggedTensorPool(
            pool_size, feature_max_lengths, values_dtype, is_weighted, torch.device("meta")
        )
        super().__init__(dict(whole.named_buffers()), sharding_env, sharding_plan, device)
        self._feature_max_lengths = feature_max_lengths
        self._values_dtype, self._is_weighted = values_dtype, is_weighted

    @property
    def feature_max_lengths(self) -> dict[str, int]:
        """Feature -> length of its longest bag."""
        return self._feature_max_lengths

    @property
    def values_dtype(self) -> torch.dtype:
        """The dtype of the values."""
        return self._values_dtype

    @property
    def is_weighted(self) -> bool:
        """Whether each value has a weight."""
        return self._is_weighted

    @property
    def unsharded_module_type(self) -> type[nn.Module]:
        """What it was before it was sharded."""
        return KeyedJaggedTensorPool

    def _batch_pool(self, count: int) -> KeyedJaggedTensorPool:
        """Return a pool with room for a batch: what makes rows of samples, and samples of rows."""
        return KeyedJaggedTensorPool(
            max(count, 1),
            self._feature_max_lengths,
            self._values_dtype,
            self._is_weighted,
            self.device,
        )

    def _rows_from(self, values: KeyedJaggedTensor, count: int) -> list[Tensor]:
        batch = self._batch_pool(count)
        batch.update(torch.arange(count, device=self.device), values)
        return [state[:count] for state in batch.buffers()]

    def _objects_from(self, rows: list[Tensor]) -> KeyedJaggedTensor:
        count = len(rows[0])
        batch = self._batch_pool(count)
        for state, mine in zip(batch.buffers(), rows, strict=True):
            state[:count] = mine
        return batch.lookup(torch.arange(count, device=self.device))


class KeyedJaggedTensorPoolSharder(ModuleSharder[KeyedJaggedTensorPool]):
    """Spreads the samples of a `KeyedJaggedTensorPool` over ranks."""

    def __init__(self) -> None:
        super().__init__()

    def shard(  # type: ignore[override]
        self,
        module: KeyedJaggedTensorPool,
        plan: ObjectPoolShardingPlan,
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedKeyedJaggedTensorPool:
        """Return the pool spread over ranks, with what is in it.

        Args:
            module: the pool; on all ranks the same.
            plan: where the samples go.
            env: the ranks.
            device: where this rank has its samples. Default: the CPU.
            module_fqn: its path in the model.
        """
        pool = ShardedKeyedJaggedTensorPool(
            module.pool_size,
            module.feature_max_lengths,
            module.values_dtype,
            module.is_weighted,
            env,
            plan,
            device,
        )
        pool.take(module)
        return pool

    @property
    def module_type(self) -> type[KeyedJaggedTensorPool]:
        """What it shards."""
        return KeyedJaggedTensorPool

    @property
    def plan_type(self) -> type[ObjectPoolShardingPlan]:
        """What its plans are."""
        return ObjectPoolShardingPlan
