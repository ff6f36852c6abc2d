"""Bounds of a row that lose less than its least and greatest number do."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrec.ops.quant import schema
from torchrec.ops.quant.formats import RowFormat

_PIECE = 1 << 22  # numbers looked at together
_STEPS = 16


def search_bounds(weight: Tensor, format: RowFormat, steps: int = _STEPS) -> Tensor:
    """Find for each row the bounds by which its codes lose least, in squared error.

    A number far from the others makes the steps between codes wide for all. To clip it costs the square of what is
    cut off, and narrows the steps: with few bits that often is less. Tried are the bounds of the row, drawn in
    from either end and from both by ``0 .. steps - 1`` of ``2 * steps`` parts; the first of the best is taken, so a
    row that clipping does not help keeps its bounds.

    Args:
        weight: ``(E, D)``, of a floating type.
        format: of codes.
        steps: how many parts of each end are tried, 1 or more.

    Returns:
        The least and the greatest number that are to be exact, float32 ``(E, 2)``, for `quantize_rows`.

    Raises:
        ValueError: for a format of floats, or ``steps`` below 1.

    Example:
        >>> row = torch.cat([torch.linspace(-1, 1, 63), torch.tensor([3.0])]).unsqueeze(0)
        >>> bool(search_bounds(row, RowFormat.INT2)[0, 1] < 3)
        True
    """
    if not format.has_codes:
        raise ValueError(f"`format` should be one of codes. Received {format.name}.")
    if steps < 1:
        raise ValueError(f"`steps` should be 1 or more. Received {steps}.")
    if weight.shape[1] == 0:
        return weight.new_zeros((len(weight), 2), dtype=torch.float32)
    rows = max(1, _PIECE // weight.shape[1])
    parts = [_search(piece.float(), format, steps) for piece in weight.split(rows)]
    return torch.cat(parts) if parts else weight.new_zeros((0, 2), dtype=torch.float32)


def _search(x: Tensor, format: RowFormat, steps: int) -> Tensor:
    low, high = x.amin(1), x.amax(1)
    best = torch.stack([low, high], 1)
    least = _loss(x, best, format)
    part = (high - low) / (2 * steps)
    ends = [(k, 0) for k in range(1, steps)]
    ends += [(0, k) for k in range(1, steps)]
    ends += [(k, k) for k in range(1, steps)]
    for from_low, from_high in ends:
        bounds = torch.stack([low + from_low * part, high - from_high * part], 1)
        loss = _loss(x, bounds, format)
        better = loss < least
        best = torch.where(better.unsqueeze(1), bounds, best)
        least = torch.where(better, loss, least)
    return best


def _loss(x: Tensor, bounds: Tensor, format: RowFormat) -> Tensor:
    rows = schema.quantize_rows(x, bounds, format, format.row_bytes(x.shape[1]), "")
    found: Tensor = schema.dequantize_rows(rows, format, x.shape[1])
    return (found - x).square().sum(1)
