"""What pools have in common: objects of one kind in numbered places, read and written many at a time."""

from __future__ import annotations

import abc
from typing import Generic, TypeVar

from torch import Tensor, nn

__all__ = ["ObjectPool"]

T = TypeVar("T")


class ObjectPool(abc.ABC, nn.Module, Generic[T]):
    """A fixed number of objects, each with an id from 0 on."""

    @abc.abstractmethod
    def update(self, ids: Tensor, values: T) -> None:
        """Write objects.

        Args:
            ids: their places, ``(N,)``. Of an id that comes twice the last object counts.
            values: N objects.
        """

    @abc.abstractmethod
    def lookup(self, ids: Tensor) -> T:
        """Read objects.

        Args:
            ids: their places, ``(N,)``.
        """

    @property
    @abc.abstractmethod
    def pool_size(self) -> int:
        """How many objects there are."""
