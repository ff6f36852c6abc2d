"""Ids to the ranks that have their maps, and rows back.

There are three exchanges, whatever mix of maps: how many ids there are, ids, rows. Where rows changed hands that other
ranks have a part or a copy of, a fourth one tells these which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchrec.distributed._awaitable import Awaitable, Deferred
from torchrec.distributed.map_layout import MapLayout, MapPart
from torchrec.distributed.wire import Wire
from torchrec.modules.collision.features import ids_of
from torchrec.streamable import Multistreamable

__all__ = ["MapExchange", "MapQuestion"]

NONE = torch.zeros(0, dtype=torch.int64)
_FAILED, _LEARNS = 1, 2  # bits of the first number of a header


@dataclass
class MapQuestion(Multistreamable):
    """The ids of this rank's batch, by part of a map.

    Attributes:
        ids: of each part, one key behind the other, int64.
        counts: ids of each part, by key.
        orders: for each map, where the ids of its parts, one behind the other, were among those of its keys;
            None: there.
    """

    ids: list[Tensor]
    counts: list[list[int]]
    orders: list[Tensor | None]

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory of every tensor alive until the work queued on ``stream`` is done."""
        for tensor in (*self.ids, *self.orders):
            if tensor is not None:
                tensor.record_stream(stream)


