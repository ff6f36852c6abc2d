"""Searches in sorted tensors by gathers and comparisons alone, which every runtime has."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def count_at_most(ordered: Tensor, wanted: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Count, in a part of a sorted tensor, the entries that are not above each of some values.

    A binary search with as many steps as the longest part could need, whatever is found: no step depends on the data.

    Args:
        ordered: ascending within each part, one entry or more.
        wanted: (N,), of the same dtype.
        first: int64 (N,), where the part of each begins.
        last: int64 (N,), where it ends: the position behind it.

    Returns:
        int64 (N,): counted from ``first``.

    Example:
        >>> ordered = torch.tensor([2, 4, 6])
        >>> wanted = torch.tensor([1, 4, 9])
        >>> count_at_most(ordered, wanted, torch.tensor([0, 0, 0]), torch.tensor([3, 3, 3])).tolist()
        [0, 2, 3]
    """
    found = first
    step = 1 << ordered.numel().bit_length()
    while step > 0:
        candidate = found + step
        # The entry before the candidate is the last one that it would count.
        within = candidate <= last
        entry = ordered.index_select(0, torch.where(within, candidate - 1, 0))
        found = torch.where(within & (entry <= wanted), candidate, found)
        step >>= 1
    return found - first


class FrozenMap(nn.Module):
    """The operator ``id_map_find`` of a map that does not change any more.

    Args:
        ids: int64 ``(E,)``, the id of each row.
        rows: int64, the rows that ids hold.
        missing: what stands for an id without a row.
    """

    def __init__(self, ids: Tensor, rows: Tensor, missing: int) -> None:
        super().__init__()
        self.missing = missing
        ordered, order = ids[rows].sort()
        self.ordered: Tensor
        self.rows: Tensor
        self.register_buffer("ordered", ordered if len(rows) else torch.zeros(1, dtype=torch.int64))
        self.register_buffer("rows", rows[order] if len(rows) else torch.tensor([missing]))
        self.size = len(rows)

    def forward(self, wanted: Tensor) -> Tensor:
        """Return the row of each id."""
        first = torch.zeros_like(wanted)
        place = count_at_most(self.ordered, wanted, first, first + self.size) - 1
        place = place.clamp(min=0)
        is_known = self.ordered.index_select(0, place) == wanted
        return torch.where(is_known, self.rows.index_select(0, place), self.missing)
