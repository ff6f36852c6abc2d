"""The jagged operators in plain PyTorch: the specification, on any device, and out of place, so differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrec.ops._memory import require_integers


def lengths_to_offsets(lengths: Tensor) -> Tensor:
    """Sum ``lengths`` up from 0: one offset more than lengths, of the same dtype."""
    require_integers("lengths", lengths)
    return torch.cat([lengths.new_zeros(1), torch.cumsum(lengths, 0, dtype=lengths.dtype)])


def source_rows(lengths: Tensor, bags: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Find which rows to read so as to take whole bags, in the order of ``bags``.

    Args:
        lengths: ``[n]`` lengths of the bags at hand.
        bags: ``[m]`` positions of the bags to take; one may be taken several times.
        total: number of rows taken: the sum of ``lengths[bags]``.

    Returns:
        ``rows [total]``, int64, and ``lengths[bags]``.
    """
    offsets = lengths_to_offsets(lengths.long())
    taken = lengths.index_select(0, bags)
    ends = torch.cumsum(taken.long(), 0)
    shift = offsets[:-1].index_select(0, bags) - (ends - taken)
    rows = torch.arange(total, device=lengths.device)
    return rows + torch.repeat_interleave(shift, taken.long(), output_size=total), taken


def require_total(taken: Tensor, total: int) -> None:
    """Check on a CPU that ``total`` is the sum of the lengths taken; elsewhere it would mean to wait."""
    if taken.is_cpu and int(taken.sum()) != total:
        raise ValueError(
            f"`total` should be the number of values taken ({int(taken.sum())}). Received {total}."
        )


def jagged_index_select(
    values: Tensor, lengths: Tensor, bags: Tensor, total: int
) -> tuple[Tensor, Tensor]:
    """Take whole bags by position: their rows one after another, and their lengths."""
    require_total(lengths.index_select(0, bags), total)
    rows, taken = source_rows(lengths, bags, total)
    return values.index_select(0, rows), taken


def _cells(offsets: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return, ``[B, width]`` each: the row of the values that stands in a cell, and whether there is one."""
    column = torch.arange(width, device=offsets.device)
    rows = offsets[:-1, None] + column
    return rows, rows < offsets[1:, None]


def jagged_to_padded(values: Tensor, offsets: Tensor, width: int, padding: float) -> Tensor:
    """Lay bag b into row b of ``[B, width, ...]``; cut what is longer, pad what is shorter."""
    padded = values.new_full((len(offsets) - 1, width, *values.shape[1:]), padding)
    if padded.numel() == 0:  # of any width: unlike its cells, it takes no memory
        return padded
    rows, filled = _cells(offsets, width)
    return padded.index_put(filled.nonzero(as_tuple=True), values[rows[filled]])


def padded_to_jagged(padded: Tensor, offsets: Tensor, total: int) -> Tensor:
    """Take bag b from row b of ``padded``; a bag longer than the row ends in zeros."""
    values = padded.new_zeros((total, *padded.shape[2:]))
    if padded.numel() == 0:
        return values
    rows, filled = _cells(offsets, padded.size(1))
    return values.index_put((rows[filled],), padded[filled.nonzero(as_tuple=True)])
