"""Operators that share ids out between ranks: to which each goes, and what it is called there.

All sizes follow from those of the inputs, so that the operators can be traced: an id is one number of a sort by
(rank, bag).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchrec.compat._permutations import positions_in_bags
from torchrec.ops import is_readable
from torchrec.ops.jagged import lengths_fit, lengths_to_offsets

Buckets = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


def _divide_unsigned(ids: Tensor, by: Tensor | int) -> tuple[Tensor, Tensor]:
    """Divide int64 numbers as if they had no sign; return quotient and remainder.

    A negative one stands for one above 2**63. Half of it is positive; twice its quotient misses at most 1.
    """
    half = (ids >> 1) & (2**63 - 1)
    quotient = torch.div(half, by, rounding_mode="floor") * 2
    remainder = ids - quotient * by
    over = (remainder >= by) | (remainder < 0)
    return quotient + over.long(), remainder - over * by


def _unsigned(ids: Tensor) -> Tensor:
    """Return ids as int64; negative ones as the unsigned number of their own width, where that fits."""
    wide = ids.long()
    return wide if ids.dtype == torch.int64 else wide & 0xFFFFFFFF


def _is_below(ids: Tensor, limit: Tensor) -> Tensor:
    return (ids >= 0) & (ids < limit)


def _by_blocks(
    ids: Tensor, block_sizes: Tensor, blocks: Tensor, my_size: int
) -> tuple[Tensor, Tensor]:
    """Return rank and new id: each rank holds as many consecutive blocks as the others."""
    of_rank = torch.div(blocks, my_size, rounding_mode="floor")
    rows = block_sizes * of_rank
    inside = _is_below(ids, block_sizes * blocks)
    quotient, remainder = _divide_unsigned(ids, blocks)
    safe = rows.clamp(min=1)
    rank = torch.where(
        inside,
        torch.div(ids, safe, rounding_mode="floor"),
        torch.div(remainder, of_rank.clamp(min=1), rounding_mode="floor"),
    )
    return rank, torch.where(inside, ids % safe, quotient)


def _by_boundaries(ids: Tensor, boundaries: Tensor, my_size: int) -> tuple[Tensor, Tensor]:
    """Return rank and new id: rank r holds the ids from ``boundaries[r]`` to the next, of each id a row."""
    inside = _is_below(ids, boundaries[:, my_size])
    rank_inside = (boundaries <= ids[:, None]).sum(1) - 1
    start = boundaries.gather(1, rank_inside.clamp(0, my_size)[:, None])[:, 0]
    quotient, remainder = _divide_unsigned(ids, my_size)
    return rank_inside.where(inside, remainder), (ids - start).where(inside, quotient)


def _share_out(
    lengths: Tensor,
    indices: Tensor,
    ranks: Tensor,
    new_ids: Tensor,
    weights: Tensor | None,
    my_size: int,
    offsets: Tensor,
    bag_of_each: Tensor,
    bucketize_pos: bool,
    sequence: bool,
) -> Buckets:
    """Lay ids in the order of rank and bag, and say where each went."""
    bags = lengths.size(0)
    place = ranks * bags + bag_of_each
    order = torch.argsort(place, stable=True)
    shared = lengths.new_zeros(my_size * bags).scatter_add(
        0, place, lengths.new_ones(()).expand(place.shape)
    )
    positions = unsorted = None
    if bucketize_pos:
        positions = positions_in_bags(offsets[:-1], indices.size(0))[order].to(indices.dtype)
    if sequence:
        new_places = torch.arange(indices.size(0), dtype=indices.dtype, device=indices.device)
        unsorted = torch.empty_like(indices).scatter(0, order, new_places)
    taken = None if weights is None else weights.index_select(0, order)
    return shared, new_ids.index_select(0, order).to(indices.dtype), taken, positions, unsorted


def _bags_of(lengths: Tensor, count: int) -> Tensor:
    bags = torch.arange(lengths.size(0), device=lengths.device)
    return torch.repeat_interleave(bags, lengths, output_size=count)


def _features_of(
    bags: Tensor, lengths: Tensor, features: int, batch_sizes: Tensor | None
) -> Tensor:
    if batch_sizes is None:
        return torch.div(bags, max(lengths.size(0) // features, 1), rounding_mode="floor")
    return torch.searchsorted(batch_sizes.long().cumsum(0), bags, right=True)


def _check(lengths: Tensor, features: int, my_size: int, batch_sizes: Tensor | None) -> None:
    if my_size < 1:
        raise ValueError(f"`my_size` should be at least 1. Received {my_size}.")
    if batch_sizes is None and lengths.size(0) % max(features, 1):
        raise ValueError(
            f"`lengths` should have as many bags for each of the {features} features of `block_sizes`. "
            f"Received {lengths.size(0)}."
        )


def _check_numbers(lengths: Tensor, indices: Tensor, my_size: int, blocks: Tensor | None) -> None:
    """Check what takes a look at numbers, where they can be looked at."""
    if is_readable(lengths) and not lengths_fit(lengths, indices.size(0)):
        raise ValueError(
            f"`lengths` should not be negative and sum to the number of ids ({indices.size(0)}). "
            f"Received lengths that sum to {int(lengths.sum())}."
        )
    if blocks is not None and is_readable(blocks):
        uneven = blocks[blocks % my_size != 0]
        if uneven.numel():
            raise ValueError(
                f"`total_num_blocks` should be multiples of `my_size` ({my_size}). "
                f"Received {int(uneven[0])}."
            )


def block_bucketize_sparse_features(
    lengths: Tensor,
    indices: Tensor,
    bucketize_pos: bool,
    sequence: bool,
    block_sizes: Tensor,
    my_size: int,
    weights: Tensor | None = None,
    batch_size_per_feature: Tensor | None = None,
    max_B: int = -1,
    block_bucketize_pos: Sequence[Tensor] | None = None,
    keep_orig_idx: bool = False,
    total_num_blocks: Tensor | None = None,
    keep_orig_idx_per_feature: Tensor | None = None,
) -> Buckets:
    """Share ids out by blocks of rows. Returns lengths, ids, weights, positions in bags, and where each id went."""
    buckets, _ = _block_bucketize(
        lengths, indices, bucketize_pos, sequence, block_sizes, my_size, weights,
        batch_size_per_feature, block_bucketize_pos, keep_orig_idx, total_num_blocks,
        keep_orig_idx_per_feature,
    )  # fmt: skip
    return buckets


def block_bucketize_sparse_features_inference(
    lengths: Tensor,
    indices: Tensor,
    bucketize_pos: bool,
    sequence: bool,
    block_sizes: Tensor,
    my_size: int,
    weights: Tensor | None = None,
    batch_size_per_feature: Tensor | None = None,
    max_B: int = -1,
    block_bucketize_pos: Sequence[Tensor] | None = None,
    return_bucket_mapping: bool = False,
    keep_orig_idx: bool = False,
    total_num_blocks: Tensor | None = None,
    keep_orig_idx_per_feature: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Share ids out by blocks of rows; with the rank of each id, if asked for."""
    buckets, ranks = _block_bucketize(
        lengths, indices, bucketize_pos, sequence, block_sizes, my_size, weights,
        batch_size_per_feature, block_bucketize_pos, keep_orig_idx, total_num_blocks,
        keep_orig_idx_per_feature,
    )  # fmt: skip
    return *buckets, ranks.to(indices.dtype) if return_bucket_mapping else None


