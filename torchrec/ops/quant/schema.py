"""The operators' definitions: schema, shapes for tracing, implementations."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from torchrec.ops import _library
from torchrec.ops.embedding.reference import batch_size
from torchrec.ops.quant import reference

kernels: ModuleType | None = None
if _library.native is not None:
    kernels = importlib.import_module("torchrec.ops.quant.native")


def _fake_quantize(
    weight: Tensor, bounds: Tensor | None, format: int, row_bytes: int, name: str
) -> Tensor:
    return weight.new_empty((weight.shape[0], row_bytes), dtype=torch.uint8)


def _fake_dequantize(rows: Tensor, format: int, dim: int) -> Tensor:
    return rows.new_empty((rows.shape[0], dim), dtype=torch.float32)


def _fake_bag(
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
    output = values.new_empty((batch_size(values, offsets, num_keys), width), dtype=dtype)
    return output, values.new_empty((len(weights),), dtype=torch.int64)


def _fake_sequence(
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
    rows = [values.new_empty((n, dim), dtype=dtype) for n, dim in zip(counts, dims, strict=True)]
    return [*rows, values.new_empty((len(weights),), dtype=torch.int64)]


quantize_rows = _library.define(
    "quantize_rows(Tensor weight, Tensor? bounds, int format, int row_bytes, str name) -> Tensor",
    reference=reference.quantize_rows,
    fake=_fake_quantize,
    native_kernel=kernels.quantize_rows if kernels else None,
)
dequantize_rows = _library.define(
    "dequantize_rows(Tensor rows, int format, int dim) -> Tensor",
    reference=reference.dequantize_rows,
    fake=_fake_dequantize,
    native_kernel=kernels.dequantize_rows if kernels else None,
)
quantized_bag = _library.define(
    "quantized_bag(Tensor[] weights, int[] formats, Tensor spec, Tensor values, Tensor offsets,"
    " Tensor? sample_weights, int num_keys, int width, ScalarType dtype, str names)"
    " -> (Tensor output, Tensor out_of_range)",
    reference=reference.quantized_bag,
    fake=_fake_bag,
    native_kernel=kernels.quantized_bag if kernels else None,
    bytes_of=("weights",),
)
quantized_sequence = _library.define(
    "quantized_sequence(Tensor[] weights, int[] formats, Tensor spec, Tensor values, SymInt[] starts,"
    " SymInt[] counts, int[] dims, ScalarType dtype, str names) -> Tensor[]",
    reference=reference.quantized_sequence,
    fake=_fake_sequence,
    native_kernel=kernels.quantized_sequence if kernels else None,
    bytes_of=("weights",),
)
