"""The operators of slot maps on the native library: what guards memory, and addresses.

The kernels check that the buckets lie in the map. Whatever stands in it, no search leaves its bucket.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrec.ops._library import native
from torchrec.ops._memory import addresses_of

_lib: Any = native
_ID = torch.int64
_LEAST, _MOST = -(2**31), 2**31 - 1
_written = (
    torch.autograd.graph.increment_version
)  # kernels write behind PyTorch's back; autograd has to know


def _misfit(size: int, bounds: Tensor) -> ValueError:
    return ValueError(
        f"`bounds` should hold buckets of the {size} slots, each with more than are `reserved`, from "
        "`first_bucket` on at most `num_buckets`, and `max_probe` should be at least 1. "
        f"Received {bounds.tolist()[:8]} for the first, and other numbers."
    )


def _check(bounds: Tensor, size: int, *numbers: int) -> None:
    if not all(-(2**63) <= number < 2**63 for number in numbers):  # kernels take no others
        raise _misfit(size, bounds)


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
    shape, ids, bounds = ids.shape, ids.flatten().contiguous(), bounds.contiguous()
    size, buckets, count = identities.numel(), bounds.numel() - 1, ids.numel()
    _check(bounds, size, first_bucket, num_buckets, ids_per_bucket, reserved, max_probe)
    slots = torch.empty_like(ids)
    map_ids, starts, source, counts = addresses_of(
        ("identities", identities, size, _ID),
        ("bounds", bounds, buckets + 1, _ID),
        ("ids", ids, count, _ID),
        ("totals", totals, 5, _ID),
    )
    result = _lib.hash_slots_find(
        map_ids,
        size,
        starts,
        buckets,
        first_bucket,
        num_buckets,
        ids_per_bucket,
        local_ids,
        reserved,
        max_probe,
        fallback,
        source,
        count,
        slots.data_ptr(),
        counts,
        torch.get_num_threads(),
    )
    if result < 0:
        raise _misfit(identities.numel(), bounds)
    _written([totals])
    return slots.view(shape)


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
    shape, ids, bounds = ids.shape, ids.flatten().contiguous(), bounds.contiguous()
    count = ids.numel()
    scores = None if scores is None else scores.contiguous()
    admitted = None if admitted is None else admitted.contiguous()
    size, buckets = identities.numel(), bounds.numel() - 1
    _check(bounds, size, first_bucket, num_buckets, ids_per_bucket, reserved, max_probe)
    slots = torch.empty_like(ids)
    evicted = ids.new_empty(0 if metadata is None else count)
    map_ids, starts, source, counts, hours, new_hours, may_enter = addresses_of(
        ("identities", identities, size, _ID),
        ("bounds", bounds, buckets + 1, _ID),
        ("ids", ids, count, _ID),
        ("totals", totals, 5, _ID),
        ("metadata", metadata, size, torch.int32),
        ("scores", scores, count, torch.int32),
        ("admitted", admitted, count, torch.bool),
    )
    changed = _lib.hash_slots_assign(
        map_ids,
        size,
        starts,
        buckets,
        first_bucket,
        num_buckets,
        ids_per_bucket,
        local_ids,
        reserved,
        max_probe,
        fallback,
        hours,
        source,
        count,
        new_hours,
        may_enter,
        min(max(threshold, _LEAST), _MOST),  # as the hours that it is compared with
        oldest,
        slots.data_ptr(),
        evicted.data_ptr(),
        counts,
        torch.get_num_threads(),
    )
    if changed < 0:
        raise _misfit(identities.numel(), bounds)
    _written([identities, totals])
    if metadata is not None:
        _written([metadata])
    return slots.view(shape), evicted[:changed].clone()
