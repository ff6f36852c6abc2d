"""Vectors back: from who has looked them up to who has asked for them, and their gradients the other way.

What a rank sends another is one message: first what it has pooled, ``(B, columns of the sender)``, then rows, lane by
lane. What a rank has looked up for itself it keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from torchrec.distributed.coding import Transfer
from torchrec.distributed.route import Route
from torchrec.distributed.terms import NUM_TERMS, Terms, check_terms
from torchrec.distributed.wire import Wire
from torchrec.ops.routing import ADDS, DIVIDES, copy_blocks_, new_vector

__all__ = ["Backward", "Layout", "answer"]


# Named tuples: a step by rows makes hundreds, and dataclasses take thrice as long.
class _Part(NamedTuple):
    """One part of a message, and where a rank that sends it has it: rows times columns, without gaps.

    Attributes:
        computed: number of the tensor that it is of, 0: pooled bags; then the lanes.
        start: its first number there.
        rows: how many.
        columns: how many.
    """

    computed: int
    start: int
    rows: int
    columns: int


class _Place(NamedTuple):
    """Columns of a part of a message, and where they belong.

    Attributes:
        part: number of the part.
        start: its first number there.
        stride: from row to row there.
        output: number of the output, 0: pooled bags; then the slots that are looked up by rows.
        target: the first number there.
        target_stride: from row to row there.
        rows: how many.
        columns: how many.
        adds: whether they are added to what ranks before have sent.
    """

    part: int
    start: int
    stride: int
    output: int
    target: int
    target_stride: int
    rows: int
    columns: int
    adds: bool

    def unpacked(self, source: int, at: int) -> list[int]:
        """Return the block that brings it where it belongs, from a part that begins at ``at`` of an input."""
        kind = ADDS if self.adds else 0
        here, there = [source, at + self.start, self.stride], [self.output, self.target]
        return [*here, *there, self.target_stride, self.rows, self.columns, kind]

    def packed(self, target: int, at: int) -> list[int]:
        """Return the block that brings its gradient to a part that begins at ``at`` of an output."""
        here = [self.output, self.target, self.target_stride]
        there = [target, at + self.start, self.stride]
        return [*here, *there, self.rows, self.columns, DIVIDES]


class Layout:
    """Where the vectors of one step are: at who has looked them up, in messages, and at who has asked.

    Args:
        route: which ranks take part in what.
        rank: this one.
        by_rows: for each slot, whether it is looked up by rows.
        batches: samples of each rank.
        asked: for each rank, rows of each lane that this rank takes part in.
        counts: rows of each lane that this rank has asked for.
        keeps_own: whether what this rank has looked up for itself is in no message.
    """

    def __init__(
        self,
        route: Route,
        rank: int,
        by_rows: tuple[bool, ...],
        batches: Sequence[int],
        asked: Sequence[Sequence[int]],
        counts: Sequence[int],
        keeps_own: bool,
    ) -> None:
        self.route, self.rank, self.keeps_own = route, rank, keeps_own
        self._by_rows, self._counts = by_rows, counts
        self.batch, self.columns = batches[rank], route.columns_of(by_rows)
        self._slots = [s for s, way in enumerate(by_rows) if way]
        self._outgoing, self.computed_sizes = self._sent(batches, asked)
        self._incoming = [self._received(r) for r in range(route.world_size)]
        self.sizes = [
            0 if self._is_kept(r) else sum(part.rows * part.columns for part in parts)
            for r, parts in enumerate(self._outgoing)
        ]
        self.expected = [
            0 if self._is_kept(r) else sum(sizes) for r, (sizes, _) in enumerate(self._incoming)
        ]
        self.tables = [
            (sum(counts[lane.number] for lane in route.lanes_of_slot[s]), route.slots[s].dim)
            for s in self._slots
        ]
        # Of each tensor of rows that is computed, the number of its slot among those looked up by rows.
        numbers = {s: number for number, s in enumerate(self._slots)}
        self.slots_computed = [
            numbers[lane.slot] for lane in route.lanes_of_rank[rank] if by_rows[lane.slot]
        ]
        at_an_end = rank in (0, route.world_size - 1)
        # What others have asked for is then one piece of what was computed, a message without being copied.
        self.is_one_piece = keeps_own and at_an_end and len(self.computed_sizes) == 1
        first = self._outgoing[rank][0]
        kept = first.start, first.start + first.rows * first.columns
        size = self.computed_sizes[0]
        self.others = slice(kept[1], size) if rank == 0 else slice(0, kept[0])

    def _is_kept(self, rank: int) -> bool:
        return self.keeps_own and rank == self.rank

    def _sent(
        self, batches: Sequence[int], asked: Sequence[Sequence[int]]
    ) -> tuple[list[list[_Part]], list[int]]:
        """Return the parts of the message to each rank, and the size of each tensor that they are of."""
        width = self.columns.widths[self.rank]
        messages = [
            [_Part(0, before * width, batch, width)]
            for before, batch in zip(accumulate(batches, initial=0), batches, strict=False)
        ]
        sizes = [sum(batches) * width]
        for i, lane in enumerate(self.route.lanes_of_rank[self.rank]):
            if not self._by_rows[lane.slot]:
                continue
            columns, before = self.route.width_of(lane, self.rank), 0
            for message, counts in zip(messages, asked, strict=True):
                message.append(_Part(len(sizes), before, counts[i], columns))
                before += counts[i] * columns
            sizes.append(before)
        return messages, sizes

    def _received(self, rank: int) -> tuple[list[int], list[_Place]]:
        """Return the sizes of the parts of a rank's message to this one, and where they belong."""
        route, batch, columns = self.route, self.batch, self.columns
        width = columns.widths[rank]
        parts = [batch * width]
        places = [
            _Place(0, p.source, width, 0, p.target, columns.width, batch, p.width, adds=p.adds)
            for p in columns.pieces
            if p.rank == rank
        ]
        outputs = {s: number for number, s in enumerate(self._slots, start=1)}
        for lane in route.lanes_of_rank[rank]:
            if not self._by_rows[lane.slot]:
                continue
            count, dim = self._counts[lane.number], route.slots[lane.slot].dim
            before = sum(
                self._counts[other.number]
                for other in route.lanes_of_slot[lane.slot]
                if other.number < lane.number
            )
            stride, at = route.width_of(lane, rank), 0
            for each in route.block_columns(lane, rank):
                place = len(parts), at, stride, outputs[lane.slot], before * dim + each.start, dim
                places.append(_Place(*place, count, len(each), adds=False))
                at += len(each)
            parts.append(count * stride)
        return parts, places

    @cached_property
    def pack(self) -> list[int]:
        """The blocks that bring what was computed into messages, one behind the other."""
        blocks, at = [], 0
        for rank, parts in enumerate(self._outgoing):
            for part in parts if not self._is_kept(rank) else ():
                blocks += _flat_block(part.computed, part.start, 0, at, part)
                at += part.rows * part.columns
        return blocks

    @cached_property
    def unpack(self) -> list[int]:
        """The blocks that bring messages (an input each), and what was computed (those after), to the outputs."""
        blocks = []
        for rank, place, at in self._places():
            if self._is_kept(rank):
                part = self._outgoing[rank][place.part]
                blocks += place.unpacked(self.route.world_size + part.computed, part.start)
            else:
                blocks += place.unpacked(rank, at)
        return blocks

    @cached_property
    def pack_gradients(self) -> list[int]:
        """The blocks that bring gradients of the outputs into messages (output 0), or to what was computed."""
        blocks, starts = [], list(accumulate(self.expected, initial=0))
        for rank, place, at in self._places():
            if self._is_kept(rank):
                part = self._outgoing[rank][place.part]
                blocks += place.packed(1 + part.computed, part.start)
            else:
                blocks += place.packed(0, starts[rank] + at)
        return blocks

    @cached_property
    def unpack_gradients(self) -> list[int]:
        """The blocks that bring gradients from messages (an input each) to what was computed."""
        blocks = []
        for rank, parts in enumerate(self._outgoing):
            at = 0
            for part in parts if not self._is_kept(rank) else ():
                blocks += _flat_block(rank, at, part.computed, part.start, part)
                at += part.rows * part.columns
        return blocks

    def _places(self) -> Iterator[tuple[int, _Place, int]]:
        """Yield all that comes, by rank, with where its part begins in the message of that rank."""
        for rank, (parts, places) in enumerate(self._incoming):
            starts = list(accumulate(parts, initial=0))
            for place in places:
                yield rank, place, starts[place.part]


