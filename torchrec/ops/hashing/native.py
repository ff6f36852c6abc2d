"""Hashing on the native library: addresses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrec.ops._library import native
from torchrec.ops._memory import is_wide
from torchrec.ops.hashing.reference import raise_bad_string

_lib: Any = native


def hash_strings(data: Tensor, offsets: Tensor, seed: int) -> Tensor:
    """See ``reference.hash_strings``."""
    if data.dtype is not torch.uint8 or data.dim() != 1 or offsets.dim() != 1:
        raise TypeError(
            "`data` should be one-dimensional uint8, and `offsets` one-dimensional. Received "
            f"{data.dim()} dimensions of {data.dtype} and {offsets.dim()}."
        )
    if offsets.numel() == 0:
        raise ValueError("`offsets` should be one more than the strings. Received none.")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"`seed` should be a signed integer of 64 bits. Received {seed}.")
    data, offsets = data.contiguous(), offsets.contiguous()
    count = offsets.size(0) - 1
    hashes = data.new_empty(count, dtype=torch.int64)
    bad = _lib.hash_strings(
        data.data_ptr(),
        data.size(0),
        offsets.data_ptr(),
        is_wide("offsets", offsets),
        count,
        seed,
        hashes.data_ptr(),
    )
    if bad >= 0:
        raise_bad_string(data, offsets, bad)
    return hashes


def hash_ids(ids: Tensor, span: int) -> Tensor:
    """See ``reference.hash_ids``."""
    ids = ids.long().contiguous()
    hashes = torch.empty_like(ids)
    _lib.hash_ids(ids.data_ptr(), ids.numel(), span, hashes.data_ptr())
    return hashes
