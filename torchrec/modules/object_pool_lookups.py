"""What keeps the objects of a pool, for modules that register its tensors under names of their own.

A look-up has no state itself: whoever makes one registers what ``states_to_register`` gives.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import NoReturn

import torch
from torch import Tensor, nn

from torchrec.fx.proxies import LeafModule, is_proxy
from torchrec.modules.keyed_jagged_tensor_pool import KeyedJaggedTensorPool
from torchrec.modules.tensor_pool import TensorPool
from torchrec.ops.jagged import jagged_index_select
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

__all__ = [
    "KeyedJaggedTensorPoolLookup",
    "TensorJaggedIndexSelectLookup",
    "TensorLookup",
    "TensorPoolLookup",
    "UVMCachingFloatLookup",
    "UVMCachingInt32Lookup",
    "UVMCachingInt64Lookup",
]


class TensorPoolLookup(LeafModule, nn.Module, abc.ABC):
    """Keeps vectors in numbered places.

    Args:
        pool_size: number of vectors, E.
        dim: their length, D.
        dtype: their dtype.
        device: where they are.
    """

    def __init__(self, pool_size: int, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self._pool_size = pool_size
        self._dim = dim
        self._dtype = dtype
        self._device = device

    @abc.abstractmethod
    def lookup(self, ids: Tensor) -> Tensor:
        """Read vectors, ``(N, D)``.

        Args:
            ids: their places, ``(N,)``.
        """

    @abc.abstractmethod
    def update(self, ids: Tensor, values: Tensor) -> None:
        """Write vectors.

        Args:
            ids: their places, ``(N,)``.
            values: ``(N, D)``.
        """

    @abc.abstractmethod
    def states_to_register(self) -> Iterator[tuple[str, Tensor]]:
        """Give the tensors that are kept, with their names."""

    @abc.abstractmethod
    def set_state(self, loaded_values: Tensor) -> None:
        """Write all vectors.

        Args:
            loaded_values: ``(E, D)``.
        """

    def forward(self, ids: Tensor) -> Tensor:
        """Read vectors, see `lookup`.

        Args:
            ids: their places.
        """
        if is_proxy(ids):
            traced: Tensor = self.recorded(ids)
            return traced
        return self.lookup(ids)


class TensorLookup(TensorPoolLookup):
    """Keeps vectors in one tensor, all 0 at first.

    Args:
        pool_size: number of vectors, E.
        dim: their length, D.
        dtype: their dtype.
        device: where they are.
        enable_uvm: without effect: memory that an accelerator shares with the host is not used.

    Example:
        >>> lookup = TensorLookup(4, 2, torch.float32, torch.device("cpu"))
        >>> lookup.update(torch.tensor([3]), torch.tensor([[1.0, 2.0]]))
        >>> lookup(torch.tensor([3, 0]))
        tensor([[1., 2.],
                [0., 0.]])
    """

    def __init__(
        self,
        pool_size: int,
        dim: int,
        dtype: torch.dtype,
        device: torch.device,
        enable_uvm: bool = False,
    ) -> None:
        super().__init__(pool_size, dim, dtype, device)
        # In a tuple it is no child, whose tensors would be registered here.
        self._held = (TensorPool(pool_size, dim, dtype, device, None, enable_uvm),)

    def lookup(self, ids: Tensor) -> Tensor:
        """Read vectors, see ``TensorPool.lookup``.

        Args:
            ids: their places.
        """
        return self._held[0].lookup(ids)

    def update(self, ids: Tensor, values: Tensor) -> None:
        """Write vectors, see ``TensorPool.update``.

        Args:
            ids: their places.
            values: ``(N, D)``.
        """
        self._held[0].update(ids, values)

    def states_to_register(self) -> Iterator[tuple[str, Tensor]]:
        """Give the tensor of all vectors, as ``_pool``."""
        yield "_pool", self._held[0].pool

    def set_state(self, loaded_values: Tensor) -> None:
        """Write all vectors.

        Args:
            loaded_values: ``(E, D)`` of the dtype of the pool.
        """
        every_id = torch.arange(self._pool_size, device=self._device)
        self._held[0].update(every_id, loaded_values.to(self._device))


class KeyedJaggedTensorPoolLookup(LeafModule, nn.Module, abc.ABC):
    """Keeps samples of jagged features in numbered places.

    Args:
        pool_size: number of samples, E.
        feature_max_lengths: feature -> length of its longest bag.
        is_weighted: whether each value has a weight.
        device: where they are.
    """

    def __init__(
        self,
        pool_size: int,
        feature_max_lengths: dict[str, int],
        is_weighted: bool,
        device: torch.device,
    ) -> None:
        super().__init__()
        self._pool_size = pool_size
        self._feature_max_lengths = feature_max_lengths
        self._is_weighted = is_weighted
        self._device = device

    @abc.abstractmethod
    def lookup(self, ids: Tensor) -> JaggedTensor:
        """Read samples: the bags of one after those of another.

        Args:
            ids: their places, ``(B,)``.
        """

    @abc.abstractmethod
    def update(self, ids: Tensor, values: JaggedTensor) -> None:
        """Write samples.

        Args:
            ids: their places, ``(B,)``.
            values: ``B * F`` bags, those of one sample after those of another.
        """

    @abc.abstractmethod
    def states_to_register(self) -> Iterator[tuple[str, Tensor]]:
        """Give the tensors that are kept, with their names."""

    def forward(self, ids: Tensor) -> JaggedTensor:
        """Read samples, see `lookup`.

        Args:
            ids: their places.
        """
        if is_proxy(ids):
            traced: JaggedTensor = self.recorded(ids)
            return traced
        return self.lookup(ids)


class TensorJaggedIndexSelectLookup(KeyedJaggedTensorPoolLookup):
    """Keeps samples of jagged features in tensors with a row for each, all empty at first.

    Args:
        pool_size: number of samples, E.
        values_dtype: of the values.
        feature_max_lengths: feature -> length of its longest bag.
        is_weighted: whether each value has a weight.
        device: where they are.

    Example:
        >>> lookup = TensorJaggedIndexSelectLookup(
        ...     4, torch.int64, {"a": 2, "b": 3}, False, torch.device("cpu")
        ... )
        >>> bags = JaggedTensor(torch.tensor([7, 8, 9]), lengths=torch.tensor([1, 2]))
        >>> lookup.update(torch.tensor([3]), bags)
        >>> lookup(torch.tensor([3, 0])).lengths()
        tensor([1, 2, 0, 0], dtype=torch.int32)
    """

    def __init__(
        self,
        pool_size: int,
        values_dtype: torch.dtype,
        feature_max_lengths: dict[str, int],
        is_weighted: bool,
        device: torch.device,
    ) -> None:
        super().__init__(pool_size, feature_max_lengths, is_weighted, device)
        pool = KeyedJaggedTensorPool(
            pool_size, feature_max_lengths, values_dtype, is_weighted, device
        )
        # In a tuple it is no child, whose tensors would be registered here.
        self._held = (pool,)

    def lookup(self, ids: Tensor) -> JaggedTensor:
        """Read samples.

        Args:
            ids: their places, ``(B,)``.

        Returns:
            ``B * F`` bags: those of one sample, in the order of ``feature_max_lengths``, after those of
            another.
        """
        samples = self._held[0].lookup(ids)
        weights = samples.weights_or_none()
        return self._transposed(
            samples.values(), samples.lengths(), weights, len(self._feature_max_lengths)
        )

    def update(self, ids: Tensor, values: JaggedTensor) -> None:
        """Write samples, see ``KeyedJaggedTensorPool.update``.

        Args:
            ids: their places, ``(B,)``.
            values: ``B * F`` bags, as `lookup` gives them.

        Raises:
            ValueError: there are not F bags an id.
        """
        keys = list(self._feature_max_lengths)
        if values.lengths().numel() != ids.numel() * len(keys):
            raise ValueError(
                f"`values` should have {len(keys)} bags for each of the {ids.numel()} ids. "
                f"Received {values.lengths().numel()}."
            )
        by_key = self._transposed(
            values.values(), values.lengths(), values.weights_or_none(), ids.numel()
        )
        samples = KeyedJaggedTensor(
            keys, by_key.values(), by_key.weights_or_none(), by_key.lengths(), stride=ids.numel()
        )
        self._held[0].update(ids, samples)

    def states_to_register(self) -> Iterator[tuple[str, Tensor]]:
        """Give ``values``, ``key_lengths`` and, if there are any, ``weights``."""
        yield from self._held[0].named_buffers()

    @staticmethod
    def _transposed(
        values: Tensor, lengths: Tensor, weights: Tensor | None, rows: int
    ) -> JaggedTensor:
        """Take a matrix of bags, whose ``rows`` lie one after another, column by column."""
        columns = lengths.numel() // max(rows, 1)
        order = torch.arange(lengths.numel(), device=lengths.device).view(rows, columns).T.flatten()
        taken, taken_lengths = jagged_index_select(values, lengths, order, values.size(0))
        if weights is not None:
            weights, _ = jagged_index_select(weights, lengths, order, values.size(0))
        return JaggedTensor(taken, weights, taken_lengths)


def _refuse_shared_memory(name: str, instead: type) -> NoReturn:
    raise NotImplementedError(
        f"{name} keeps a pool in memory that an accelerator shares with the host, which is not supported. "
        f"{instead.__name__} keeps it on one device."
    )


class UVMCachingFloatLookup(TensorPoolLookup):
    """Not supported: would keep vectors in memory that an accelerator shares with the host.

    Raises:
        NotImplementedError: always.
    """

    def __new__(cls, *args: object, **kwargs: object) -> NoReturn:
        """Refuse."""
        _refuse_shared_memory(cls.__name__, TensorLookup)


class UVMCachingInt64Lookup(KeyedJaggedTensorPoolLookup):
    """Not supported: would keep samples in memory that an accelerator shares with the host.

    Raises:
        NotImplementedError: always.
    """

    def __new__(cls, *args: object, **kwargs: object) -> NoReturn:
        """Refuse."""
        _refuse_shared_memory(cls.__name__, TensorJaggedIndexSelectLookup)


class UVMCachingInt32Lookup(KeyedJaggedTensorPoolLookup):
    """Not supported: would keep samples in memory that an accelerator shares with the host.

    Raises:
        NotImplementedError: always.
    """

    def __new__(cls, *args: object, **kwargs: object) -> NoReturn:
        """Refuse."""
        _refuse_shared_memory(cls.__name__, TensorJaggedIndexSelectLookup)
