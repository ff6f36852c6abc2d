"""Permutations of keys on the native library: what guards memory, and addresses."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torchrec.ops._library import native
from torchrec.ops._memory import require_integers
from torchrec.ops.jagged.native import sum_groups
from torchrec.ops.permute.reference import check_order

_lib: Any = native


def check_strides(lengths: Tensor, strides: list[int]) -> None:
    """Refuse sizes of batches that are not those of the lengths."""
    if sum(strides) != lengths.size(0) or min(strides, default=0) < 0:
        raise ValueError(
            f"`strides` should sum to the number of lengths ({lengths.size(0)}), and not be negative. "
            f"Received {strides}."
        )


def permute_jagged(
    lengths: Tensor,
    values: Tensor,
    weights: Tensor | None,
    strides: list[int],
    order: list[int],
    total: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``reference.permute_jagged``."""
    require_integers("lengths", lengths)
    check_strides(lengths, strides)
    check_order(order, len(strides))
    sizes = sum_groups(lengths, strides)
    if sum(sizes) != values.size(0):
        raise ValueError(
            f"`lengths` should sum to values.size(0) ({values.size(0)}). "
            f"Received sums of {sizes} for the keys."
        )
    found = sum([sizes[i] for i in order])
    if found != total:
        raise ValueError(
            f"`total` should be the number of values taken ({found}). Received {total}."
        )
    rows, out, taken = permute_sized(lengths, values, weights, strides, order, sizes, total)
    return rows, values.new_empty(0) if out is None else out, taken


def permute_sized(
    lengths: Tensor,
    values: Tensor,
    weights: Tensor | None,
    strides: int | list[int],
    order: list[int],
    sizes: list[int],
    total: int,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Take the keys in ``order``, each of which should have ``sizes[key]`` values."""
    lengths, values = lengths.contiguous(), values.contiguous()
    if isinstance(strides, int):
        bags, stride, each = strides * len(order), strides, []
    else:
        bags, stride, each = sum([strides[i] for i in order]), 0, strides
    taken = lengths.new_empty(bags)
    out = _empty_rows(values, total)
    out_weights = None
    if weights is not None:
        weights = weights.contiguous()
        out_weights = _empty_rows(weights, total)
    _lib.permute_jagged(
        order, stride, each, sizes, lengths, taken, values, out, weights, out_weights
    )
    return out, out_weights, taken


def _empty_rows(like: Tensor, rows: int) -> Tensor:
    return like.new_empty(rows) if like.dim() == 1 else like.new_empty((rows, *like.shape[1:]))


def regroup(inputs: list[Tensor], pieces: list[int], counts: list[int]) -> list[Tensor]:
    """See ``reference.regroup``."""
    if not inputs:
        raise ValueError("`inputs` should hold one tensor or more. Received none.")
    first = inputs[0]
    rows, dtype = first.shape[0] if first.dim() else 0, first.dtype
    sources: list[int] = []
    kept = []
    for tensor in inputs:
        shape = tensor.shape
        if len(shape) != 2 or shape[0] != rows or tensor.dtype is not dtype:
            raise ValueError(
                f"`inputs` should be two-dimensional tensors of {rows} rows and {dtype}, as the first. "
                f"Received {list(shape)} of {tensor.dtype}."
            )
        tensor = tensor.contiguous()
        kept.append(tensor)
        sources += (tensor.data_ptr(), shape[1])
    outputs = []
    targets: list[int] = []
    at = 2
    for count in counts:
        end = at + 3 * count
        columns = sum(pieces[at:end:3])
        at = end
        if columns < 0:
            raise IndexError(f"`pieces` should lie inside the inputs. Received {pieces}.")
        output = first.new_empty((rows, columns))
        outputs.append(output)
        targets += (output.data_ptr(), columns)
    if not _lib.regroup(first.element_size(), sources, pieces, counts, targets, rows):
        raise IndexError(f"`pieces` should lie inside the inputs. Received {pieces}.")
    return outputs
