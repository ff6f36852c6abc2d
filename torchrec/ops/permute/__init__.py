"""Permutations of keys: of jagged data (ids), and of dense columns (pooled embeddings)."""

from __future__ import annotations

from torch import Tensor

from torchrec.ops._library import shortcut
from torchrec.ops.jagged import sum_groups
from torchrec.ops.permute import native, schema
from torchrec.ops.permute.reference import check_order

__all__ = ["permute_jagged", "regroup"]


def permute_jagged(
    lengths: Tensor,
    values: Tensor,
    weights: Tensor | None,
    strides: int | list[int],
    order: list[int],
    sizes: list[int] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Take keys of jagged data by position: lengths, values and weights in one call.

    Differentiable in the values and the weights.

    Args:
        lengths: lengths of the bags, key after key, int32 or int64.
        values: ``[N, ...]`` any dtype.
        weights: ``[N]`` any dtype, or None.
        strides: number of bags of every key (sizes have to be given too), or of each.
        order: positions of the keys to take; a key may be left out or taken several times.
        sizes: number of values of each key, if known: the sums of its lengths. Without them an
            accelerator is waited for, unless every key is taken once.

    Returns:
        Values, weights and lengths of the keys taken.

    Raises:
        IndexError: a position is out of range.

    Example:
        >>> import torch
        >>> lengths, values = torch.tensor([1, 0, 2, 1]), torch.tensor([5, 6, 7, 8])
        >>> permute_jagged(lengths, values, None, 2, [1, 0], [1, 3])
        (tensor([6, 7, 8, 5]), None, tensor([2, 1, 1, 0]))
    """
    if sizes is None and isinstance(strides, int):
        raise ValueError("`sizes` should be given if `strides` is one number. Received None.")
    taken: tuple[Tensor, Tensor | None, Tensor] = _permute_jagged(
        lengths, values, weights, strides, order, sizes
    )
    return taken


def _all_once(order: list[int], keys: int) -> bool:
    return keys == len(order) == len(set(order))


def _permute_sized(
    lengths: Tensor,
    values: Tensor,
    weights: Tensor | None,
    strides: int | list[int],
    order: list[int],
    sizes: list[int] | None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    if not isinstance(strides, int):
        check_order(order, len(strides))
        if sizes is None:
            native.check_strides(lengths, strides)
            sizes = sum_groups(lengths, strides)
    assert sizes is not None
    total = values.size(0)
    if not _all_once(order, len(sizes)):  # else positions are checked by the kernel, in no time
        check_order(order, len(sizes))
        if sum(sizes) != total or min(sizes, default=0) < 0:  # before there is memory for as many
            raise ValueError(
                f"`sizes` should be 0 or more and sum to values.size(0) ({total}). Received {sizes}."
            )
        total = sum([sizes[i] for i in order])
    return native.permute_sized(lengths, values, weights, strides, order, sizes, total)


def _compose_permute_jagged(
    lengths: Tensor,
    values: Tensor,
    weights: Tensor | None,
    strides: int | list[int],
    order: list[int],
    sizes: list[int] | None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    each = [strides] * len(sizes or ()) if isinstance(strides, int) else strides
    if not isinstance(order, list) or not all(isinstance(i, int) for i in order):
        raise TypeError(f"`order` should be a list of positions. Received {order!r}.")
    check_order(order, len(each))
    total = values.size(0)
    if not _all_once(order, len(each)):
        sizes = sum_groups(lengths, each) if sizes is None else sizes
        total = sum([sizes[i] for i in order])
    rows, out, taken = schema.permute_jagged(lengths, values, weights, each, order, total)
    return rows, None if weights is None else out, taken


_permute_jagged = shortcut(_permute_sized, composed=_compose_permute_jagged, tensors=(0, 1, 2))


def regroup(inputs: list[Tensor], pieces: list[int], counts: list[int]) -> list[Tensor]:
    """Join columns of several matrices in new groups, all in one call. Differentiable.

    Args:
        inputs: matrices ``[B, C_i]`` of one dtype.
        pieces: (input, first column, number of columns) of each piece, one behind the other.
        counts: number of pieces of each output.

    Returns:
        One matrix an output: its pieces side by side.

    Raises:
        ValueError: the inputs differ in rows or dtype.
        IndexError: a piece does not lie in its input.

    Example:
        >>> import torch
        >>> a, b = torch.tensor([[1, 2, 3]]), torch.tensor([[4, 5]])
        >>> regroup([a, b], [0, 1, 2, 1, 0, 1, 0, 0, 1], [2, 1])
        [tensor([[2, 3, 4]]), tensor([[1]])]
    """
    outputs: list[Tensor] = schema.regroup(inputs, pieces, counts)
    return outputs
