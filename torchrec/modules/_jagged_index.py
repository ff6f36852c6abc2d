"""Where each value of a jagged tensor stands: in its bag, or in a tensor that bags are taken from."""

from __future__ import annotations

import torch
from torch import Tensor


def positions(offsets: Tensor, total: int) -> Tensor:
    """Return the position of each value in its bag, int64 ``(N,)``.

    Args:
        offsets: ``(B + 1,)``.
        total: N.
    """
    return shifted(-offsets[:-1], offsets[1:] - offsets[:-1], total)


def shifted(shifts: Tensor, lengths: Tensor, total: int) -> Tensor:
    """Return, for value n of bag b, ``n + shifts[b]``: int64 ``(N,)``.

    With the negative start of each bag as its shift these are positions in the bag; any start in
    another tensor added, places there.

    Args:
        shifts: ``(B,)``.
        lengths: of the bags, ``(B,)``.
        total: their sum, N.
    """
    own = torch.repeat_interleave(shifts, lengths, output_size=total)
    return torch.arange(total, device=own.device) + own
