"""The jagged operators in plain PyTorch: the specification, on any device, and out of place, so differentiable."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.compiler import is_compiling

from torchrec.ops._library import refuse_jit_trace
from torchrec.ops._memory import is_wide, require_integers


def lengths_to_offsets(lengths: Tensor) -> Tensor:
    """Sum ``lengths`` up from 0: one offset more than lengths, of the same dtype."""
    require_integers("lengths", lengths)
    return torch.cat([lengths.new_zeros(1), torch.cumsum(lengths, 0, dtype=lengths.dtype)])


def sum_equal_groups(lengths: Tensor, groups: int) -> list[int]:
    """Sum lengths in groups of one size; see ``torchrec.ops.jagged.sum_equal_groups``."""
    refuse_jit_trace("sums of lengths")
    is_wide("lengths", lengths)
    if not is_compiling() and (
        lengths.size(0) % groups if groups > 0 else groups or lengths.size(0)
    ):
        raise ValueError(
            f"`groups` should divide the number of lengths ({lengths.size(0)}). Received {groups}."
        )
    sums: list[int] = lengths.view(groups, -1 if lengths.size(0) else 0).sum(1).tolist()
    return sums


def sum_groups(lengths: Tensor, sizes: Sequence[int]) -> list[int]:
    """Sum lengths in groups of given sizes; see ``torchrec.ops.jagged.sum_groups``."""
    refuse_jit_trace("sums of lengths")
    is_wide("lengths", lengths)
    if not is_compiling() and min(sizes, default=0) < 0:
        raise ValueError(f"`sizes` should not be negative. Received {sizes}.")
    if not sizes:
        return []
    parts = torch.split_with_sizes(lengths, list(sizes))
    sums: list[int] = torch.stack([part.sum() for part in parts]).tolist()
    return sums


def lengths_fit(lengths: Tensor, total: int) -> bool:
    """Say whether no length is negative and they sum to ``total``; see ``torchrec.ops.jagged.lengths_fit``."""
    refuse_jit_trace("sums of lengths")
    if lengths.numel() == 0:
        return total == 0
    found = [*torch.aminmax(lengths), lengths.sum()]
    least, most, summed = torch.stack([number.long() for number in found]).tolist()
    if least < 0 or most > total:
        return False
    if most * lengths.numel() >= 2**63:  # the sum may have wrapped
        summed = sum(lengths.flatten().tolist())
    return bool(summed == total)


def offsets_fit(offsets: Tensor, total: int) -> bool:
    """Say whether offsets start at 0, never fall and end at ``total``; see ``torchrec.ops.jagged.offsets_fit``."""
    refuse_jit_trace("offsets")
    if offsets.numel() == 0 or int(offsets[0]) != 0 or int(offsets[-1]) != total:
        return False
    return bool((offsets[1:] >= offsets[:-1]).all())


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
