"""The operators on the native library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchrec.ops._library import native
from torchrec.ops.embedding import native as embedding
from torchrec.ops.embedding.table import new_table
from torchrec.ops.quant import reference
from torchrec.ops.quant.formats import checked_format

_native: Any = native
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def quantize_rows(
    weight: Tensor, bounds: Tensor | None, format: int, row_bytes: int, name: str
) -> Tensor:
    """See ``reference.quantize_rows``."""
    kind = checked_format(format)
    reference.check_matrix(weight, bounds)
    reference.check_row_bytes(kind, weight.shape[1], row_bytes)
    if weight.dtype not in _FLOATS:
        return reference.quantize_rows(weight, bounds, format, row_bytes, name)
    rows = new_table(weight.shape[0], row_bytes, torch.uint8, "cpu")
    given = None if bounds is None else bounds.contiguous()
    bad = _native.quantize_rows(weight.contiguous(), given, format, rows, torch.get_num_threads())
    if bad >= 0:
        reference.raise_bad_row(name, kind, bad)
    return rows


def dequantize_rows(rows: Tensor, format: int, dim: int) -> Tensor:
    """See ``reference.dequantize_rows``."""
    kind = checked_format(format)
    if rows.dim() == 2:
        reference.check_row_bytes(kind, dim, rows.shape[1])
    weight = torch.empty((len(rows), dim), dtype=torch.float32, device="cpu")
    _native.dequantize_rows(
        rows.contiguous(), format, weight.data_ptr() or 1, dim, torch.get_num_threads()
    )
    return weight


def quantized_bag(
    weights: Sequence[Tensor],
    formats: Sequence[int],
    spec: Tensor,
    values: Tensor,
    offsets: Tensor,
    sample_weights: Tensor | None,
    num_keys: int,
    width: int,
    dtype: torch.dtype,
    names: str,
) -> tuple[Tensor, Tensor]:
    """See ``reference.quantized_bag``."""
    if dtype not in _FLOATS:
        return reference.quantized_bag(
            weights, formats, spec, values, offsets, sample_weights, num_keys, width, dtype, names
        )
    if sample_weights is not None:
        sample_weights, _ = embedding.factors(values, offsets, sample_weights, None)
    output = embedding.new_bag_output(offsets, num_keys, width, dtype)
    out_of_range = embedding.new_counts(len(weights))
    failure = _native.quantized_bag(
        spec,
        weights,
        formats,
        values.contiguous(),
        offsets.contiguous(),
        sample_weights,
        num_keys,
        output,
        out_of_range.data_ptr(),
        torch.get_num_threads(),
    )
    embedding.raise_failure(failure, spec, names)
    return output, out_of_range


def quantized_sequence(
    weights: Sequence[Tensor],
    formats: Sequence[int],
    spec: Tensor,
    values: Tensor,
    starts: Sequence[int],
    counts: Sequence[int],
    dims: Sequence[int],
    dtype: torch.dtype,
    names: str,
) -> list[Tensor]:
    """See ``reference.quantized_sequence``."""
    if dtype not in _FLOATS:
        return reference.quantized_sequence(
            weights, formats, spec, values, starts, counts, dims, dtype, names
        )
    input, outputs, _kept = embedding.new_sequence(values, starts, counts, dims, dtype)
    out_of_range = embedding.new_counts(len(weights))
    failure = _native.quantized_sequence(
        spec, weights, formats, input, out_of_range.data_ptr(), torch.get_num_threads()
    )
    embedding.raise_failure(failure, spec, names)
    return [*outputs, out_of_range]