def block_bucketize_sparse_features_2d_weights(
    lengths: Tensor,
    indices: Tensor,
    bucketize_pos: bool,
    sequence: bool,
    block_sizes: Tensor,
    my_size: int,
    weights: Tensor,
    weights_dim: int = 1,
    batch_size_per_feature: Tensor | None = None,
    max_B: int = -1,
    block_bucketize_pos: Sequence[Tensor] | None = None,
    keep_orig_idx: bool = False,
    total_num_blocks: Tensor | None = None,
    keep_orig_idx_per_feature: Tensor | None = None,
) -> Buckets:
    """Share ids out by blocks of rows, with a row of ``weights_dim`` weights each."""
    buckets, _ = _block_bucketize(
        lengths, indices, bucketize_pos, sequence, block_sizes, my_size,
        weights.view(-1, weights_dim), batch_size_per_feature, block_bucketize_pos,
        keep_orig_idx, total_num_blocks, keep_orig_idx_per_feature,
    )  # fmt: skip
    return buckets


def _block_bucketize(
    lengths: Tensor,
    indices: Tensor,
    bucketize_pos: bool,
    sequence: bool,
    block_sizes: Tensor,
    my_size: int,
    weights: Tensor | None,
    batch_sizes: Tensor | None,
    boundaries: Sequence[Tensor] | None,
    keep: bool,
    total_num_blocks: Tensor | None,
    keep_of_feature: Tensor | None,
) -> tuple[Buckets, Tensor]:
    lengths = lengths.flatten()
    features = block_sizes.size(0)
    _check(lengths, features, my_size, batch_sizes)
    _check_numbers(lengths, indices, my_size, total_num_blocks)
    bag_of_each = _bags_of(lengths, indices.size(0))
    feature = _features_of(bag_of_each, lengths, features, batch_sizes)
    ids = _unsigned(indices)
    if boundaries is not None:
        fewest = min((of_feature.size(0) for of_feature in boundaries), default=my_size + 1)
        if fewest <= my_size:
            raise ValueError(
                f"`block_bucketize_pos` should have my_size + 1 ({my_size + 1}) boundaries a feature. "
                f"Received {fewest}."
            )
        rows = torch.stack([of_feature[: my_size + 1].long() for of_feature in boundaries])
        ranks, new_ids = _by_boundaries(ids, rows[feature], my_size)
    else:
        blocks = (
            torch.full_like(block_sizes, my_size) if total_num_blocks is None else total_num_blocks
        )
        ranks, new_ids = _by_blocks(
            ids, block_sizes.long()[feature], blocks.long()[feature], my_size
        )
    if keep_of_feature is not None:
        new_ids = indices.long().where(keep_of_feature.bool()[feature], new_ids)
    elif keep:
        new_ids = indices.long()
    buckets = _share_out(
        lengths, indices, ranks, new_ids, weights, my_size, lengths_to_offsets(lengths),
        bag_of_each, bucketize_pos, sequence,
    )  # fmt: skip
    return buckets, ranks


def bucketize_sparse_features(
    lengths: Tensor,
    indices: Tensor,
    bucketize_pos: bool,
    my_size: int,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Share ids out by their remainder. Returns lengths, ids, weights and positions in bags."""
    lengths = lengths.flatten()
    _check(lengths, 1, my_size, None)
    _check_numbers(lengths, indices, my_size, None)
    new_ids, ranks = _divide_unsigned(_unsigned(indices), my_size)
    shared, ids, taken, positions, _ = _share_out(
        lengths, indices, ranks, new_ids, weights, my_size, lengths_to_offsets(lengths),
        _bags_of(lengths, indices.size(0)), bucketize_pos, False,
    )  # fmt: skip
    return shared, ids, taken, positions
