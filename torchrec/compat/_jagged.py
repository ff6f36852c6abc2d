"""Operators on jagged tensors: sums of lengths, padding, and arithmetic with dense tensors.

A tensor may be jagged in several dimensions: the offsets of each say where the bags of the one before it end. The
innermost is padded first, so that its padded bags are the values of the next.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchrec.ops import is_readable
from torchrec.ops.jagged import (
    jagged_index_select as select_bags,
)
from torchrec.ops.jagged import (
    jagged_to_padded,
    lengths_to_offsets,
    padded_to_jagged,
)

_INTEGERS = (torch.int32, torch.int64)


def complete_cumsum(t_in: Tensor) -> Tensor:
    """Sum up from 0: one more than there are; the rows of a matrix each."""
    if t_in.dim() not in (1, 2):
        raise ValueError(f"`t_in` should have 1 or 2 dimensions. Received {t_in.dim()}.")
    if t_in.dim() == 1 and t_in.dtype in _INTEGERS:
        return lengths_to_offsets(t_in)
    zero = t_in.new_zeros((*t_in.shape[:-1], 1))
    return torch.cat([zero, t_in.cumsum(-1, dtype=t_in.dtype)], -1)


def inclusive_cumsum(t_in: Tensor) -> Tensor:
    """Sum up all numbers, in the order in which they lie: each with those before it."""
    return t_in.flatten().cumsum(0, dtype=t_in.dtype).view(t_in.shape)


def exclusive_cumsum(t_in: Tensor) -> Tensor:
    """Sum up all numbers, in the order in which they lie: those before each."""
    return inclusive_cumsum(t_in) - t_in


def _end(offsets: Tensor) -> int | None:
    """Return where the last bag ends, if that can be seen."""
    return int(offsets[-1]) if is_readable(offsets) and offsets.numel() else None


def pad_jagged(
    values: Tensor,
    offsets: Sequence[Tensor],
    max_lengths: Sequence[int],
    padding_value: float = 0.0,
) -> Tensor:
    """Lay bags into a dense tensor: cut what is longer, pad what is shorter; leave out what lies behind the last."""
    if not offsets or len(offsets) != len(max_lengths):
        raise ValueError(
            "`max_lengths` should have a number for each of the `offsets`, of which there is at least one. "
            f"Received {len(max_lengths)} and {len(offsets)}."
        )
    if not values.is_floating_point():
        padding_value = float(int(padding_value))
    for inner, width in zip(reversed(offsets), reversed(max_lengths), strict=True):
        end = _end(inner)
        if end is not None and end > values.size(0):
            raise ValueError(
                f"`offsets` should end within the {values.size(0)} values. Received {end}."
            )
        if end is not None and 0 <= end < values.size(0):
            values = values[:end]
        values = jagged_to_padded(values, inner, width, padding_value)
    return values


def take_jagged(dense: Tensor, offsets: Sequence[Tensor], total: int | None = None) -> Tensor:
    """Take the bags out of a dense tensor. One longer than its row ends in zeros; behind the last are zeros."""
    if not offsets or dense.dim() != len(offsets) + 2:
        raise ValueError(
            "The dense tensor should have two dimensions more than there are `x_offsets`, of which there is at "
            f"least one. Received {dense.dim()} dimensions and {len(offsets)}."
        )
    for outer, inner in zip(offsets, [*offsets[1:], None], strict=True):
        end = _end(outer)
        if inner is not None:
            size = inner.size(0) - 1
        elif total is not None:
            size = total
        else:
            size = int(outer[-1]) if end is None else end
        behind = 0 if end is None else size - end
        if behind < 0:
            raise ValueError(
                f"The number of values should not be less than where `x_offsets` end ({end}). "
                f"Received {size}."
            )
        dense = padded_to_jagged(dense, outer, size - behind)
        if behind > 0:
            dense = torch.cat([dense, dense.new_zeros((behind, *dense.shape[1:]))])
    return dense


def dense_to_jagged(
    dense: Tensor, x_offsets: list[Tensor], total_L: int | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Take the bags out of a dense tensor; with the offsets."""
    return take_jagged(dense, x_offsets, total_L), x_offsets


