"""The operators in plain PyTorch: the specification of the kernels, and what runs on any other device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchrec.ops.embedding import reference as embedding
from torchrec.ops.embedding.spec import TableSpec, read_spec
from torchrec.ops.quant.formats import HEAD, RowFormat, checked_format

_SMALLEST = 2.0**-24  # above 0, in float16


def raise_bad_row(name: str, format: RowFormat, row: int) -> None:
    """Raise for a row that its format does not hold."""
    table = f" of table '{name}'" if name else ""
    limits = "float16, as the scale and bias of a row are" if format.has_codes else format.name
    raise ValueError(
        f"Weights{table} should be finite, and within {limits}. Received others in row {row}."
    )


def check_matrix(weight: Tensor, bounds: Tensor | None) -> None:
    """Refuse what is no matrix of floats, and bounds that are not two a row."""
    if weight.dim() != 2 or not weight.is_floating_point():
        raise TypeError(
            f"`weight` should be a matrix of floats. Received {weight.dtype} of shape {list(weight.shape)}."
        )
    if bounds is None:
        return
    if bounds.shape != (weight.shape[0], 2) or bounds.dtype is not torch.float32:
        raise ValueError(
            f"`bounds` should be float32 of shape [{weight.shape[0]}, 2]. "
            f"Received {bounds.dtype} of shape {list(bounds.shape)}."
        )


def check_row_bytes(format: RowFormat, dim: int, row_bytes: int) -> None:
    """Refuse rows that are too short, or would end within a number."""
    least = format.row_bytes(dim) if dim >= 0 else 0
    unit = 1 if format.has_codes else format.bits // 8
    if dim < 0 or row_bytes < least or row_bytes % unit:
        raise ValueError(
            f"Rows of {dim} numbers in {format.name} should have {least} bytes or more, whole numbers. "
            f"Received {row_bytes}."
        )


def quantize_rows(
    weight: Tensor, bounds: Tensor | None, format: int, row_bytes: int, name: str
) -> Tensor:
    """Return the rows of a table in a format, ``(E, row_bytes)``."""
    kind = checked_format(format)
    check_matrix(weight, bounds)
    check_row_bytes(kind, weight.shape[1], row_bytes)
    x = weight.float()
    if kind.has_codes:
        fits, numbers = _coded(x, bounds, kind)
    else:
        stored = x.to(kind.dtype)
        fits = stored.isfinite().all(1)
        numbers = stored.contiguous().view(torch.uint8).view(len(x), kind.row_bytes(x.shape[1]))
    fits = fits & x.isfinite().all(1)
    if not bool(fits.all()):
        raise_bad_row(name, kind, int((~fits).int().argmax()))
    return torch.nn.functional.pad(numbers, (0, row_bytes - numbers.shape[1]))


def _coded(x: Tensor, bounds: Tensor | None, format: RowFormat) -> tuple[Tensor, Tensor]:
    """Return which rows have a scale and a bias, and the bytes of each."""
    if x.shape[1] == 0:
        return x.new_ones(len(x), dtype=torch.bool), x.new_zeros((len(x), HEAD), dtype=torch.uint8)
    low, high = (x.amin(1), x.amax(1)) if bounds is None else (bounds[:, 0], bounds[:, 1])
    bias16 = torch.where(low == 0, 0.0, low).half()  # which of two zeros is the least is anyone's
    bias, levels = bias16.float(), torch.full_like(low, 2**format.bits - 1)
    span = torch.where(high > bias, high - bias, 0.0)
    scale16 = (span / levels).half()
    scale16 = torch.where((span > 0) & (scale16 == 0), _SMALLEST, scale16)
    scale = scale16.float()
    fits = bias.isfinite() & scale.isfinite()
    codes = (x - bias.unsqueeze(1)) / scale.unsqueeze(1)
    codes = codes.clamp(min=0).minimum(levels.unsqueeze(1)).round()
    codes = torch.where((scale > 0).unsqueeze(1) & codes.isfinite(), codes, 0).to(torch.uint8)
    per_byte = 8 // format.bits
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[1] % per_byte))
    codes = codes.view(len(x), codes.shape[1] // per_byte, per_byte)
    packed = torch.zeros_like(codes[:, :, 0])
    for k in range(per_byte):
        packed = packed | (codes[:, :, k] << (k * format.bits))
    head = torch.stack([scale16, bias16], 1).view(torch.uint8)
    return fits, torch.cat([head, packed], 1)


def dequantize_rows(rows: Tensor, format: int, dim: int) -> Tensor:
    """Return the numbers of rows, float32 ``(N, D)``."""
    kind = checked_format(format)
    if rows.dim() != 2 or rows.dtype is not torch.uint8:
        raise TypeError(
            f"`rows` should be uint8 with two dimensions. Received {rows.dtype} of shape {list(rows.shape)}."
        )
    check_row_bytes(kind, dim, rows.shape[1])
    if not kind.has_codes:
        numbers = rows[:, : dim * kind.bits // 8].clone(memory_format=torch.contiguous_format)
        return numbers.view(kind.dtype).float() if dim else rows.new_zeros((len(rows), 0)).float()
    # A copy in any case: a part of one row counts as contiguous, with the stride of the row.
    head = rows[:, :HEAD].clone(memory_format=torch.contiguous_format).view(torch.float16).float()
    packed = rows[:, HEAD : kind.row_bytes(dim)]
    shifts = range(0, 8, kind.bits)
    codes = torch.stack([(packed >> shift) & (2**kind.bits - 1) for shift in shifts], 2)
    return codes.flatten(1)[:, :dim].float() * head[:, :1] + head[:, 1:]


def _reader(
    weights: Sequence[Tensor], formats: Sequence[int], tables: list[TableSpec]
) -> embedding.ReadRows:
    if len(weights) != len(tables) or len(formats) != len(tables):
        raise ValueError(
            f"`weights` and `formats` should be one a table ({len(tables)}). "
            f"Received {len(weights)} and {len(formats)}."
        )
    for t, (weight, table) in enumerate(zip(weights, tables, strict=True)):
        if weight.dim() != 2 or weight.shape[0] != table.num_shard_rows:
            raise ValueError(
                f"The weight of table number {t} should have {table.num_shard_rows} rows, as configured. "
                f"Received the shape {list(weight.shape)}."
            )
    return lambda t, rows: dequantize_rows(weights[t][rows], formats[t], tables[t].dim)


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
    """Pool the rows of every bag of every slot."""
    tables, slots = read_spec(spec)
    read = _reader(weights, formats, tables)
    bags = embedding.Bags(values, offsets, sample_weights, None, num_keys)
    return embedding.pool(tables, slots, read, bags, width, dtype, names)


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
    """Return the row of each id of each slot, and last the out-of-range counts of the tables."""
    tables, slots = read_spec(spec)
    read = _reader(weights, formats, tables)
    return embedding.gather(tables, slots, read, values, starts, counts, dims, dtype, names)
