"""Rows of a batch without those that come again: what has to travel of them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["distinct_rows"]


def distinct_rows(rows: Tensor, counts: list[int]) -> tuple[Tensor, Tensor, list[int]]:
    """Return each row of each slot once, in the order in which they first come.

    Args:
        rows: int64 ``(N,)``, slot after slot; ``NO_ROW`` is a row like others.
        counts: rows of each slot.

    Returns:
        the rows, int64 ``(M,)``, slot after slot; for each of the N its place among the M, int64 ``(N,)``; how many
        each slot has.

    Example:
        >>> rows, places, counts = distinct_rows(torch.tensor([7, 2, 7, 7, 2]), [3, 2])
        >>> rows.tolist(), places.tolist(), counts
        ([7, 2, 7, 2], [0, 1, 0, 2, 3], [2, 2])
    """
    if not len(rows):
        return rows, rows, counts
    low = int(rows.min())
    span = int(rows.max()) - low + 1
    slots = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    keys, places = torch.unique(slots * span + rows - low, return_inverse=True)
    # In the order of the batch, not of the rows: where none comes again, what comes back is in order already.
    first = torch.full_like(keys, len(rows)).scatter_reduce_(
        0, places, torch.arange(len(rows)), "amin"
    )
    order = first.argsort()
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
    kept = first[order]
    found = slots[kept].bincount(minlength=len(counts)).tolist()
    return rows[kept], rank[places], found
