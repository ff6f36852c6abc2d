"""Routing on the native library: what guards memory, and addresses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchrec.ops._library import native
from torchrec.ops._memory import is_wide, no_address
from torchrec.ops._recycled import recycled
from torchrec.ops.routing import reference
from torchrec.ops.routing.reference import BLOCK, check_blocks, check_routing

_lib: Any = native


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
        _address("rows", rows),
        _address("lengths", lengths),
        is_wide("lengths", lengths),
        size,
        counts,
        bands,
        [t.data_ptr() for t in (values, places, band_lengths, band_counts)],
    )
    return values, places, band_lengths, band_counts


def copy_blocks_(
    outputs: list[Tensor], inputs: list[Tensor], blocks: list[int], divisor: int
) -> None:
    """See ``reference.copy_blocks_``."""
    check_blocks(outputs, inputs, blocks, divisor)
    computes = not outputs or (
        outputs[0].dtype is not torch.float32 and any(blocks[8 :: len(BLOCK)])
    )
    if computes or any(tensor.is_neg() for tensor in (*outputs, *inputs)):
        return reference.copy_blocks_(outputs, inputs, blocks, divisor)
    kept = [tensor.contiguous() for tensor in inputs]
    _lib.copy_blocks(
        outputs[0].element_size(),
        _pairs("inputs", kept),
        _pairs("outputs", outputs),
        blocks,
        divisor,
    )
    torch.autograd.graph.increment_version(outputs)


def new_vector(size: int, like: Tensor) -> Tensor:
    """Return uninitialised memory; if large, memory that an earlier vector has left.

    Args:
        size: elements.
        like: a tensor of the dtype and device that are wanted.
    """
    return recycled((size,), like.dtype) if like.is_cpu else like.new_empty(size)


def _pairs(name: str, tensors: Sequence[Tensor]) -> list[int]:
    """Return the address and the size of each tensor, one behind the other."""
    return [number for each in tensors for number in (_address(name, each), each.numel())]


def _address(name: str, tensor: Tensor) -> int:
    return tensor.data_ptr() or no_address(name, tensor)
