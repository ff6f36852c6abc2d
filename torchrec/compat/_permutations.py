"""Operators that take keys, bags or columns in another order, and the positions that they need."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchrec.ops import is_readable
from torchrec.ops.jagged import jagged_index_select, lengths_to_offsets

Permuted = tuple[Tensor, Tensor, Tensor | None]


def _take_bags(
    bags: Tensor, lengths: Tensor, values: Tensor, weights: Tensor | None, total: int | None
) -> Permuted:
    taken, taken_lengths = jagged_index_select(values, lengths, bags, total)
    if weights is not None:
        weights, _ = jagged_index_select(weights, lengths, bags, taken.size(0))
    return taken_lengths, taken, weights


def _require_positions(permute: Tensor) -> None:
    if permute.dim() != 1 or permute.dtype not in (torch.int32, torch.int64):
        raise TypeError(
            "`permute` should be a one-dimensional int32 or int64 tensor. "
            f"Received {permute.dim()} dimensions of {permute.dtype}."
        )


def _require_within(positions: Tensor, count: int, name: str = "permute") -> None:
    """Check positions where they can be looked at; elsewhere the operators below do, in their words."""
    if is_readable(positions) and positions.numel():
        least, most = int(positions.min()), int(positions.max())
        if least < 0 or most >= count:
            raise IndexError(
                f"`{name}` should be in [0, {count}). Received {least if least < 0 else most}."
            )


def permute_keys(
    permute: Tensor,
    lengths: Tensor,
    values: Tensor,
    weights: Tensor | None = None,
    permuted_lengths_sum: int | None = None,
) -> Permuted:
    """Take keys, whose bags are a row of ``lengths`` each, by position; one may be left out or taken twice."""
    _require_positions(permute)
    if lengths.dim() != 2:
        raise ValueError(f"`lengths` should have 2 dimensions. Received {lengths.dim()}.")
    _require_within(permute, lengths.size(0))
    stride = lengths.size(1)
    column = torch.arange(stride, device=permute.device)
    bags = (permute.long()[:, None] * stride + column).flatten()
    taken, *rest = _take_bags(bags, lengths.reshape(-1), values, weights, permuted_lengths_sum)
    return taken.view(permute.size(0), stride), rest[0], rest[1]  # type: ignore[return-value]


def permute_keys_of_stride(
    permute: Tensor,
    lengths: Tensor,
    values: Tensor,
    stride: int,
    weights: Tensor | None = None,
    permuted_lengths_sum: int | None = None,
) -> Permuted:
    """Take keys of ``stride`` bags each by position, with flat lengths."""
    by_key = lengths.view(-1, stride)
    taken, values, weights = permute_keys(permute, by_key, values, weights, permuted_lengths_sum)
    return taken.flatten(), values, weights


def permute_bags(
    permute: Tensor,
    lengths: Tensor,
    values: Tensor,
    weights: Tensor | None = None,
    permuted_lengths_sum: int | None = None,
) -> Permuted:
    """Take bags by position; one may be left out or taken twice."""
    _require_positions(permute)
    _require_within(permute, lengths.numel())
    return _take_bags(permute, lengths.flatten(), values, weights, permuted_lengths_sum)


def select_samples(
    values: Tensor,
    lengths: Tensor,
    offsets: Tensor,
    indices: Tensor,
    batch_size: int,
    weights: Tensor | None = None,
    selected_lengths_sum: int | None = None,
) -> list[Tensor]:
    """Take samples by position from every key of a batch; ``offsets`` are those of the lengths, and not read."""
    _require_within(indices, batch_size, "indices")
    keys = lengths.size(0) // max(batch_size, 1)
    first = torch.arange(keys, device=indices.device) * batch_size
    bags = (first[:, None] + indices.long()).flatten()
    taken_lengths, taken, weights = _take_bags(bags, lengths, values, weights, selected_lengths_sum)
    return [taken, taken_lengths] if weights is None else [taken, taken_lengths, weights]


def _bag_of_each(offsets: Tensor, total: int) -> Tensor:
    """Return, for each of ``total`` positions, the bag that it is in."""
    positions = torch.arange(total, device=offsets.device, dtype=offsets.dtype)
    return torch.searchsorted(offsets.contiguous(), positions, right=True) - 1


def expand_permutation(
    permute: Tensor, input_offset: Tensor, output_offset: Tensor, output_size: int
) -> Tensor:
    """Turn a permutation of bags into one of their values: where each value of the output comes from."""
    bags = _bag_of_each(output_offset[:-1], output_size)
    shift = input_offset.index_select(0, permute) - output_offset[:-1]
    positions = torch.arange(output_size, device=permute.device)
    return (positions + shift.index_select(0, bags)).to(permute.dtype)


def invert_permutation(permute: Tensor) -> Tensor:
    """Return where each position went."""
    _require_positions(permute)
    inverse = permute.argsort()
    if is_readable(permute) and not torch.equal(
        permute[inverse].long(), torch.arange(permute.size(0), device=permute.device)
    ):
        raise ValueError(
            f"`permute` should hold each position in [0, {permute.size(0)}) once. Received {permute.tolist()}."
        )
    return inverse.to(permute.dtype)


def positions_in_bags(offsets: Tensor, range_size: int) -> Tensor:
    """Return the position of each value within its bag. ``offsets`` are the starts of the bags."""
    positions = torch.arange(range_size, dtype=offsets.dtype, device=offsets.device)
    return positions - offsets.index_select(0, _bag_of_each(offsets, range_size))


def positions_by_lengths(t_in: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """Return the position of each value within its bag; ``shape`` may say how many there are."""
    total = int(t_in.sum()) if shape is None else torch.Size(shape).numel()
    return positions_in_bags(lengths_to_offsets(t_in.flatten())[:-1], total)


def repeat_arange(lengths: Tensor) -> Tensor:
    """Return the position of each value within its bag."""
    return positions_by_lengths(lengths)


def permute_columns(
    pooled_embs: Tensor,
    offset_dim_list: Tensor,
    permute_list: Tensor,
    inv_offset_dim_list: Tensor,
    inv_permute_list: Tensor,
) -> Tensor:
    """Take the columns of features in another order. The inverse is not needed: it is the gradient's."""
    dims = offset_dim_list.diff().index_select(0, permute_list)
    columns = expand_permutation(
        permute_list, offset_dim_list, lengths_to_offsets(dims), pooled_embs.size(1)
    )
    return pooled_embs.index_select(1, columns)


