"""The operators of slot maps on the native library: what guards memory, and addresses.

The kernels check that the buckets lie in the map. Whatever stands in it, no search leaves its bucket.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrec.ops._library import native

_lib: Any = native
_written = (
    torch.autograd.graph.increment_version
)  # kernels write behind PyTorch's back; autograd has to know


def _address(name: str, tensor: Tensor | None, count: int, dtype: torch.dtype) -> int:
    """Return where a tensor begins that has so many elements of a dtype side by side; 0 where there is none."""
    if tensor is None:
        return 0
    fits = tensor.numel() == count and tensor.dtype is dtype
    if not (fits and tensor.is_cpu and tensor.is_contiguous()):
        raise ValueError(
            f"`{name}` should be {count} contiguous elements of {dtype} on the CPU. "
            f"Received {list(tensor.shape)} of {tensor.dtype} on {tensor.device}."
        )
    return tensor.data_ptr()


def _map(identities: Tensor, bounds: Tensor, *numbers: int) -> tuple[int, ...]:
    """Return a map as kernels take it; ``numbers`` are those of the operators, as far as both have them."""
    size, buckets = identities.numel(), bounds.numel() - 1
    return (
        _address("identities", identities, size, torch.int64),
        size,
        _address("bounds", bounds, buckets + 1, torch.int64),
        buckets,
        *numbers,
    )


def _misfit(size: int, bounds: Tensor) -> ValueError:
    return ValueError(
        f"`bounds` should hold buckets of the {size} slots, each with more than are `reserved`, from "
        "`first_bucket` on at most `num_buckets`, and `max_probe` should be at least 1. "
        f"Received {bounds.tolist()[:8]} for the first, and other numbers."
    )


def find_(
    identities: Tensor,
    bounds: Tensor,
    totals: Tensor,
    ids: Tensor,
    first_bucket: int,
    num_buckets: int,
    ids_per_bucket: int,
    local_ids: bool,
    reserved: int,
    max_probe: int,
    fallback: bool,
) -> Tensor:
    """See ``reference.find_``."""
    ids = ids.contiguous()
    count = ids.numel()
    slots = torch.empty_like(ids)
    result = _lib.hash_slots_find(
        *_map(identities, bounds, first_bucket, num_buckets, ids_per_bucket),
        local_ids,
        reserved,
        max_probe,
        fallback,
        _address("ids", ids, count, torch.int64),
        count,
        slots.data_ptr(),
        _address("totals", totals, 5, torch.int64),
        torch.get_num_threads(),
    )
    if result < 0:
        raise _misfit(identities.numel(), bounds)
    _written([totals])
    return slots


def assign_(
    identities: Tensor,
    metadata: Tensor | None,
    bounds: Tensor,
    totals: Tensor,
    ids: Tensor,
    scores: Tensor | None,
    admitted: Tensor | None,
    first_bucket: int,
    num_buckets: int,
    ids_per_bucket: int,
    local_ids: bool,
    reserved: int,
    max_probe: int,
    fallback: bool,
    threshold: int,
    oldest: bool,
) -> tuple[Tensor, Tensor]:
    """See ``reference.assign_``."""
    ids = ids.contiguous()
    count = ids.numel()
    scores = None if scores is None else scores.contiguous()
    admitted = None if admitted is None else admitted.contiguous()
    slots = torch.empty_like(ids)
    evicted = ids.new_empty(0 if metadata is None else count)
    changed = _lib.hash_slots_assign(
        *_map(identities, bounds, first_bucket, num_buckets, ids_per_bucket),
        local_ids,
        reserved,
        max_probe,
        fallback,
        _address("metadata", metadata, identities.numel(), torch.int32),
        _address("ids", ids, count, torch.int64),
        count,
        _address("scores", scores, count, torch.int32),
        _address("admitted", admitted, count, torch.bool),
        threshold,
        oldest,
        slots.data_ptr(),
        evicted.data_ptr(),
        _address("totals", totals, 5, torch.int64),
        torch.get_num_threads(),
    )
    if changed < 0:
        raise _misfit(identities.numel(), bounds)
    _written([identities, totals])
    if metadata is not None:
        _written([metadata])
    return slots, evicted[:changed].clone()
