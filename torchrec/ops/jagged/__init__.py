"""Jagged tensors as plain tensors: the values of all bags one after another, and the length or offset of each bag.

Bag b holds ``lengths[b]`` rows of the values, from row ``offsets[b]`` on. Lengths and offsets are int32 or int64, and
values have any dtype and any number of dimensions, the first of which is N, the number of values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchrec.ops._library import refuse_jit_trace, shortcut
from torchrec.ops._memory import require_integers
from torchrec.ops.jagged import native, schema

__all__ = [
    "are_surely_distinct",
    "bags_surely_fit",
    "jagged_index_select",
    "jagged_to_padded",
    "keyed_index_select",
    "lengths_fit",
    "lengths_to_offsets",
    "offsets_fit",
    "offsets_to_lengths",
    "padded_to_jagged",
    "sum_equal_groups",
    "sum_groups",
]


def _require_representable(number: float, dtype: torch.dtype) -> None:
    if dtype.is_floating_point or dtype.is_complex:
        return
    least, most = (
        (0, 1) if dtype is torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    )
    if not (least <= number <= most and number == int(number)):
        raise ValueError(
            f"`padding` should be a number of {dtype}, as the values are. Received {number}."
        )


def lengths_to_offsets(lengths: Tensor) -> Tensor:
    """Sum lengths up from 0: where each bag starts, and the end of the last.

    Args:
        lengths: ``[B]`` int32 or int64.

    Returns:
        ``[B + 1]`` of the same dtype.

    Raises:
        TypeError: lengths are not one-dimensional int32 or int64.
        ValueError: int32 lengths sum to 2**31 or more (on a CPU).

    Example:
        >>> lengths_to_offsets(torch.tensor([1, 0, 2]))
        tensor([0, 1, 1, 3])
    """
    offsets: Tensor = schema.lengths_to_offsets(lengths)
    return offsets


def offsets_to_lengths(offsets: Tensor) -> Tensor:
    """Return the differences of neighbouring offsets: the inverse of ``lengths_to_offsets``.

    Args:
        offsets: ``[B + 1]`` int32 or int64.

    Returns:
        ``[B]`` of the same dtype.

    Example:
        >>> offsets_to_lengths(torch.tensor([0, 1, 1, 3]))
        tensor([1, 0, 2])
    """
    require_integers("offsets", offsets)
    return offsets[1:] - offsets[:-1]


def sum_equal_groups(lengths: Tensor, groups: int) -> list[int]:
    """Sum lengths in ``groups`` consecutive groups of one size. On an accelerator this waits for the lengths.

    Args:
        lengths: ``[groups * B]`` int32 or int64.
        groups: number of groups, at least 1.

    Returns:
        One sum a group, on the host.

    Example:
        >>> sum_equal_groups(torch.tensor([1, 0, 2, 3]), 2)
        [1, 5]
    """
    sums: list[int] = schema.sum_equal_groups(lengths, groups)
    return sums


def sum_groups(lengths: Tensor, sizes: Sequence[int]) -> list[int]:
    """Sum lengths in consecutive groups of given sizes. On an accelerator this waits for the lengths, once.

    Args:
        lengths: ``[sum of sizes]`` int32 or int64.
        sizes: number of lengths in each group.

    Returns:
        One sum a group, on the host.

    Example:
        >>> sum_groups(torch.tensor([1, 0, 2, 3]), [3, 1])
        [3, 3]
    """
    if sum(sizes) != lengths.size(0):
        raise ValueError(
            f"`sizes` should sum to the number of lengths ({lengths.size(0)}). Received {sum(sizes)}."
        )
    sums: list[int] = schema.sum_groups(lengths, sizes)
    return sums


def lengths_fit(lengths: Tensor, total: int) -> bool:
    """Say whether no length is negative and they sum to ``total``. On an accelerator this waits.

    Example:
        >>> lengths_fit(torch.tensor([1, 0, 2]), 3)
        True
    """
    fit: bool = schema.lengths_fit(lengths, total)
    return fit


are_surely_distinct = native.are_surely_distinct
bags_surely_fit = native.bags_surely_fit


def offsets_fit(offsets: Tensor, total: int) -> bool:
    """Say whether offsets start at 0, never fall and end at ``total``. On an accelerator this waits.

    Example:
        >>> offsets_fit(torch.tensor([0, 2, 1]), 1)
        False
    """
    fit: bool = schema.offsets_fit(offsets, total)
    return fit


def jagged_index_select(
    values: Tensor, lengths: Tensor, bags: Tensor, total: int | None = None
) -> tuple[Tensor, Tensor]:
    """Take whole bags by position, as ``torch.index_select`` takes rows. Differentiable in the values.

    Args:
        values: ``[N, ...]`` any dtype.
        lengths: ``[B]`` int32 or int64, summing to N.
        bags: ``[M]`` positions in ``[0, B)``, int32 or int64; one may be taken several times.
        total: number of values taken; computed if not given, for which an accelerator is waited for.

    Returns:
        The values taken, ``[total, ...]``, and their lengths, ``[M]``.

    Raises:
        IndexError: a position is out of range.
        ValueError: lengths do not fit the values, or total does not fit the lengths.

    Example:
        >>> jagged_index_select(torch.tensor([5, 7, 1]), torch.tensor([1, 2]), torch.tensor([1, 0, 1]))
        (tensor([7, 1, 5, 7, 1]), tensor([2, 1, 2]))
    """
    require_integers("lengths", lengths)
    require_integers("bags", bags)
    if total is None:
        refuse_jit_trace("the lengths taken")
        total = int(lengths.index_select(0, bags).sum())
    taken: tuple[Tensor, Tensor] = schema.jagged_index_select(values, lengths, bags, total)
    return taken


def keyed_index_select(
    values: Tensor,
    weights: Tensor | None,
    lengths: Tensor,
    samples: Tensor,
    sizes: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Take the bags of some samples from every key, cut to batches. Differentiable in values and weights.

    To shuffle a large batch and cut it to small ones at once is many times faster than to gather each small
    one: the bags of a key lie close together.

    Args:
        values: ``[N, ...]`` any dtype: key after key, sample after sample within a key.
        weights: ``[N, ...]`` any dtype, or None.
        lengths: ``[keys, B]`` int32 or int64, summing to N.
        samples: ``[M]`` positions in ``[0, B)``, int32 or int64; one may be taken several times.
        sizes: number of samples of each batch, summing to M. Default: one batch.

    Returns:
        Values, weights and lengths (``[keys * M]``) of the batches, one batch after another; each is laid
        out as the input is.

    Raises:
        IndexError: a position is out of range.
        ValueError: lengths do not fit the values, or sizes the samples.

    Example:
        >>> values, _, lengths = keyed_index_select(
        ...     torch.tensor([5, 7, 1, 2]), None, torch.tensor([[1, 1], [0, 2]]), torch.tensor([1, 0]), [1, 1]
        ... )
        >>> values, lengths
        (tensor([7, 1, 2, 5]), tensor([1, 2, 1, 0]))
    """
    require_integers("lengths", lengths.flatten())
    require_integers("samples", samples)
    parts = [samples.numel()] if sizes is None else list(sizes)
    if sum(parts) != samples.numel() or min(parts, default=0) < 0:
        raise ValueError(
            f"`sizes` should not be negative and sum to the number of samples ({samples.numel()}). "
            f"Received {parts}."
        )
    if lengths.dim() != 2 or (weights is not None and weights.size(0) != values.size(0)):
        raise ValueError(
            "`lengths` should have the dimensions [keys, B], and there be a weight for each of the "
            f"{values.size(0)} values. Received lengths of shape {list(lengths.shape)}"
            + ("." if weights is None else f" and {weights.size(0)} weights.")
        )
    taken: tuple[Tensor, Tensor | None, Tensor] = _keyed_index_select(
        values, weights, lengths, samples, parts
    )
    return taken


