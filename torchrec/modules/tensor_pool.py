"""A pool of vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrec.fx.proxies import LeafModule, is_proxy
from torchrec.modules.object_pool import ObjectPool
from torchrec.modules.pool_rows import check_ids, check_size, last_of_each

__all__ = ["TensorPool", "check_vectors"]


class TensorPool(ObjectPool[Tensor], LeafModule):
    """Vectors of one length in numbered places: values to be looked up that are not trained.

    All are 0 at first. They are part of the state under the name ``_pool``.

    Args:
        pool_size: number of vectors, E.
        dim: their length, D.
        dtype: their dtype.
        device: where they are. Default: PyTorch's default device.
        loaded_values: what to start from, ``(E, D)`` of ``dtype``; not copied if it is on the device.
        enable_uvm: without effect: memory that an accelerator shares with the host is not used.

    Raises:
        ValueError: for sizes below 1, or ``loaded_values`` of another shape.
        TypeError: for ``loaded_values`` of another dtype.

    Example:
        >>> pool = TensorPool(pool_size=4, dim=2, dtype=torch.float32)
        >>> pool.update(torch.tensor([3, 1]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> pool.lookup(torch.tensor([1, 0, 1]))
        tensor([[3., 4.],
                [0., 0.],
                [3., 4.]])
    """

    _pool: Tensor

    def __init__(
        self,
        pool_size: int,
        dim: int,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
        loaded_values: Tensor | None = None,
        enable_uvm: bool = False,
    ) -> None:
        super().__init__()
        check_size("pool_size", pool_size)
        check_size("dim", dim)
        target = torch.get_default_device() if device is None else device
        if loaded_values is None:
            pool = torch.zeros((pool_size, dim), dtype=dtype, device=target)
        else:
            check_vectors("loaded_values", loaded_values, pool_size, dim, dtype)
            pool = loaded_values.detach().to(target)
        self.register_buffer("_pool", pool)

    @property
    def pool_size(self) -> int:
        """How many vectors there are."""
        return self._pool.size(0)

    @property
    def dim(self) -> int:
        """The length of the vectors."""
        return self._pool.size(1)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the vectors."""
        return self._pool.dtype

    @property
    def device(self) -> torch.device:
        """Where the vectors are."""
        return self._pool.device

    @property
    def pool(self) -> Tensor:
        """All vectors, ``(E, D)``."""
        return self._pool

    def lookup(self, ids: Tensor) -> Tensor:
        """Read vectors.

        Args:
            ids: their places, int32 or int64 ``(N,)``.

        Returns:
            A copy of them, ``(N, D)``.

        Raises:
            IndexError: for an id that the pool does not have. A graph that was compiled, and an
                accelerator, raise a RuntimeError.
        """
        if is_proxy(ids):
            traced: Tensor = self.recorded(ids)
            return traced
        check_ids(ids, self.pool_size)
        return self._pool.index_select(0, ids)

    def update(self, ids: Tensor, values: Tensor) -> None:
        """Write vectors.

        Args:
            ids: their places, int32 or int64 ``(N,)``. Of an id that comes twice the last one counts.
            values: ``(N, D)`` of the dtype of the pool.

        Raises:
            IndexError: for an id that the pool does not have.
            ValueError: for values of another shape.
            TypeError: for values of another dtype.
        """
        check_ids(ids, self.pool_size)
        check_vectors("values", values, ids.size(0), self.dim, self.dtype)
        distinct, last = last_of_each(ids)
        self._pool.index_copy_(0, distinct.long(), values.detach().index_select(0, last))

    def forward(self, ids: Tensor) -> Tensor:
        """Read vectors, see `lookup`.

        Args:
            ids: their places.
        """
        return self.lookup(ids)


def check_vectors(name: str, values: Tensor, rows: int, dim: int, dtype: torch.dtype) -> None:
    """Raise for vectors that a pool cannot hold.

    Args:
        name: of the argument.
        values: should be ``(rows, dim)``.
        rows: how many there should be.
        dim: how long.
        dtype: of which type.
    """
    if values.shape != (rows, dim):
        raise ValueError(f"`{name}` should be ({rows}, {dim}). Received {tuple(values.shape)}.")
    if values.dtype != dtype:
        raise TypeError(f"`{name}` should be of {dtype}. Received {values.dtype}.")