def _flat_block(source: int, start: int, target: int, at: int, part: _Part) -> list[int]:
    stride = part.columns
    return [source, start, stride, target, at, stride, part.rows, part.columns, 0]


@dataclass(frozen=True)
class Backward:
    """What there is to know of the backward pass of an answer.

    Attributes:
        topic: what it is, for errors.
        terms: returns what all ranks should have alike.
        takes_part: called before gradients are sent, if the loss of any rank uses the answer.
        uses_some: whether losses may use some slots and not others.
    """

    topic: str
    terms: Callable[[], Terms]
    takes_part: Callable[[], None]
    uses_some: bool


class _Answer(torch.autograd.Function):
    """Send vectors back, and put those that come where they belong; gradients become the mean over ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        wire: Wire,
        layout: Layout,
        transfer: Transfer | None,
        back: Backward,
        anchor: Tensor,
        *computed: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.wire, ctx.layout, ctx.transfer, ctx.back = wire, layout, transfer, back
        ctx.dtype, ctx.shapes = computed[0].dtype, [tensor.shape for tensor in computed]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(anchor)
        if layout.is_one_piece:
            sent = computed[0].reshape(-1)[layout.others]
        else:
            sent = wire.message(sum(layout.sizes), computed[0])
            copy_blocks_([sent], list(computed), layout.pack)
        shapes = [(layout.batch, layout.columns.width), *layout.tables]
        outputs = [new_vector(rows * columns, computed[0]) for rows, columns in shapes]
        received = (
            wire.start_swap(sent, layout.sizes, layout.expected).wait()
            if transfer is None
            else transfer.there(sent).split(layout.expected)
        )
        copy_blocks_(outputs, [*received, *computed], layout.unpack)
        # Detached: no views to autograd, so that who comes next may change them in place.
        found = [out.view(shape).detach() for out, shape in zip(outputs, shapes, strict=True)]
        return *found, anchor.new_zeros(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *all_grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grads = all_grads[:-1]  # the mark has none
        layout, wire, back = ctx.layout, ctx.wire, ctx.back
        (anchor,) = ctx.saved_tensors
        # Ranks may use different slots. One that no rank's loss uses gets no gradient, which is not one of zeros.
        used = [grad is not None for grad in grads]
        if not back.uses_some:
            used = [any(used)] * len(used)
        head = [*back.terms(), *used]
        # On its way while the gradients are packed.
        meeting = wire.begin(back.topic, [head] * wire.world_size, len(head))
        shapes = [(layout.batch, layout.columns.width), *layout.tables]
        given = [
            anchor.new_zeros(shape, dtype=ctx.dtype) if grad is None else grad.contiguous()
            for grad, shape in zip(grads, shapes, strict=True)
        ]
        sent = wire.message(sum(layout.expected), given[0])
        found = [new_vector(size, given[0]) for size in layout.computed_sizes]
        copy_blocks_([sent, *found], given, layout.pack_gradients, wire.world_size)
        lines = meeting.numbers()
        check_terms([line[:NUM_TERMS] for line in lines])
        used = [any(of_ranks) for of_ranks in list(zip(*lines, strict=True))[NUM_TERMS:]]
        if not any(used):
            return (None,) * (5 + len(found))
        back.takes_part()
        if layout.is_one_piece:
            wire.swap(sent, layout.expected, layout.sizes, found[0][layout.others])
        else:
            received = (
                wire.start_swap(sent, layout.expected, layout.sizes).wait()
                if ctx.transfer is None
                else ctx.transfer.back(sent).split(layout.sizes)
            )
            copy_blocks_(found, list(received), layout.unpack_gradients)
        all_used = [used[0], *(used[1 + slot] for slot in layout.slots_computed)]
        return (
            *(None, None, None, None, torch.zeros_like(anchor)),
            *(
                grad.view(shape) if wanted else None
                for grad, shape, wanted in zip(found, ctx.shapes, all_used, strict=True)
            ),
        )


def answer(
    wire: Wire,
    layout: Layout,
    transfer: Transfer | None,
    computed: list[Tensor],
    anchor: Tensor,
    back: Backward,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Send vectors back to who asked for them. Differentiable: tables get the mean of gradients over ranks.

    Args:
        wire: the ranks, all of which call this.
        layout: where the vectors are.
        transfer: how they are written on the way. None: as they are, and what a rank keeps is not sent.
        computed: of all ranks' batches: pooled bags, ``(sum of batches, width)``, and rows of each lane that
            is looked up by rows, one rank behind the other.
        anchor: what has the backward pass come here on every rank; of any size, it gets zeros.
        back: what the backward pass is.

    Returns:
        The pooled slots, ``(B, width)``, and for each slot that is looked up by rows its rows,
        ``(n, D)``, in the order in which they were asked for. Last a mark, of no size: a backward pass that comes
        to it goes back through all of this.
    """
    outputs = _Answer.apply(  # type: ignore[no-untyped-call]
        wire, layout, transfer, back, anchor, *computed
    )
    return outputs[0], list(outputs[1:-1]), outputs[-1]
