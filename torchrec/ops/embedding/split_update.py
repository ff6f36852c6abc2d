"""Updates by row-wise Adagrad of tables whose columns lie in several places, in two halves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchrec.ops.embedding import native
from torchrec.ops.embedding.lookup import Bags, Ids, Updater
from torchrec.ops.embedding.spec import LookupSpec

__all__ = ["SplitUpdate"]


class SplitUpdate(Updater):
    """Takes the gradient of one look-up and says what it knows of its rows; the rest of it waits for what all know.

    Row-wise Adagrad goes by the mean square of a row's gradient. Where some columns of a table are here, each half of
    the update is one call of the kernel: the first finds the mean squares over these columns, as shares of those of
    whole rows, the second updates by the sums. Those who have the same ids in the same bags have their numbers in the
    same order. On the CPU, by the kernels, which know no other way to hold an update than to have sorted its ids.

    Args:
        states: of all tables, one behind the other.
        hyper: their hyper-parameters, a row a table.
        shares: of the columns of each table, those that are here.

    Example:
        >>> import torch
        >>> from torchrec.ops.embedding import new_hyper
        >>> SplitUpdate.takes([torch.zeros(3, 4, dtype=torch.float64)])
        False
    """

    def __init__(self, states: list[Tensor], hyper: Tensor, shares: Sequence[float]) -> None:
        self._states, self._hyper, self._shares = states, hyper, shares
        self._held: Any = None
        self._weights: list[Tensor] = []
        # The kernel has their addresses only.
        self._kept: Any = None

    @staticmethod
    def takes(weights: Sequence[Tensor]) -> bool:
        """Return whether tables with these weights can be updated in halves."""
        return native.has_kernels_for(weights)

    def update_bags(
        self, grad: Tensor, weights: list[Tensor], spec: LookupSpec, bags: Bags
    ) -> None:
        """Make the first half, by the gradient of a pooled look-up, ``(B, width)``."""
        given = weights, self._states, self._hyper, self._shares
        self._weights = weights
        self._held, self._kept = native.split_bag_update(grad, *given, *bags.arguments(spec))

    def update_sequences(
        self, grads: list[Tensor | None], weights: list[Tensor], spec: LookupSpec, ids: Ids
    ) -> None:
        """Make the first half, by the gradients of a look-up of sequences, each ``(count, D)``, or None."""
        given = weights, self._states, self._hyper, self._shares
        self._weights = weights
        self._held, self._kept = native.split_sequence_update(grads, *given, *ids.arguments(spec))

    @property
    def counts(self) -> list[int]:
        """How many numbers each table has."""
        counts: list[int] = self._held.counts
        return counts

    def numbers(self) -> Tensor:
        """Return the shares of mean squares, table after table, float32 ``(sum of counts,)``."""
        found = torch.empty(sum(self.counts), dtype=torch.float32, device="cpu")
        self._held.write(found.data_ptr())
        return found

    def finish(self, numbers: Tensor) -> None:
        """Update the tables.

        Args:
            numbers: the mean squares of whole rows, as many as `numbers`, in their order.
        """
        numbers = numbers.contiguous()
        self._held.finish(numbers.data_ptr(), numbers.numel())
        # The kernels write behind PyTorch's back; autograd has to know.
        torch.autograd.graph.increment_version([*self._weights, *self._states, self._hyper])
