"""Counts of ids that no row of their own stands for."""

from __future__ import annotations

from torch import Tensor

from torchrec.modules._recomputation import is_recomputation
from torchrec.ops import is_transformed, outside_transforms

__all__ = ["add_counts"]


def add_counts(total: Tensor, out_of_range: Tensor) -> None:
    """Add what a look-up has counted, but for one that runs again for its backward pass.

    Args:
        total: by table, int64; added to.
        out_of_range: of one look-up, likewise.
    """
    if is_recomputation():
        return
    if is_transformed():
        with outside_transforms(out_of_range) as counts:
            total.add_(counts)
    else:
        total.add_(out_of_range)
