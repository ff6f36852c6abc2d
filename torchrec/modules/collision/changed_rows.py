"""Rows that changed hands, added up until somebody asks for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class ChangedRows:
    """Rows that another id holds than before, in bounded memory however long nobody asks.

    Args:
        size: how many different rows there can be.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._parts: list[Tensor] = []

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, rows: Tensor) -> None:
        """Add the rows of one eviction, which may be none: that there was one is news."""
        if rows.numel() or not self._parts:
            self._parts.append(rows)
        if len(self._parts) > 1 and sum(part.numel() for part in self._parts) > self._size:
            self._parts = [torch.cat(self._parts).unique()]

    def rows(self) -> Tensor | None:
        """Return the rows, distinct; None: there was no eviction."""
        if len(self._parts) > 1:
            self._parts = [torch.cat(self._parts).unique()]
        return self._parts[0] if self._parts else None

    def take(self) -> Tensor | None:
        """Return the rows, distinct, and start anew; None: there was no eviction."""
        rows, self._parts = self.rows(), []
        return rows

    def move(self, to: Callable[[Tensor], Tensor]) -> None:
        """Move the rows, as ``nn.Module._apply`` moves tensors."""
        self._parts = [to(part) for part in self._parts]
