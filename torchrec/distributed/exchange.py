"""Ids out, vectors back: what ranks tell one another in one step of one collection.

There are three exchanges, whatever mix of sharding types: how much everybody will send (a head of a fixed size),
the ids with the lengths of their bags, and the vectors. The backward pass sends the gradients of the vectors the same
way back. Where features have batches of their own, on any rank, there is one more before the ids: their sizes.

A slot is looked up in one of two ways. *Pooled where the rows are*: bags are sent, and sums of their rows come back,
from each rank that holds some of the rows. *By rows*: each id is sent to the rank that has its row, the row comes
back, and bags are pooled where the sample is. All ranks choose alike, by numbers that the headers of all of them tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from torchrec.distributed._awaitable import Awaitable, Deferred
from torchrec.distributed._codecs import QuantizedCommCodecs
from torchrec.distributed._kinds import CommOp
from torchrec.distributed.answer import Backward, Layout, answer
from torchrec.distributed.coding import Coding, Transfer, Vectors, codings_of
from torchrec.distributed.route import Lane, Route
from torchrec.distributed.terms import NUM_TERMS, Terms, check_terms
from torchrec.distributed.wire import Meeting, Wire

__all__ = ["Asked", "Exchange", "LookupOptions", "Routed"]

_FAILED, _WEIGHTS_GRADIENT, _VARIABLE, _WEIGHTS_FOLLOW = (
    1,
    2,
    4,
    8,
)  # bits of the first number of a header
_MOST_LAYOUTS = 64  # sizes of batches may vary without end
# State, batch size, terms; behind these are rows of each divided slot, and of each lane of the receiver.
_HEADER = 2 + NUM_TERMS


class _Lent(torch.autograd.Function):
    """Weights of ids that were sent with them; in the backward pass, their gradients the other way."""

    @staticmethod
    def forward(
        ctx: Any, wire: Wire, sizes: list[int], expected: list[int], own: Tensor, received: Tensor
    ) -> Tensor:
        ctx.wire, ctx.sizes, ctx.expected = wire, sizes, expected
        return received.view_as(received)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Tables get the mean over ranks, and so did this on its way here: but weights are one rank's.
        back = ctx.wire.swap(grad, ctx.expected, ctx.sizes) * ctx.wire.world_size
        return None, None, None, back, None


@dataclass
class Routed:
    """The ids of this rank's batch, by lane.

    Attributes:
        batch: samples.
        rows: of all lanes, one behind the other, int32 ``(N,)``: rows of the blocks that hold them.
        places: of each id among those of its slot that were sent, int32; ``NO_ROW`` if it was not.
        lengths: of the bags of each lane, int32 ``(lanes, B)``; of fewer bags, if a slot has fewer, and zeros.
        counts: rows of each lane.
        slot_counts: ids of each slot.
        weights: of the rows, float ``(N,)``, or None.
        bags: of each slot, where they have batches of their own; None: a bag a sample.
        inverse: which bag of a slot each sample has, ``(slots, B)``; None: that of its number.
        weights_follow: whether weights are not known yet: `Exchange.weigh` sends them.
    """

    batch: int
    rows: Tensor
    places: Tensor
    lengths: Tensor
    counts: list[int]
    slot_counts: list[int]
    weights: Tensor | None
    bags: list[int] | None = None
    inverse: Tensor | None = None
    weights_follow: bool = False


@dataclass
class Asked:
    """What all ranks have asked of this one.

    Attributes:
        by_rows: for each slot, whether it is looked up by rows.
        batches: samples of each rank.
        counts: for each rank, rows of each lane that this rank takes part in.
        parts: for each rank and lane, the rows, int32.
        lengths: for each rank and lane that is pooled here, lengths of bags, int32.
        weights: for each rank, weights of the rows of the lanes pooled here, one lane behind the other.
        bags: for each rank, bags of each slot, where those of any have batches of their own; None: a bag a sample.
        weights_follow: whether some rank has sent ids without their weights, so that all send these later.
    """

    by_rows: tuple[bool, ...]
    batches: list[int]
    counts: list[list[int]]
    parts: list[list[Tensor]]
    lengths: list[list[Tensor]]
    weights: list[Tensor] | None
    bags: list[list[int]] | None = None
    weights_follow: bool = False


@dataclass(frozen=True)
class LookupOptions:
    """How a collection is looked up by exchange.

    Attributes:
        weighted: whether ids come with weights.
        by_rows: whether each id gives a vector, so that every slot is looked up by rows; else those whose rows lie
            on several ranks are, if that sends less.
        exact: look all of those up by rows.
        codecs: how vectors are written on the way, by name of a `CommOp`. Default: as they are.
        distinct: send each row that a feature has in a batch once; only where every slot is looked up by rows.
    """

    weighted: bool = False
    by_rows: bool = False
    exact: bool = False
    codecs: Mapping[str, QuantizedCommCodecs] | None = None
    distinct: bool = False


class Exchange:
    """One collection's exchanges, the same on all ranks.

    Args:
        route: which ranks take part in what.
        wire: the ranks.
        options: how it is looked up.
    """

    def __init__(self, route: Route, wire: Wire, options: LookupOptions) -> None:
        self.route, self.wire = route, wire
        self._weighted, self._all_by_rows = options.weighted, options.by_rows
        self._exact = options.exact
        self._codings = codings_of(options.codecs) if options.codecs else None
        self._anchor = torch.zeros(0, requires_grad=True)
        self._marks: list[Tensor] | None = None  # of those who record answers
        self._layouts: dict[tuple[tuple[bool, ...], tuple[int, ...]], Layout] = {}

    @property
    def my_lanes(self) -> list[Lane]:
        """The lanes that this rank has rows for."""
        return self.route.lanes_of_rank[self.wire.rank]

    def ask(
        self, routed: Routed | None, error: Exception | None, terms: Terms, topic: str
    ) -> Awaitable[Awaitable[Asked]]:
        """Send ids to who has their rows: first how many, then, once that has been waited for, which.

        Args:
            routed: the batch of this rank; None if there is an error.
            error: what kept this rank from it: then all ranks raise it.
            terms: what all ranks should have alike.
            topic: which look-up this is, for errors.
        """
        meeting = self._begin(routed, error, terms, topic)
        return Deferred(lambda: self._send(meeting, routed, error))

    def _send(
        self, meeting: Meeting, routed: Routed | None, error: Exception | None
    ) -> Awaitable[Asked]:
        """Send ids, once all ranks have said how many."""
        wire = self.wire
        states, batches, totals, counts = self._headers(meeting)
        if routed is None or any(state & _FAILED for state in states):
            wire.raise_together(error)
        assert routed is not None  # else its error was raised
        bags = self._bags(routed) if any(state & _VARIABLE for state in states) else None
        num_slots = len(self.route.slots)
        of_ranks = [[batch] * num_slots for batch in batches] if bags is None else bags
        by_rows = self._ways([sum(of_slot) for of_slot in zip(*of_ranks, strict=True)], totals)
        follow = any(state & _WEIGHTS_FOLLOW for state in states)
        sizes, message = self._message(routed, by_rows, self._weighted and not follow)
        asked = Asked(by_rows, batches, counts, [], [], None, bags, follow)
        pooled, heads = self._num_bags(asked)
        num_weights = [0] * len(counts)
        if self._weighted and not follow:
            num_weights = [sum(of_lanes[i] for i in pooled) for of_lanes in counts]
        expected = [
            sum(head) + sum(c) + weights
            for head, c, weights in zip(heads, counts, num_weights, strict=True)
        ]
        expected[wire.rank] = 0
        swap = wire.start_swap(message, sizes, expected)
        wanted = any(state & _WEIGHTS_GRADIENT for state in states)
        return Deferred(lambda: self._received(swap.wait(), asked, routed, num_weights, wanted))

    def _received(
        self,
        received: Sequence[Tensor],
        asked: Asked,
        routed: Routed,
        num_weights: list[int],
        wanted: bool,
    ) -> Asked:
        """Return who asks for what, once all ids are here."""
        wire, (pooled, heads) = self.wire, self._num_bags(asked)
        weights = []
        for rank, part in enumerate(received):
            if rank == wire.rank:
                kept, lengths_kept, weights_kept = self._kept(routed, pooled)
                asked.parts.append(kept)
                asked.lengths.append(lengths_kept)
                weights.append(weights_kept)
                continue
            head = sum(heads[rank])
            rows = part[head : head + sum(asked.counts[rank])]
            asked.lengths.append(list(part[:head].split(heads[rank])))
            asked.parts.append(list(rows.split(asked.counts[rank])))
            weights.append(part[head + len(rows) :].view(torch.float32))
        if not self._weighted or asked.weights_follow:
            return asked
        asked.weights = weights
        if wanted and torch.is_grad_enabled():
            asked.weights = self._lent_weights(routed, asked, num_weights)
        return asked

    def weigh(self, asked: Asked, routed: Routed, error: Exception | None, topic: str) -> None:
        """Send the weights of ids that were sent without them; all ranks call this.

        Args:
            asked: what all ranks have asked for; given its weights.
            routed: what this rank has, with weights.
            error: what kept this rank from them: then all ranks raise it.
            topic: which look-up this is, for errors.
        """
        wire, weights = self.wire, routed.weights
        state = int(error is not None) * _FAILED
        if weights is not None and weights.requires_grad:
            state |= _WEIGHTS_GRADIENT
        states = wire.states(state, f"the weights of {topic}")
        if weights is None or any(each & _FAILED for each in states):
            wire.raise_together(error)
        assert weights is not None  # else its error was raised
        pooled, _ = self._num_bags(asked)
        num_weights = [sum(of_lanes[i] for i in pooled) for of_lanes in asked.counts]
        of_ranks = self._weights_for_ranks(routed, asked.by_rows)
        own = of_ranks[wire.rank]
        of_ranks[wire.rank] = own[:0]
        sizes = [len(each) for each in of_ranks]
        expected = [0 if rank == wire.rank else n for rank, n in enumerate(num_weights)]
        received = wire.start_swap(torch.cat(of_ranks).detach(), sizes, expected).wait()
        asked.weights = [*received[: wire.rank], own.detach(), *received[wire.rank + 1 :]]
        if any(each & _WEIGHTS_GRADIENT for each in states) and torch.is_grad_enabled():
            asked.weights = self._lent_weights(routed, asked, num_weights)

    def _weights_for_ranks(self, routed: Routed, by_rows: tuple[bool, ...]) -> list[Tensor]:
        """Return the weights of the ids of bags that each rank pools, this one too."""
        assert routed.weights is not None
        starts = list(accumulate(routed.counts, initial=0))
        found = []
        for lanes in self.route.lanes_of_rank:
            pooled = [lane.number for lane in lanes if not by_rows[lane.slot]]
            pieces = [routed.weights[starts[a] : starts[b]] for a, b in _runs(pooled)]
            found.append(torch.cat(pieces) if pieces else routed.weights[:0])
        return found

    def _num_bags(self, asked: Asked) -> tuple[list[int], list[list[int]]]:
        """Return which of this rank's lanes are pooled here, and how many bags each has, for each rank."""
        lanes = self.my_lanes
        pooled = [i for i, lane in enumerate(lanes) if not asked.by_rows[lane.slot]]
        if asked.bags is None:
            return pooled, [[batch] * len(pooled) for batch in asked.batches]
        return pooled, [[of_slot[lanes[i].slot] for i in pooled] for of_slot in asked.bags]

    def _begin(
        self, routed: Routed | None, error: Exception | None, terms: Terms, topic: str
    ) -> Meeting:
        """Send headers: state and batch of this rank, rows of the divided slots, of the receiver's lanes."""
        route, wire = self.route, self.wire
        divided, num_mine = len(route.divided), len(self.my_lanes)
        head = [int(error is not None) * _FAILED, 0, *terms] + [0] * divided
        if routed is not None:
            if routed.weights is not None and routed.weights.requires_grad:
                head[0] |= _WEIGHTS_GRADIENT
            if routed.bags is not None:
                head[0] |= _VARIABLE
            if routed.weights_follow:
                head[0] |= _WEIGHTS_FOLLOW
            head[1] = routed.batch
            head[_HEADER:] = [routed.slot_counts[s] for s in route.divided]
        counts = [0] * len(route.lanes) if routed is None else routed.counts
        lines = [[*head, *(counts[lane.number] for lane in to)] for to in route.lanes_of_rank]
        return wire.begin(topic, lines, len(head) + num_mine)

    def _headers(
        self, meeting: Meeting
    ) -> tuple[list[int], list[int], list[list[int]], list[list[int]]]:
        """Return the headers of all ranks, part by part."""
        lines = meeting.numbers()
        check_terms([line[_HEADER - NUM_TERMS : _HEADER] for line in lines])
        start = _HEADER + len(self.route.divided)
        return (
            [line[0] for line in lines],
            [line[1] for line in lines],
            [line[_HEADER:start] for line in lines],
            [line[start:] for line in lines],
        )

    def _bags(self, routed: Routed) -> list[list[int]]:
        """Send all ranks how many bags each slot has, and return those of each rank."""
        ranks, slots = self.wire.world_size, len(self.route.slots)
        mine = torch.tensor([routed.batch] * slots if routed.bags is None else routed.bags)
        received = self.wire.swap(mine.repeat(ranks), [slots] * ranks, [slots] * ranks)
        found: list[list[int]] = received.view(ranks, slots).tolist()
        return found

    def _ways(self, bags: list[int], totals: list[list[int]]) -> tuple[bool, ...]:
        """Decide for each slot whether it is looked up by rows: that sends a vector an id, sums one a bag and band."""
        by_rows = [self._all_by_rows] * len(self.route.slots)
        for s, ids in zip(self.route.divided, zip(*totals, strict=True), strict=True):
            bands = len(self.route.lanes_of_slot[s])
            by_rows[s] = self._all_by_rows or self._exact or sum(ids) <= bags[s] * bands
        return tuple(by_rows)

    def _message(
        self, routed: Routed, by_rows: tuple[bool, ...], with_weights: bool
    ) -> tuple[list[int], Tensor]:
        """Return how much goes to each rank, and all of it: lengths of bags, rows, weights; nothing to this one."""
        starts = list(accumulate(routed.counts, initial=0))
        pieces: list[Tensor] = []
        sizes = []
        for rank, lanes in enumerate(self.route.lanes_of_rank):
            if rank == self.wire.rank:
                sizes.append(0)
                continue
            first = len(pieces)
            pooled = [lane.number for lane in lanes if not by_rows[lane.slot]]
            if routed.bags is None:
                pieces += [routed.lengths[a:b].flatten() for a, b in _runs(pooled)]
            else:
                slots = [self.route.lanes[number].slot for number in pooled]
                bags = [routed.bags[slot] for slot in slots]
                pieces += [routed.lengths[n, :b] for n, b in zip(pooled, bags, strict=True)]
            numbers = [lane.number for lane in lanes]
            pieces += [routed.rows[starts[a] : starts[b]] for a, b in _runs(numbers)]
            if with_weights and routed.weights is not None:
                bits = routed.weights.detach().view(torch.int32)
                pieces += [bits[starts[a] : starts[b]] for a, b in _runs(pooled)]
            sizes.append(sum(len(piece) for piece in pieces[first:]))
        message = self.wire.message(sum(sizes), routed.rows)
        return sizes, torch.cat(pieces, out=message) if pieces else message

    def _kept(
        self, routed: Routed, pooled: Sequence[int]
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Return what this rank asks itself for: rows of its lanes, lengths of bags of those pooled here, weights."""
        numbers = [lane.number for lane in self.my_lanes]
        chosen = [numbers[i] for i in pooled]
        ends = list(accumulate(routed.counts))
        spans = [slice(ends[n] - routed.counts[n], ends[n]) for n in numbers]
        rows = [routed.rows[span] for span in spans]
        lengths = [routed.lengths[n] for n in chosen]
        if routed.bags is not None:
            slots = [self.route.lanes[n].slot for n in chosen]
            lengths = [line[: routed.bags[s]] for line, s in zip(lengths, slots, strict=True)]
        weights = torch.zeros(0)
        if routed.weights is not None and pooled:
            weights = torch.cat([routed.weights.detach()[spans[i]] for i in pooled])
        return rows, lengths, weights

    def _lent_weights(self, routed: Routed, asked: Asked, num_weights: list[int]) -> list[Tensor]:
        assert asked.weights is not None
        of_ranks = self._weights_for_ranks(routed, asked.by_rows)
        sizes = [len(each) for each in of_ranks]
        own, received = torch.cat(of_ranks), torch.cat(asked.weights)
        if not own.requires_grad:
            own = own + self._anchor.sum()  # this rank takes part whether or not it wants them
        lent: Tensor = _Lent.apply(self.wire, sizes, num_weights, own, received)  # type: ignore[no-untyped-call]
        return list(lent.split(num_weights))

    def answer(
        self,
        asked: Asked,
        pooled: Tensor,
        rows: list[Tensor],
        routed: Routed,
        back: Backward,
    ) -> tuple[Tensor, list[Tensor]]:
        """Send vectors back to who asked for them.

        Args:
            asked: by whom.
            pooled: of the bags of all ranks, ``(sum of batches, width)``.
            rows: for each lane looked up by rows, the vectors of all ranks, one rank behind the other.
            routed: what this rank has asked for itself.
            back: the backward pass.

        Returns:
            The pooled slots, ``(B, width)``, and for each slot that is looked up by rows its rows,
            ``(n, D)``, in the order in which they were asked for.
        """
        anchor = self._anchor
        if asked.weights is not None and torch.is_grad_enabled():
            anchor = torch.cat([anchor, *asked.weights])
        transfer = None if self._codings is None else self._transfer(self._codings, asked, routed)
        layout = self._layout_of(asked, routed)
        computed = [pooled, *rows]
        sums, tables, mark = answer(self.wire, layout, transfer, computed, anchor, back)
        if self._marks is not None:
            self._marks.append(mark)
        return sums, tables

    @contextmanager
    def recording(self) -> Iterator[list[Tensor]]:
        """Give a mark of each answer inside: a backward pass that comes to it goes back through the answer."""
        before, self._marks = self._marks, []
        try:
            yield self._marks
        finally:
            self._marks = before

    def _layout_of(self, asked: Asked, routed: Routed) -> Layout:
        """Return where the vectors of a step are, known already where that follows from the sizes of batches."""
        key = asked.by_rows, tuple(asked.batches)
        found = self._layouts.get(key)
        if found is None:
            found = Layout(
                self.route,
                self.wire.rank,
                asked.by_rows,
                asked.batches,
                asked.counts,
                routed.counts,
                # What is rounded on the way is rounded for this rank too, so that the plan changes nothing.
                keeps_own=self._codings is None,
            )
            if not any(asked.by_rows):
                if len(self._layouts) >= _MOST_LAYOUTS:
                    self._layouts.clear()
                self._layouts[key] = found
        return found

    def _transfer(self, codings: tuple[Coding, Coding], asked: Asked, routed: Routed) -> Transfer:
        """Return which vectors go to each rank, and which come from each."""
        lanes, me = self.route.lanes_of_rank, self.wire.rank
        sent = [
            self._vectors(me, batch, counts, asked.by_rows)
            for batch, counts in zip(asked.batches, asked.counts, strict=True)
        ]
        expected = [
            self._vectors(
                r, routed.batch, [routed.counts[lane.number] for lane in of], asked.by_rows
            )
            for r, of in enumerate(lanes)
        ]
        return Transfer(self.wire, codings, sent, expected)

    def _vectors(
        self, rank: int, batch: int, counts: Sequence[int], by_rows: tuple[bool, ...]
    ) -> list[Vectors]:
        """Return what a rank answers: sums of bags side by side, then rows, a lane behind the other."""
        route = self.route
        widths, ops, rows = [], [], []
        for lane, count in zip(route.lanes_of_rank[rank], counts, strict=True):
            width, op = route.width_of(lane, rank), self._op(lane.slot)
            if by_rows[lane.slot]:
                rows.append(Vectors(count, [width], [op]))
            else:
                widths.append(width)
                ops.append(op)
        return [Vectors(batch, widths, ops), *rows]

    def _op(self, slot: int) -> CommOp:
        if self._all_by_rows:
            return CommOp.SEQUENCE_EMBEDDINGS_ALL_TO_ALL
        if len(self.route.lanes_of_slot[slot]) > 1:
            return CommOp.POOLED_EMBEDDINGS_REDUCE_SCATTER
        return CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return the ranges that ascending numbers form."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1] = runs[-1][0], number + 1
        else:
            runs.append((number, number + 1))
    return runs