class MapExchange:
    """The exchanges of the maps of one collection, the same on all ranks.

    Args:
        layouts: of the maps.
        wire: the ranks; None: this one alone.
    """

    def __init__(self, layouts: Sequence[MapLayout], wire: Wire | None) -> None:
        self.layouts, self.wire = list(layouts), wire
        self.rank, self.world_size = (0, 1) if wire is None else (wire.rank, wire.world_size)
        self.layout_of = {part.number: each for each in layouts for part in each.parts}
        tables = [table for layout in layouts for table in layout.tables]
        self._topic = f"a look-up of ids in the maps of tables {tables}"
        self._parts_of: list[list[MapPart]] = [[] for _ in range(self.world_size)]
        for layout in layouts:
            for part in layout.parts:
                self._parts_of[part.rank].append(part)

    @property
    def mine(self) -> list[MapPart]:
        """The parts of this rank."""
        return self._parts_of[self.rank]

    def question(self, ids: Mapping[str, Tensor]) -> MapQuestion:
        """Deal the ids of this rank's batch out to the parts that they belong to.

        Args:
            ids: of each key.

        Raises:
            TypeError: for ids that are no integers.
            ValueError: for ids that a map does not take.
        """
        question = MapQuestion([], [], [])
        for layout in self.layouts:
            table = layout.tables[0]
            of_keys = [ids_of(ids[key], key, table) for key in layout.keys]
            sizes = [len(each) for each in of_keys]
            joined = torch.cat(of_keys)
            if layout.homes is not None:
                for key, each in zip(layout.keys, of_keys, strict=True):
                    layout.homes.require_ids(each, key)
            if layout.homes is None or layout.is_whole:
                question.ids.append(joined)
                question.counts.append(sizes)
                question.orders.append(None)
                continue
            lanes = [
                layout.owners_of(layout.homes.homes_of(each, key)) * len(sizes) + k
                for k, (key, each) in enumerate(zip(layout.keys, of_keys, strict=True))
            ]
            lane = torch.cat(lanes)
            order = lane.argsort(stable=True)
            num_parts = len(layout.parts)
            counts = lane.bincount(minlength=num_parts * len(sizes)).view(num_parts, -1)
            question.ids += joined[order].split(counts.sum(1).tolist())
            question.counts += counts.tolist()
            question.orders.append(order)
        return question

    def ask(
        self, question: MapQuestion | None, error: Exception | None, learns: bool
    ) -> Awaitable[Awaitable[list[tuple[Tensor, list[list[int]]]]]]:
        """Send ids to who has their maps: first how many, then, once that has been waited for, which.

        Args:
            question: of this rank; None if there is an error.
            error: what kept this rank from it: then all ranks raise it.
            learns: whether this rank is training, as all should: who has a map learns from the ids of all.

        Returns:
            For each part of this rank, the ids of all ranks, one rank behind the other within a key; and how many
            those are, by key and rank.
        """
        lines = []
        for parts in self._parts_of:
            counts = [
                [0] * len(self.layout_of[part.number].keys)
                if question is None
                else question.counts[part.number]
                for part in parts
            ]
            state = (_FAILED if error is not None else 0) | (_LEARNS if learns else 0)
            lines.append([state, *(n for each in counts for n in each)])
        if self.wire is None:
            return Deferred(lambda: self._send(question, error, lines))
        meeting = self.wire.begin(self._topic, lines, len(lines[self.rank]))
        return Deferred(lambda: self._send(question, error, meeting.numbers()))

    def _send(
        self, question: MapQuestion | None, error: Exception | None, lines: list[list[int]]
    ) -> Awaitable[list[tuple[Tensor, list[list[int]]]]]:
        """Send ids, once all ranks have said how many."""
        failed = question is None or any(line[0] & _FAILED for line in lines)
        if self.wire is not None and failed:
            self.wire.raise_together(error)
        if len({line[0] for line in lines}) > 1:
            raise ValueError(
                "All ranks should be training, or none: who has a map of ids learns from those of all ranks. "
                f"Received `training` {[bool(line[0] & _LEARNS) for line in lines]}, by rank."
            )
        assert question is not None  # else its error was raised
        ids = [question.ids[part.number] for parts in self._parts_of for part in parts]
        sizes = [sum(len(question.ids[part.number]) for part in parts) for parts in self._parts_of]
        expected = [sum(line[1:]) for line in lines]
        sent = torch.cat([NONE, *ids])
        if self.wire is None:
            return Deferred(lambda: self._received([sent], lines))
        swap = self.wire.start_swap(sent, sizes, expected)
        return Deferred(lambda: self._received(swap.wait(), lines))

    def _received(
        self, received: list[Tensor], lines: list[list[int]]
    ) -> list[tuple[Tensor, list[list[int]]]]:
        """Return the ids of all ranks by part and key."""
        lanes = [part.split(line[1:]) for part, line in zip(received, lines, strict=True)]
        asked, first = [], 0
        for part in self.mine:
            keys = range(first, first + len(self.layout_of[part.number].keys))
            values = torch.cat([lane[k] for k in keys for lane in lanes])
            asked.append((values, [[len(lane[k]) for lane in lanes] for k in keys]))
            first = keys.stop
        return asked

    def answer(
        self,
        question: MapQuestion,
        rows: Sequence[tuple[Tensor, list[list[int]]]],
        changed: Mapping[int, Tensor],
        error: Exception | None,
    ) -> tuple[list[list[Tensor]], dict[int, Tensor]]:
        """Send rows back to who asked for them.

        Args:
            question: of this rank.
            rows: for each part of this rank, in place of the ids that were asked for.
            changed: of the parts of this rank, rows that changed hands, by number of the part.
            error: what kept this rank from it: then all ranks raise it.

        Returns:
            The rows of each map, by key; and of parts on other ranks, rows that changed hands and that this rank has a
            part or a copy of.
        """
        head = [int(error is not None)]
        head += [len(changed.get(part.number, NONE)) for part in self.mine]
        flat = [values.split([n for by_rank in counts for n in by_rank]) for values, counts in rows]
        pieces: list[Tensor] = []
        sizes = []
        for rank in range(self.world_size):
            mine = [lane for lanes in flat for lane in lanes[rank :: self.world_size]]
            pieces += [torch.tensor(head, dtype=torch.int64), *mine]
            sizes.append(len(head) + sum(map(len, mine)))
        expected = [
            1 + sum(1 + len(question.ids[part.number]) for part in parts)
            for parts in self._parts_of
        ]
        received = self._swap(torch.cat(pieces), sizes, expected).split(expected)
        heads = [
            part[: 1 + len(parts)].tolist()
            for part, parts in zip(received, self._parts_of, strict=True)
        ]
        if self.wire is not None and any(each[0] for each in heads):
            self.wire.raise_together(error)
        found: dict[int, Tensor] = {}
        for part, parts in zip(received, self._parts_of, strict=True):
            counts = [len(question.ids[each.number]) for each in parts]
            numbers = [each.number for each in parts]
            found.update(zip(numbers, part[1 + len(parts) :].split(counts), strict=True))
        return self._by_key(question, found), self._send_changed(changed, heads)

    def _by_key(self, question: MapQuestion, found: Mapping[int, Tensor]) -> list[list[Tensor]]:
        """Bring rows into the order of the ids."""
        result = []
        for layout, order in zip(self.layouts, question.orders, strict=True):
            numbers = [part.number for part in layout.parts]
            rows = torch.cat([found[number] for number in numbers])
            if order is not None:
                rows = torch.empty_like(rows).index_copy_(0, order, rows)
            sizes = [sum(each) for each in zip(*(question.counts[n] for n in numbers), strict=True)]
            result.append(list(rows.split(sizes)))
        return result

    def _send_changed(
        self, changed: Mapping[int, Tensor], heads: list[list[int]]
    ) -> dict[int, Tensor]:
        """Send the ranks that have rows of this rank's parts too which of them changed hands."""
        num_changed = {
            part.number: count
            for parts, head in zip(self._parts_of, heads, strict=True)
            for part, count in zip(parts, head[1:], strict=True)
        }

        def copied_to(parts: Sequence[MapPart], rank: int) -> list[MapPart]:
            return [
                p for p in parts if num_changed[p.number] and rank in p.holders and rank != p.rank
            ]

        ranks = range(self.world_size)
        if not any(copied_to(parts, rank) for parts in self._parts_of for rank in ranks):
            return {}
        sent = [[changed[part.number] for part in copied_to(self.mine, rank)] for rank in ranks]
        sources = [copied_to(parts, self.rank) for parts in self._parts_of]
        sizes = [sum(map(len, each)) for each in sent]
        expected = [sum(num_changed[part.number] for part in parts) for parts in sources]
        flat = torch.cat([NONE, *(rows for each in sent for rows in each)])
        received = self._swap(flat, sizes, expected)
        numbers = [part.number for parts in sources for part in parts]
        split = received.split([num_changed[number] for number in numbers])
        return dict(zip(numbers, split, strict=True))

    def _swap(self, sent: Tensor, sizes: Sequence[int], expected: Sequence[int]) -> Tensor:
        return sent if self.wire is None else self.wire.swap(sent, sizes, expected)
