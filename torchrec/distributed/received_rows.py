"""Rows that came from other ranks for the ids of a batch, pooled where its samples are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from torchrec.distributed.route import Slot
from torchrec.ops.embedding import (
    Bags,
    Group,
    Ids,
    LookupSpec,
    PolicyCode,
    PoolingCode,
    SlotSpec,
    TableSpec,
    lookup_bags,
    lookup_sequences,
)
from torchrec.ops.jagged import lengths_to_offsets

__all__ = ["divided", "group_of", "pool_received"]


def pool_received(
    slots: Sequence[Slot],
    rows: list[Tensor],
    places: Tensor,
    lengths: Tensor,
    counts: Sequence[int],
    weights: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Pool the rows of some slots. Differentiable.

    Args:
        slots: what was looked up.
        rows: of each slot, ``(n, D)``.
        places: of each id among the rows of its slot, int32, one slot behind the other; ``NO_ROW`` if it has none.
        lengths: of bags, ``(slots, B)``.
        counts: ids of each slot.
        weights: of the ids, or None.
        dtype: of the output.

    Returns:
        ``(B, sum of D)``.
    """
    starts = list(accumulate((slot.dim for slot in slots), initial=0))
    spec = LookupSpec(
        [
            TableSpec(slot.feature, slot.dim, len(each), len(each), PolicyCode.ROWS)
            for slot, each in zip(slots, rows, strict=True)
        ],
        [
            SlotSpec(
                slot.feature, s, s, PoolingCode.MEAN if slot.mean else PoolingCode.SUM, starts[s]
            )
            for s, slot in enumerate(slots)
        ],
        len(slots),
        starts[-1],
    )
    bags = Bags(places, lengths_to_offsets(lengths.flatten()), weights)
    are_sums = weights is None and not any(slot.mean for slot in slots)
    one_id_each = all(len(each) == count for each, count in zip(rows, counts, strict=True))
    if are_sums and one_id_each and len({slot.dim for slot in slots}) == 1:
        pooled: Tensor = _PoolOnce.apply(spec, bags, lengths, list(counts), dtype, *rows)  # type: ignore[no-untyped-call]
        return pooled
    return lookup_bags(rows, spec, bags, dtype, group_of(spec, rows))[0]


def group_of(spec: LookupSpec, rows: Sequence[Tensor]) -> list[Group]:
    """Return which rows get a gradient.

    Args:
        spec: what is looked up in them.
        rows: as tables.
    """
    asked = [t for t, table in enumerate(rows) if table.requires_grad]
    return [Group(spec, asked, "dense")] if asked and torch.is_grad_enabled() else []


class _PoolOnce(torch.autograd.Function):
    """Sum rows of one length, each of which one id has: its gradient is that of the id's bag, and nothing adds up."""

    @staticmethod
    def forward(
        ctx: Any,
        spec: LookupSpec,
        bags: Bags,
        lengths: Tensor,
        counts: list[int],
        dtype: torch.dtype,
        *rows: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(bags.values, lengths)
        ctx.counts, ctx.dtype = counts, rows[0].dtype
        return lookup_bags(list(rows), spec, bags, dtype, [])[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        places, lengths = ctx.saved_tensors
        slots, batch = lengths.shape
        # Gradients of bags as rows of a table, those of a sample one behind the other, and which of them each id has.
        table = grad.contiguous().view(batch * slots, grad.shape[1] // slots)
        of_bags = torch.arange(batch * slots, dtype=torch.int32).view(batch, slots).t().flatten()
        of_ids = of_bags.repeat_interleave(lengths.flatten(), output_size=len(places))
        counts = torch.tensor(ctx.counts)
        first = (counts.cumsum(0) - counts).repeat_interleave(counts, output_size=len(places))
        chosen = torch.empty_like(of_ids).scatter_(0, first + places, of_ids)
        spec = LookupSpec(
            [TableSpec("gradients", table.shape[1], len(table), len(table), PolicyCode.ROWS)],
            [SlotSpec("gradients", 0, 0)],
            1,
            0,
        )
        ids = Ids(chosen, [0], [len(chosen)], len(chosen))
        found = lookup_sequences([table], spec, ids, ctx.dtype, [])[0][0]
        return None, None, None, None, None, *found.split(ctx.counts)


def divided(pooled: Tensor, columns: list[tuple[int, int]], divisors: Tensor) -> Tensor:
    """Divide some columns of each bag by a number of the bag, in place. Differentiable.

    Args:
        pooled: ``(B, width)``, written to.
        columns: first column and width of each slot that is divided.
        divisors: ``(slots, B)``.
    """
    return _Mean.apply(pooled, columns, divisors)  # type: ignore[no-untyped-call, no-any-return]


class _Mean(torch.autograd.Function):
    """See `divided`."""

    @staticmethod
    def forward(
        ctx: Any, pooled: Tensor, columns: list[tuple[int, int]], divisors: Tensor
    ) -> Tensor:
        ctx.columns = columns
        ctx.save_for_backward(divisors)
        ctx.mark_dirty(pooled)
        for (start, width), each in zip(columns, divisors, strict=True):
            pooled[:, start : start + width] /= each.unsqueeze(1)
        return pooled

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (divisors,) = ctx.saved_tensors
        divided = grad.clone()
        for (start, width), each in zip(ctx.columns, divisors, strict=True):
            divided[:, start : start + width] /= each.unsqueeze(1)
        return divided, None, None
