"""Updates by row-wise Adagrad of tables whose columns lie in several places, in two halves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchrec.ops.embedding import native
from torchrec.ops.embedding.gradients import BagGradient, LookupGradient

__all__ = ["SplitUpdate"]


class SplitUpdate:
    """Takes the gradient of one look-up and says what it knows of its rows; the rest of it waits for what all know.

    Row-wise Adagrad goes by the mean square of a row's gradient. Where some columns of a table are here, each half of
    the update is one call of the kernel: the first finds the mean squares over these columns, as shares of those of
    whole rows, the second updates by the sums. Those who have the same ids in the same bags have their numbers in the
    same order. On the CPU, by the kernels, which know no other way to hold an update than to have sorted its ids.

    Args:
        gradient: of the look-up, by which the first half is made.
        states: of all tables, one behind the other.
        hyper: their hyper-parameters, a row a table.
        shares: of the columns of each table, those that are here.

    Example:
        >>> import torch
        >>> from torchrec.ops.embedding import new_hyper
        >>> SplitUpdate.takes([torch.zeros(3, 4, dtype=torch.float64)])
        False
    """

    def __init__(
        self,
        gradient: LookupGradient,
        states: list[Tensor],
        hyper: Tensor,
        shares: Sequence[float],
    ) -> None:
        self._weights, self._states, self._hyper = gradient.weights, states, hyper
        spec, given = gradient.spec, (gradient.weights, states, hyper, shares)
        if isinstance(gradient, BagGradient):
            asked = spec.tensor, *gradient.bags, spec.num_keys
            halves = native.split_bag_update(gradient.grad, *given, *asked)
        else:
            ids = gradient.ids
            in_slots = spec.tensor, ids.values, ids.starts, ids.counts
            halves = native.split_sequence_update(gradient.grads, *given, *in_slots)
        self._held: Any = halves[0]
        self._kept: Any = halves[1]  # the kernel has their addresses only

    @staticmethod
    def takes(weights: Sequence[Tensor]) -> bool:
        """Return whether tables with these weights can be updated in halves."""
        return native.has_kernels_for(weights)

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