def add_to_jagged(
    x_values: Tensor, x_offsets: list[Tensor], y: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Add what stands in the same places of a dense tensor; nothing where it is shorter."""
    return x_values + take_jagged(y, x_offsets, x_values.size(0)), x_offsets


def add_two_to_jagged(
    x_values: Tensor, x_offsets: list[Tensor], y_0: Tensor, y_1: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Add what stands in the same places of two dense tensors."""
    return add_to_jagged(x_values, x_offsets, y_0 + y_1)


def add_to_dense(x_values: Tensor, x_offsets: list[Tensor], y: Tensor) -> Tensor:
    """Add a jagged tensor to a dense one, whose places without a value stay as they are."""
    return pad_jagged(x_values, x_offsets, y.shape[1:-1]) + y


def multiply_jagged(
    x_values: Tensor, x_offsets: list[Tensor], y: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Multiply by what stands in the same places of a dense tensor; by 0 where it is shorter."""
    return x_values * take_jagged(y, x_offsets, x_values.size(0)), x_offsets


def pad_matrix(values: Tensor, offsets: Tensor, max_sequence_length: int) -> Tensor:
    """Lay bags of vectors into a dense tensor, padded with 0."""
    return pad_jagged(values, [offsets], [max_sequence_length])


def pad_vector(
    values: Tensor, offsets: Tensor, max_sequence_length: int, padding_value: int
) -> Tensor:
    """Lay bags of numbers into a matrix."""
    if values.dim() != 1:
        raise ValueError(f"`values` should have one dimension. Received {values.dim()}.")
    return pad_jagged(values, [offsets], [max_sequence_length], padding_value)


def pad_stacked(
    values: Tensor,
    lengths: Tensor,
    offset_per_key: Sequence[int],
    max_lengths_per_key: Sequence[int],
    padding_value: int = 0,
) -> list[Tensor]:
    """Lay the bags of each key into a dense tensor of its own."""
    if not lengths.size(0) == len(max_lengths_per_key) == len(offset_per_key) - 1:
        raise ValueError(
            f"`lengths` should have a row, and `max_lengths_per_key` a number, for each of the "
            f"{len(offset_per_key) - 1} keys of `offset_per_key`. "
            f"Received {lengths.size(0)} and {len(max_lengths_per_key)}."
        )
    return [
        pad_jagged(
            values[start:stop], [lengths_to_offsets(row.contiguous())], [width], padding_value
        )
        for row, width, start, stop in zip(
            lengths, max_lengths_per_key, offset_per_key, offset_per_key[1:], strict=False
        )
    ]


def pack_segments(t_in: Tensor, lengths: Tensor, max_length: int) -> Tensor:
    """Lay bags, whose lengths are given, into a dense tensor, padded with 0."""
    return pad_jagged(t_in, [lengths_to_offsets(lengths)], [max_length])


def softmax(values: Tensor, x_offsets: Tensor, max_L: int) -> tuple[Tensor, Tensor]:
    """Apply softmax to each column of each bag; 0 behind the first ``max_L``."""
    padded = pad_jagged(values, [x_offsets], [max_L], float("-inf"))
    return take_jagged(padded.softmax(1), [x_offsets], values.size(0)), x_offsets


def multiply_bags(x_values: Tensor, y_values: Tensor, x_offsets: Tensor, max_L: int) -> Tensor:
    """Multiply the matrices of two jagged tensors, bag by bag, the first transposed."""
    x, y = (pad_jagged(values, [x_offsets], [max_L]) for values in (x_values, y_values))
    return x.transpose(1, 2) @ y


def multiply_bags_by_dense(
    x_values: Tensor, x_offsets: Tensor, y: Tensor, max_L: int
) -> tuple[Tensor, Tensor]:
    """Multiply the matrix of each bag by one of a dense tensor; 0 behind the first ``max_L``."""
    products = pad_jagged(x_values, [x_offsets], [max_L]) @ y
    return take_jagged(products, [x_offsets], x_values.size(0)), x_offsets


def multiply_vectors_by_bags(v: Tensor, a_values: Tensor, a_offsets: Tensor) -> Tensor:
    """Sum the vectors of each bag, times the numbers of a row; several rows take a part of the columns each."""
    bags = a_offsets.size(0) - 1
    if v.size(0) % max(bags, 1):
        raise ValueError(
            f"`v` should have as many rows for each of the {bags} bags. Received {v.size(0)}."
        )
    heads = v.size(0) // max(bags, 1)
    padded = pad_jagged(a_values, [a_offsets], [v.size(1)])
    parts = padded.unflatten(2, (heads, -1)).transpose(1, 2)
    products: Tensor = v.view(bags, heads, 1, -1) @ parts
    return products.view(bags * heads, -1)


def select_jagged(
    values: Tensor, lengths: Tensor, indices: Tensor, num_dense_output_rows: int | None = None
) -> list[Tensor]:
    """Take whole bags by position."""
    return list(select_bags(values, lengths, indices, num_dense_output_rows))


def slice_jagged(
    x_values: Tensor, x_lengths: Tensor, start: Tensor, slice_length: int
) -> tuple[Tensor, Tensor]:
    """Take up to ``slice_length`` values of each bag, from its position ``start`` on."""
    if is_readable(start) and bool((start < 0).any()):
        raise ValueError(f"`start` should not be negative. Received {int(start.min())}.")
    lengths = (x_lengths - start).clamp(min=0, max=slice_length)
    total = int(lengths.sum())
    first = lengths_to_offsets(x_lengths)[:-1] + start - lengths_to_offsets(lengths)[:-1]
    shift = torch.repeat_interleave(first, lengths, output_size=total)
    return x_values.index_select(0, torch.arange(total, device=shift.device) + shift), lengths