def regroup(
    pooled_embs: list[Tensor],
    keys: list[list[str]],
    lengths: list[list[int]],
    groups: list[list[str]],
) -> list[Tensor]:
    """Join the columns of keys in new groups."""
    columns: dict[str, Tensor] = {}
    for tensor, of_tensor, sizes in zip(pooled_embs, keys, lengths, strict=True):
        columns.update(zip(of_tensor, tensor.split(list(sizes), 1), strict=True))
    return [torch.cat([columns[key] for key in group], 1) for group in groups]


def select_rows(
    input: Tensor,
    indices: Tensor,
    consecutive_range_start: int | None = 0,
    consecutive_range_length: int | None = 0,
    skip_indices_sorting_fwd: bool | None = None,
) -> Tensor:
    """Take rows by position. The other arguments only make kernels elsewhere faster."""
    return input.index_select(0, indices)


def select_rows_of_each(input_group: list[Tensor], indices_group: list[Tensor]) -> list[Tensor]:
    """Take rows of several tensors by position."""
    return [
        rows.index_select(0, indices)
        for rows, indices in zip(input_group, indices_group, strict=True)
    ]


def sum_segments(batch_size: int, csr_seg: Tensor, values: Tensor) -> Tensor:
    """Sum stretches of numbers: ``csr_seg`` says where each starts, in units of ``batch_size``."""
    flat = values.flatten()
    wide = flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat
    segments = csr_seg.size(0) - 1
    of_each = _bag_of_each(csr_seg * batch_size, flat.size(0))
    inside = (of_each >= 0) & (of_each < segments)
    # One place more for what lies outside of all segments.
    sums = wide.new_zeros(segments + 1).index_add(0, of_each.where(inside, segments), wide)
    return sums[:segments].to(values.dtype)
