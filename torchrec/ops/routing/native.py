"""Routing on the native library: what guards memory, and addresses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrec.ops._library import native
from torchrec.ops._memory import is_wide
from torchrec.ops.routing import reference
from torchrec.ops.routing.reference import BLOCK, check_routing

_lib: Any = native
_RECYCLED_FROM = 1 << 20  # bytes: of larger blocks the system would clear every page anew


def route_rows(
    rows: Tensor, lengths: Tensor, counts: list[int], bands: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``reference.route_rows``."""
    check_routing(rows, lengths, counts, bands)
    rows, lengths = rows.contiguous(), lengths.contiguous()
    size, num_bands = lengths.shape[1], len(bands) // 4
    values = rows.new_empty(len(rows), dtype=torch.int32)
    places = rows.new_empty(len(rows), dtype=torch.int32)
    band_lengths = rows.new_empty((num_bands, size), dtype=torch.int32)
    band_counts = rows.new_empty(num_bands)
    _lib.route_rows(
        rows.data_ptr(),
        lengths.data_ptr(),
        is_wide("lengths", lengths),
        size,
        counts,
        bands,
        [t.data_ptr() for t in (values, places, band_lengths, band_counts)],
    )
    return values, places, band_lengths, band_counts


def copy_blocks(
    inputs: list[Tensor], sizes: list[int], blocks: list[int], divisor: int
) -> list[Tensor]:
    """See ``reference.copy_blocks``."""
    if not inputs or (inputs[0].dtype is not torch.float32 and any(blocks[8 :: len(BLOCK)])):
        return reference.copy_blocks(inputs, sizes, blocks, divisor)
    dtype, item = inputs[0].dtype, inputs[0].element_size()
    sources: list[int] = []
    kept = []
    for tensor in inputs:
        if tensor.dtype is not dtype or tensor.is_neg():
            raise ValueError(
                f"`inputs` should be of one dtype, and stand for themselves. Received {tensor.dtype} "
                f"beside {dtype}, or a lazy negative."
            )
        tensor = tensor.contiguous()
        kept.append(tensor)
        sources += (tensor.data_ptr(), tensor.numel())
    if divisor < 1 or min(sizes, default=0) < 0:
        raise ValueError(
            "`sizes` should not be negative, and `divisor` 1 or more. "
            f"Received {sizes} and {divisor}."
        )
    outputs = [new_vector(size, inputs[0]) for size in sizes]
    targets: list[int] = []
    for output in outputs:
        targets += (output.data_ptr(), output.numel())
    _lib.copy_blocks(item, sources, targets, blocks, divisor)
    return outputs


def new_vector(size: int, like: Tensor) -> Tensor:
    """Return uninitialised memory; if large, memory that an earlier vector has left.

    Args:
        size: elements.
        like: a tensor of the dtype and device that are wanted.
    """
    bytes_wanted = size * like.element_size()
    if _lib is None or not like.is_cpu or bytes_wanted < _RECYCLED_FROM:
        return like.new_empty(size)
    buffer: Tensor = _lib.recycled(bytes_wanted)
    return buffer.view(like.dtype)
