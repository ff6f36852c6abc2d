"""The jagged operators on the native library: what guards memory, and addresses."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from torchrec.ops._library import native
from torchrec.ops._memory import is_wide, require_integers
from torchrec.ops._private import has_transforms

_lib: Any = native
# Said everywhere: another default device must not redirect what kernels write to.
_CPU = torch.device("cpu")


def row_bytes(rows: Tensor) -> int:
    """Return the size of one row of a contiguous tensor, in bytes."""
    size = rows.element_size()
    return size if rows.dim() == 1 else size * prod(rows.shape[1:])


def _offsets(offsets: Tensor) -> Tensor:
    if offsets.dim() != 1 or offsets.numel() == 0:
        raise ValueError(
            "`offsets` should be one-dimensional, and one more than there are bags. "
            f"Received shape {list(offsets.shape)}."
        )
    return offsets.contiguous()


def lengths_fit(lengths: Tensor, total: int) -> bool:
    """Say whether no length is negative and they sum to ``total``."""
    return _lib.lengths_fit(lengths.contiguous().flatten(), total)  # type: ignore[no-any-return]


def bags_surely_fit(
    keys: list[str],
    values: Tensor,
    weights: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
) -> bool:
    """Say at a glance whether the parts of bags fit one another: no means only that somebody has to look closely.

    For use on every batch. Never waits for an accelerator; no is said while a graph is traced.

    Args:
        keys: at least one, with as many bags each.
        values: ``[N, ...]``.
        weights: ``[N, ...]``, or None.
        lengths: ``[B]`` int32 or int64.
        offsets: ``[B + 1]``, if lengths are None: of both together no is said.

    Example:
        >>> bags_surely_fit(["a"], torch.tensor([5, 6, 7]), None, torch.tensor([1, 0, 2]), None)
        True
    """
    return (
        not is_dynamo_compiling()
        and type(values) is Tensor
        and values.is_cpu  # to be refused by another device takes its time
        and not has_transforms()
        and _bags_fit(keys, values, weights, lengths, offsets)
    )


_bags_fit: Any = (lambda *_: False) if _lib is None else _lib.bags_fit


def are_surely_distinct(keys: list[str]) -> bool:
    """Say at a glance whether keys are a list of strings of which none comes twice: no means that one has to look.

    For use where no graph is traced: in half the time that a set of them takes.

    Example:
        >>> are_surely_distinct(["a", "b", "a"])
        False
    """
    return _lib is not None and _lib.are_distinct_strings(keys)


def offsets_fit(offsets: Tensor, total: int) -> bool:
    """Say whether offsets start at 0, never fall and end at ``total``."""
    return _lib.offsets_fit(offsets.contiguous(), total)  # type: ignore[no-any-return]


def lengths_to_offsets(lengths: Tensor) -> Tensor:
    """See ``reference.lengths_to_offsets``."""
    lengths = lengths.contiguous()
    offsets = torch.empty(lengths.numel() + 1, dtype=lengths.dtype, device=_CPU)
    try:
        fit = _lib.offsets_of(lengths, offsets)
    except (TypeError, ValueError):
        require_integers("lengths", lengths)
        raise
    if not fit:
        wide = lengths.dtype is torch.int64
        more = "" if wide else "; torch.int64 holds more"
        raise ValueError(
            f"`lengths` of dtype {lengths.dtype} should sum to less than 2**{63 if wide else 31}{more}. "
            f"Received a sum of {sum(lengths.tolist())}."
        )
    return offsets


def sum_equal_groups(lengths: Tensor, groups: int) -> list[int]:
    """See ``torchrec.ops.jagged.sum_equal_groups``."""
    return _lib.sum_equal_groups(lengths.contiguous(), groups)  # type: ignore[no-any-return]


def sum_groups(lengths: Tensor, sizes: Sequence[int]) -> list[int]:
    """See ``torchrec.ops.jagged.sum_groups``."""
    return _lib.sum_groups(lengths.contiguous(), sizes)  # type: ignore[no-any-return]


def select_lengths(lengths: Tensor, bags: Tensor) -> tuple[Tensor, int]:
    """Return ``lengths[bags]`` and their sum; both tensors are contiguous."""
    taken = lengths.new_empty(bags.numel())
    total = _lib.take_lengths(
        lengths.data_ptr(),
        is_wide("lengths", lengths),
        lengths.numel(),
        bags.data_ptr(),
        is_wide("bags", bags),
        bags.numel(),
        taken.data_ptr(),
    )
    if total < 0:
        raise IndexError(
            f"`bags` should be in [0, {lengths.numel()}), the number of lengths, no length negative, "
            "and what is taken less than 2**63. Received others."
        )
    return taken, total


def jagged_index_select(
    values: Tensor, lengths: Tensor, bags: Tensor, total: int
) -> tuple[Tensor, Tensor]:
    """See ``reference.jagged_index_select``."""
    if lengths.dim() != 1 or bags.dim() != 1 or values.dim() == 0:
        raise ValueError(
            "`values` should have one dimension or more, `lengths` and `bags` one. Received shapes "
            f"{list(values.shape)}, {list(lengths.shape)} and {list(bags.shape)}."
        )
    values, lengths, bags = values.contiguous(), lengths.contiguous(), bags.contiguous()
    taken, found = select_lengths(lengths, bags)
    if found != total:
        raise ValueError(
            f"`total` should be the number of values taken ({found}). Received {total}."
        )
    if not lengths_fit(lengths, values.size(0)):
        raise ValueError(
            f"`lengths` should not be negative and sum to values.size(0) ({values.size(0)}). "
            "Received others."
        )
    rows = values.new_empty((total, *values.shape[1:]))
    _lib.take_rows(
        lengths.data_ptr(),
        lengths.dtype is torch.int64,
        lengths.numel(),
        bags.data_ptr(),
        bags.dtype is torch.int64,
        bags.numel(),
        values.data_ptr(),
        values.size(0),
        row_bytes(values),
        rows.data_ptr(),
    )
    return rows, taken


def keyed_index_select(
    values: Tensor, weights: Tensor | None, lengths: Tensor, samples: Tensor, sizes: list[int]
) -> tuple[Tensor, Tensor | None, Tensor]:
    """See ``torchrec.ops.jagged.keyed_index_select``."""
    keys, stride = lengths.shape
    lengths, samples = lengths.contiguous(), samples.contiguous()
    chosen = (
        lengths.data_ptr(),
        is_wide("lengths", lengths),
        keys,
        stride,
        samples.data_ptr(),
        is_wide("samples", samples),
        samples.numel(),
        sizes,
    )
    taken = lengths.new_empty(keys * samples.numel())
    total = _lib.take_sample_lengths(*chosen, values.size(0), taken.data_ptr())
    if total == -1:
        raise IndexError(f"`samples` should be in [0, {stride}), the batch. Received others.")
    if total < 0:
        raise ValueError(
            f"`lengths` should not be negative and sum to values.size(0) ({values.size(0)}). "
            "Received others."
        )

    def take(rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        out = rows.new_empty((total, *rows.shape[1:]))
        _lib.take_sample_rows(
            *chosen,
            taken.data_ptr(),
            rows.data_ptr(),
            rows.size(0),
            row_bytes(rows),
            out.data_ptr(),
        )
        return out

    return take(values), None if weights is None else take(weights), taken


def _require_offsets(offsets: Tensor, total: int) -> Tensor:
    offsets = _offsets(offsets)
    if not offsets_fit(offsets, total):
        raise ValueError(
            f"`offsets` should start at 0, never fall and end at the number of values ({total}). "
            "Received others."
        )
    return offsets


def jagged_to_padded(values: Tensor, offsets: Tensor, width: int, padding: float) -> Tensor:
    """See ``reference.jagged_to_padded``."""
    if values.dim() == 0 or width < 0:
        raise ValueError(
            "`values` should have one dimension or more, and `width` be 0 or more. "
            f"Received shape {list(values.shape)} and {width}."
        )
    values, offsets = values.contiguous(), _require_offsets(offsets, values.size(0))
    bags = offsets.numel() - 1
    padded = values.new_full((bags, width, *values.shape[1:]), padding)
    wide = offsets.dtype is torch.int64
    _lib.to_padded(
        offsets.data_ptr(),
        wide,
        bags,
        values.data_ptr(),
        values.size(0),
        row_bytes(values),
        width,
        padded.data_ptr(),
    )
    return padded


def padded_to_jagged(padded: Tensor, offsets: Tensor, total: int) -> Tensor:
    """See ``reference.padded_to_jagged``."""
    padded, offsets = padded.contiguous(), _require_offsets(offsets, total)
    if padded.dim() < 2 or padded.size(0) != offsets.numel() - 1:
        raise ValueError(
            f"`padded` should be [B, L, ...] with B = {offsets.numel() - 1}, one less than the offsets. "
            f"Received {list(padded.shape)}."
        )
    values = padded.new_empty((total, *padded.shape[2:]))
    wide = offsets.dtype is torch.int64
    _lib.from_padded(
        offsets.data_ptr(),
        wide,
        offsets.numel() - 1,
        padded.data_ptr(),
        row_bytes(values),
        padded.size(1),
        values.data_ptr(),
    )
    return values