def _compose_keyed_index_select(
    values: Tensor, weights: Tensor | None, lengths: Tensor, samples: Tensor, parts: list[int]
) -> tuple[Tensor, Tensor | None, Tensor]:
    keys, stride = lengths.shape
    if samples.is_cpu and bool(((samples < 0) | (samples >= stride)).any()):
        raise IndexError(f"`samples` should be in [0, {stride}), the batch. Received others.")
    first = torch.arange(keys, device=samples.device)[:, None] * stride
    bags = torch.cat([first[:0, 0], *((first + part).flatten() for part in samples.split(parts))])
    lengths = lengths.flatten()
    taken, of_bags = jagged_index_select(values, lengths, bags)
    if weights is not None:
        weights, _ = jagged_index_select(weights, lengths, bags)
    return taken, weights, of_bags


_keyed_index_select = shortcut(
    native.keyed_index_select, composed=_compose_keyed_index_select, tensors=(0, 1, 2, 3)
)


def jagged_to_padded(values: Tensor, offsets: Tensor, width: int, padding: float = 0.0) -> Tensor:
    """Lay each bag into its row of a dense tensor: cut what is longer, pad what is shorter. Differentiable.

    Args:
        values: ``[N, ...]`` any dtype.
        offsets: ``[B + 1]`` int32 or int64.
        width: length of every row.
        padding: what stands behind a bag that is shorter. Default 0.

    Returns:
        ``[B, width, ...]`` of the dtype of the values.

    Raises:
        ValueError: offsets do not fit the values, width is negative, or the dtype cannot hold the padding.

    Example:
        >>> jagged_to_padded(torch.tensor([5, 7, 1]), torch.tensor([0, 1, 3]), 2)
        tensor([[5, 0],
                [7, 1]])
    """
    require_integers("offsets", offsets)
    if width < 0:
        raise ValueError(f"`width` should be 0 or more. Received {width}.")
    if padding != 0:
        _require_representable(padding, values.dtype)
    padded: Tensor = schema.jagged_to_padded(values, offsets, width, float(padding))
    return padded


def padded_to_jagged(padded: Tensor, offsets: Tensor, total: int) -> Tensor:
    """Take each bag from its row of a dense tensor: the inverse of ``jagged_to_padded``. Differentiable.

    Args:
        padded: ``[B, L, ...]`` any dtype. A bag longer than L ends in zeros.
        offsets: ``[B + 1]`` int32 or int64.
        total: number of values, N: the last offset.

    Returns:
        ``[N, ...]`` of the same dtype.

    Raises:
        ValueError: offsets do not fit the dense tensor or the total.

    Example:
        >>> padded_to_jagged(torch.tensor([[5, 0], [7, 1]]), torch.tensor([0, 1, 3]), 3)
        tensor([5, 7, 1])
    """
    require_integers("offsets", offsets)
    if padded.dim() < 2 or padded.size(0) != offsets.size(0) - 1:
        raise ValueError(
            f"`padded` should be [B, L, ...] with B = {offsets.size(0) - 1}, one less than the offsets. "
            f"Received {list(padded.shape)}."
        )
    values: Tensor = schema.padded_to_jagged(padded, offsets, total)
    return values
