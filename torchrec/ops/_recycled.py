"""Memory of large results, kept for the next ones of their size."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from torchrec.heap import expect_tensors
from torchrec.ops._library import native

# Smaller ones are the C library's, which keeps them itself: bytes.
_LEAST = 1 << 20
_MOST = 1 << 47  # more than there can be
_CPU = torch.device("cpu")


def recycled(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return uninitialised memory on the CPU; if large, memory that an earlier tensor has left.

    The C library may give blocks of this size back to the system when they die, and the system
    clears every page of a new one, which takes longer than to fill it.
    """
    size = prod(shape) * dtype.itemsize
    if native is None or size < _LEAST:
        # Sizes one by one are read in two thirds of the time of a tuple.
        sizes = shape if len(shape) else ((),)
        return torch.empty(*sizes, dtype=dtype, device=_CPU)
    expect_tensors()
    try:
        buffer: Tensor | None = native.recycled(size) if size < _MOST else None
    except MemoryError:
        buffer = None
    if buffer is None:
        raise ValueError(f"An output should fit the memory. Received a shape of {list(shape)}.")
    # No view of it: results of autograd functions that are views cannot be changed in place.
    return torch.empty(0, dtype=dtype, device=_CPU).set_(buffer.untyped_storage(), 0, shape, ())
