"""Hashing on the native library: addresses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrec.ops._library import native
from torchrec.ops.hashing.reference import raise_bad_string

_lib: Any = native


def hash_strings(data: Tensor, offsets: Tensor, seed: int) -> Tensor:
    """See ``reference.hash_strings``."""
    data, offsets = data.contiguous(), offsets.contiguous()
    count = offsets.size(0) - 1
    hashes = data.new_empty(count, dtype=torch.int64)
    bad = _lib.hash_strings(
        data.data_ptr(),
        data.size(0),
        offsets.data_ptr(),
        offsets.dtype is torch.int64,
        count,
        seed,
        hashes.data_ptr(),
    )
    if bad >= 0:
        raise_bad_string(data, offsets, bad)
    return hashes
