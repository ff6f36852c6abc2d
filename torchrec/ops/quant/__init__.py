"""Tables of few bits a number: rows as codes with a scale and a bias, and look-ups that read them as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchrec.ops.embedding import Bags, Ids, LookupSpec
from torchrec.ops.quant import schema
from torchrec.ops.quant.clipping import search_bounds
from torchrec.ops.quant.formats import RowFormat

__all__ = [
    "RowFormat",
    "dequantize_rows",
    "lookup_quantized_bags",
    "lookup_quantized_sequences",
    "quantize_rows",
    "search_bounds",
]


def quantize_rows(
    weight: Tensor,
    format: RowFormat,
    alignment: int = 16,
    bounds: Tensor | None = None,
    name: str = "",
) -> Tensor:
    """Write the rows of a table in a format.

    A row of codes covers the numbers between its least and its greatest in ``2 ** bits - 1`` even steps,
    which both are rounded to float16 before codes are found, so that these are the nearest ones.

    Args:
        weight: ``(E, D)``, float32, float16 or bfloat16 (others in plain PyTorch).
        format: of the numbers.
        alignment: rows are padded to a multiple of it, bytes.
        bounds: for codes, the least and the greatest number of each row that is to be exact, float32 ``(E, 2)``;
            numbers beyond take the nearest of these, see `search_bounds`. Default: those of the row.
        name: of the table, for messages.

    Returns:
        The rows, uint8 ``(E, format.row_bytes(D, alignment))``.

    Raises:
        ValueError: for NaN, infinity, and what is beyond the format; naming the row.

    Example:
        >>> rows = quantize_rows(torch.tensor([[0.0, 0.25, 0.75]]), RowFormat.INT2, alignment=1)
        >>> rows.tolist()  # scale 0.25, bias 0, codes 0, 1 and 3
        [[0, 52, 0, 0, 52]]
        >>> dequantize_rows(rows, RowFormat.INT2, 3).tolist()
        [[0.0, 0.25, 0.75]]
    """
    row_bytes = format.row_bytes(weight.shape[-1], alignment)
    rows: Tensor = schema.quantize_rows(weight, bounds, format, row_bytes, name)
    return rows


def dequantize_rows(rows: Tensor, format: RowFormat, dim: int) -> Tensor:
    """Return the numbers of rows, float32 ``(N, D)``.

    Args:
        rows: uint8 ``(N, bytes)``.
        format: of the numbers.
        dim: D.

    Raises:
        ValueError: if rows are too short for so many numbers.

    Example:
        >>> dequantize_rows(torch.tensor([[0, 60, 0, 64, 0x21]], dtype=torch.uint8), RowFormat.INT4, 2)
        tensor([[3., 4.]])
    """
    weight: Tensor = schema.dequantize_rows(rows, format, dim)
    return weight


def lookup_quantized_bags(
    weights: Sequence[Tensor],
    formats: Sequence[int],
    spec: LookupSpec,
    bags: Bags,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Look up every slot of a spec and pool each bag, all tables in one call.

    The result is that of `torchrec.ops.embedding.lookup_bags` in the dequantised tables, to the last bit.

    Args:
        weights: rows of bytes, one ``(E, bytes)`` a table.
        formats: `RowFormat` of each.
        spec: tables and slots; ``dim`` of a table is that of its numbers.
        bags: the ids; without divisors.
        dtype: of the output.

    Returns:
        The pooled rows, ``(B, width)``, and how many ids were out of range, int64, ``(T,)``.

    Raises:
        IdOutOfRangeError: for an id that no row stands for, if the table's policy is ``ERROR``.
        ValueError: if a weight is not rows of the table that the spec has.

    Example:
        >>> from torchrec.ops.embedding import SlotSpec, TableSpec
        >>> rows = quantize_rows(torch.tensor([[0.0, 3.0], [1.0, 1.0]]), RowFormat.INT8)
        >>> spec = LookupSpec([TableSpec("t", 2, 2, 2)], [SlotSpec("f", 0, 0)], 1, 2)
        >>> bags = Bags(torch.tensor([1, 1, 0]), torch.tensor([0, 2, 3]))
        >>> lookup_quantized_bags([rows], [RowFormat.INT8], spec, bags, torch.float32)[0].shape
        torch.Size([2, 2])
    """
    if bags.divisors is not None:
        raise ValueError("`bags` should have no divisors here.")
    output, out_of_range = schema.quantized_bag(
        weights,
        formats,
        spec.tensor,
        bags.values,
        bags.offsets,
        bags.sample_weights,
        spec.num_keys,
        spec.width,
        dtype,
        spec.names,
    )
    return output, out_of_range


def lookup_quantized_sequences(
    weights: Sequence[Tensor],
    formats: Sequence[int],
    spec: LookupSpec,
    ids: Ids,
    dtype: torch.dtype,
) -> tuple[list[Tensor], Tensor]:
    """Look up the ids of every slot of a spec, one row an id, all tables in one call.

    Args:
        weights: rows of bytes, one ``(E, bytes)`` a table.
        formats: `RowFormat` of each.
        spec: tables and slots; pooling is not looked at.
        ids: the ids.
        dtype: of the output.

    Returns:
        One ``(count, D)`` a slot, and how many ids were out of range, int64, ``(T,)``.

    Raises:
        IdOutOfRangeError: for an id that no row stands for, if the table's policy is ``ERROR``.
        ValueError: if a weight is not rows of the table that the spec has.
    """
    outputs = schema.quantized_sequence(
        weights,
        formats,
        spec.tensor,
        ids.values,
        ids.starts,
        ids.counts,
        spec.dims,
        dtype,
        spec.names,
    )
    return list(outputs[:-1]), outputs[-1]
