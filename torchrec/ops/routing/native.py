"""Routing on the native library: what guards memory, and addresses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrec.ops._library import native
from torchrec.ops._memory import is_wide
from torchrec.ops.routing.reference import check_routing

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
        rows.data_ptr(),
        lengths.data_ptr(),
        is_wide("lengths", lengths),
        size,
        counts,
        bands,
        [t.data_ptr() for t in (values, places, band_lengths, band_counts)],
    )
    return values, places, band_lengths, band_counts
