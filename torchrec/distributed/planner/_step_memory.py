"""What a rank has in memory while a step exchanges, looks up and updates: tensor by tensor, as sharded collections do.

A batch *asks*: rows of its ids are chosen, and sent to who has them. Who is asked *looks up*: sums of bags, or rows.
These are the *answer*, and rows of bags are pooled where the sample is. Gradients come *back* the same way, and tables
are updated. The search adds up what parts of tables take, one by one, which is near to this; but tables of a collection
share tensors, and the memory of some is kept for others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torchrec.distributed._plan_report import RankMemory
from torchrec.distributed.planner._blocks import Block, Heap, on_whole_pages
from torchrec.distributed.planner._dense import Layers
from torchrec.distributed.planner._options import ShardingOption
from torchrec.distributed.planner._storage import adds_squares, blocks_of, shared_state_bytes
from torchrec.distributed.planner._topology import Topology
from torchrec.distributed.types import ShardingType

__all__ = ["rank_memory"]

_COPIES = ShardingType.DATA_PARALLEL.value
_NUMBER, _ID, _LONG = 4, 4, 8
# Of an id in an update: room, what is written, and what where row and bag need more bits than there are for both.
_ENTRY_ROOM, _ENTRY, _WIDE_ENTRY, _ENTRY_BITS = 32, 8, 16, 32
_SMALL = 512  # bytes of a message whose place does not depend on tables
_BUCKET = 25 * 2**20  # bytes of gradients after which another bucket begins


@dataclass(frozen=True)
class _Asked:
    """What a rank asks of a feature, of all of its rows or of some.

    Attributes:
        ids: how many.
        bags: of how many bags.
        columns: of the vectors.
        rows: among which the ids choose.
        by_rows: whether each id gives a vector on the way; else each bag does.
        bands: in how many places the rows of the table lie.
        is_weighted: whether ids have weights.
        adds_squares: whether ranks update a row together.
        is_copy: whether the table is trained by an optimizer around the model.
    """

    ids: float
    bags: float
    columns: int
    rows: int
    by_rows: bool
    bands: int
    is_weighted: bool
    adds_squares: bool
    is_copy: bool

    @property
    def vectors(self) -> float:
        return self.ids if self.by_rows else self.bags

    @property
    def row_bytes(self) -> float:
        """Of a vector for each id."""
        return self.ids * self.columns * _NUMBER

    @property
    def bag_bytes(self) -> float:
        """Of a vector for each bag."""
        return self.bags * self.columns * _NUMBER

    @property
    def num_bytes(self) -> float:
        """Of the vectors on the way."""
        return self.vectors * self.columns * _NUMBER

    @property
    def question_bytes(self) -> float:
        """Of the ids, and the lengths of bags that are pooled elsewhere."""
        weights = self.ids if self.is_weighted and not self.by_rows else 0.0
        return _ID * (self.ids + weights + (0.0 if self.by_rows else self.bags))

    def chosen(self, ranks: int) -> float:
        """How many rows the ids of some ranks choose, each counted once."""
        return -self.rows * math.expm1(-ranks * self.ids / self.rows)

    def sparse_bytes(self, ranks: int) -> float:
        """Of these rows with their gradients."""
        return self.chosen(ranks) * (_LONG + self.columns * _NUMBER)


class _Collection:
    """A collection under a plan.

    Attributes:
        here: features of tables that the rank looks up for itself.
        away: features of the others.
        of_ranks: for each rank, what it is asked for by one rank.
    """

    def __init__(self, options: Sequence[ShardingOption], world_size: int) -> None:
        self.is_pooled = all(option.is_pooled for option in options)
        self.here: list[_Asked] = []
        self.away: list[_Asked] = []
        self.of_ranks: list[list[_Asked]] = [[] for _ in range(world_size)]
        for option in options:
            self._add(option, world_size)

    def _add(self, option: ShardingOption, world_size: int) -> None:
        lookup, (height, width) = option.lookup, option.tensor.shape
        assert lookup is not None
        is_copy = option.sharding_type == _COPIES
        is_here = is_copy or world_size == 1
        bands = max(1, len({shard.offset[0] for shard in option.shards}))
        for ids, bags, by_rows in zip(
            lookup.ids, lookup.bags, lookup.sends_rows(bands), strict=True
        ):

            def asked(rows: int, columns: int) -> _Asked:
                return _Asked(
                    ids * (rows / height if height else 0.0),  # noqa: B023
                    bags,  # noqa: B023
                    columns,
                    rows,
                    by_rows,  # noqa: B023
                    bands,
                    lookup.is_weighted,
                    adds_squares(option) and not is_here,
                    is_copy and world_size > 1,
                )

            if is_here:
                self.here.append(asked(height, width))
                continue
            self.away.append(asked(height, width))
            for (rank, _), size in blocks_of(option).items():
                self.of_ranks[rank].append(asked(*size))


def rank_memory(
    options: Sequence[ShardingOption], topology: Topology, layers: Layers
) -> list[RankMemory]:
    """Return the most bytes that each rank has of tables, states, and what a step takes.

    Args:
        options: a way for each table, with ranks.
        topology: the ranks.
        layers: of the model.
    """
    world_size = topology.world_size
    kept, steps = [0] * world_size, [0] * world_size
    on_host = topology.compute_device == "cpu"
    is_known = all(option.lookup is not None for option in options)
    for option in options:
        for shard in option.shards:
            if shard.rank is not None and shard.storage is not None:
                num_bytes = shard.storage.ddr if on_host else shard.storage.hbm
                kept[shard.rank] += num_bytes - shard.step_bytes
                steps[shard.rank] += shard.step_bytes
        for rank, shared in shared_state_bytes(option).items():
            kept[rank] -= shared
    if not is_known:  # of steps on other devices there are estimates, table by table
        own = sum(option.own_bytes for option in options)
        return [
            RankMemory(table_bytes, step + own)
            for table_bytes, step in zip(kept, steps, strict=True)
        ]
    for option in options:
        for (rank, _), (rows, columns) in blocks_of(option).items():
            num_bytes = rows * columns * option.tensor.element_size()
            kept[rank] += on_whole_pages(num_bytes) - num_bytes
    of_paths: dict[str, list[ShardingOption]] = {}
    for option in options:
        of_paths.setdefault(option.path, []).append(option)
    collections = [_Collection(of_path, world_size) for of_path in of_paths.values()]
    summed, layer_bytes = _summed_bytes(options, topology, layers), layers.step_bytes(world_size)
    found = [_step_bytes(collections, rank, world_size, layer_bytes) for rank in range(world_size)]
    return [
        RankMemory(table_bytes, step, messages + summed)
        for table_bytes, (step, messages) in zip(kept, found, strict=True)
    ]


def _summed_bytes(options: Sequence[ShardingOption], topology: Topology, layers: Layers) -> int:
    """Return the bytes of gradients that each rank writes where the others of its host read them, to add them up.

    Those are of layers, and of tables with copies. In its first step, `DistributedDataParallel` has them all in one
    bucket; then in several, if they are large: one of these, at least, finds the memory of that.
    """
    world_size = topology.world_size
    if world_size == 1 or topology.local_world_size < world_size:
        return 0
    copies = [each.tensor for each in options if each.sharding_type == _COPIES]
    num_bytes = layers.sum_bytes(world_size) + sum(_NUMBER * each.numel() for each in copies)
    return num_bytes + max(num_bytes - _BUCKET, 0)


def _step_bytes(
    collections: Sequence[_Collection], rank: int, world_size: int, layer_bytes: int | None
) -> tuple[int, int]:
    """Return the most bytes that a rank has in a step: of its own, and of exchanges, that others read."""
    heap = Heap()
    for _ in range(2):  # the first step leaves what the others find
        lookups = [_Step(heap, each, rank, world_size) for each in collections]
        vectors = [block for lookup in lookups for block in lookup.forward()]
        # Layers need vectors until the gradients of these are there.
        heap.free(heap.tensor(layer_bytes or 0.0), *vectors)
        for lookup in reversed(lookups):
            lookup.backward()
    has_layers = layer_bytes is not None
    messages = sum(lookup.message_bytes(has_layers) for lookup in lookups)
    return round(heap.peak), round(messages)


class _Step:
    """A step of a collection on a rank.

    Args:
        heap: where memory is from.
        collection: that is looked up.
        rank: which.
        world_size: how many there are.
    """

    def __init__(self, heap: Heap, collection: _Collection, rank: int, world_size: int) -> None:
        self._heap, self._collection, self._world = heap, collection, world_size
        self._mine = collection.of_ranks[rank]
        self._others = [
            each
            for other, asked in enumerate(collection.of_ranks)
            if other != rank
            for each in asked
        ]
        self._saved: list[Block] = []  # until the backward pass
        self._rows: list[Block] = []
        self._messages: list[float] = []  # question, answer, gradients; squares

    def message_bytes(self, has_layers: bool) -> float:
        """Return the bytes of memory that ranks share, which this one has written to.

        Each message of a step has a place of its own, which the same one of the next step finds free: others keep a
        question until their backward pass ends. Gradients go where the answer was, if they fit and others have surely
        read it.

        Args:
            has_layers: whether layers come in between.
        """
        _, answer, gradients, *_ = self._messages or [0.0, 0.0, 0.0]
        is_shared = has_layers and _power_of_two(gradients) <= _power_of_two(answer)
        return sum(self._messages) - (min(answer, gradients) if is_shared else 0.0)

    def forward(self) -> list[Block]:
        """Look up a batch, and return its vectors."""
        here, away = self._collection.here, self._collection.away
        found = self._vectors(here) if here else []
        if not away:
            return found
        routed = self._ask()
        computed = self._look_up()
        answer = self._answer()
        if self._collection.is_pooled and len(found) + len(answer) > 1:  # brought together
            together = self._heap.tensor(sum(each.bag_bytes for each in [*here, *away]))
            self._heap.free(*found, *answer)
            found, answer = [together], []
        self._heap.free(routed, *computed)
        return found + answer

    def backward(self) -> None:
        """Bring gradients of the vectors to the tables."""
        heap, here, away = self._heap, self._collection.here, self._collection.away
        gradients = self._gradients([*here, *away])
        if here:
            copies = [heap.tensor(4.0 * e.rows * e.columns) for e in here if e.is_copy]
            heap.free(self._update(here, 1), *copies)
        if away:
            rows = self._gradients_of_rows(gradients)
            self._message(sum(each.num_bytes for each in self._others))
            found = self._computed()
            heap.free(*rows, *gradients)
            self._update_tables()
            heap.free(*found)
        else:
            heap.free(*gradients)
        heap.free(*self._saved)

    def _vectors(self, asked: Sequence[_Asked]) -> list[Block]:
        if self._collection.is_pooled:
            return [self._heap.vector(sum(each.bag_bytes for each in asked))]
        return [self._heap.vector(each.row_bytes) for each in asked]

    def _gradients(self, asked: Sequence[_Asked]) -> list[Block]:
        """Take what autograd does."""
        if self._collection.is_pooled:
            return [self._heap.tensor(sum(each.bag_bytes for each in asked))]
        return [self._heap.tensor(each.row_bytes) for each in asked]

    def _ask(self) -> Block:
        away = self._collection.away
        ids = sum(each.ids for each in away)
        chosen = self._heap.tensor(_LONG * ids)
        lengths = sum(each.bands * each.bags for each in away)
        routed = self._heap.tensor(_ID * (2 * ids + lengths))
        self._heap.free(chosen)
        self._message(sum(each.question_bytes for each in self._others))
        return routed

    def _look_up(self) -> list[Block]:
        pooled = [each for each in self._mine if not each.by_rows]
        asked = self._world * sum(each.ids for each in self._mine)
        bags = self._world * sum(each.bags for each in pooled)
        self._saved = [self._heap.tensor(_ID * asked + _LONG * bags)]
        return self._computed()

    def _computed(self) -> list[Block]:
        """Take memory for the vectors of all ranks, or their gradients: of bags, and of the rows of each feature."""
        pooled = sum(each.num_bytes for each in self._mine if not each.by_rows)
        of_rows = [each.num_bytes for each in self._mine if each.by_rows]
        return [self._heap.vector(self._world * size) for size in (pooled, *of_rows)]

    def _answer(self) -> list[Block]:
        """Take what comes back, and pool its rows."""
        heap, away = self._heap, self._collection.away
        of_others = (self._world - 1) / self._world
        self._message(self._world * of_others * sum(each.num_bytes for each in self._mine))
        sums = sum(each.bag_bytes for each in away if not each.by_rows)
        found = [heap.vector(sums)] if sums else []
        apart = [each for each in away if each.by_rows]
        rows = [heap.vector(each.row_bytes) for each in apart]
        if not self._collection.is_pooled:
            if all(each.bands == 1 for each in apart):
                return rows
            self._rows = rows
            return [heap.vector(each.row_bytes) for each in apart]
        if apart:
            self._saved.append(heap.tensor(_ID * sum(each.ids + each.bags for each in apart)))
            found.append(heap.vector(sum(each.bag_bytes for each in apart)))
            if _once(apart):
                heap.free(*rows)
            else:
                self._rows = rows
        return found

    def _gradients_of_rows(self, gradients: list[Block]) -> list[Block]:
        """Take the gradients of rows that came from others."""
        heap, away, is_pooled = self._heap, self._collection.away, self._collection.is_pooled
        apart = [each for each in away if each.by_rows]
        if not apart or (not is_pooled and not self._rows):
            return []
        if is_pooled and len(apart) < len(away) + len(self._collection.here):
            gradients.append(heap.tensor(sum(each.bag_bytes for each in away)))
        if is_pooled and _once(apart):
            ids = sum(each.ids for each in apart)
            chosen = heap.tensor(ids * 3 * (_ID + _LONG))
            found = [heap.vector(sum(each.row_bytes for each in apart))]
            heap.free(chosen)
            return found
        found = [heap.tensor(each.row_bytes) for each in apart]
        heap.free(self._update(apart, 1), *self._rows)
        return found

    def _message(self, num_bytes: float) -> None:
        self._messages.append(num_bytes if num_bytes > _SMALL else 0.0)

    def _update_tables(self) -> None:
        """Update what others have looked up here."""
        ways = [[each for each in self._mine if each.by_rows is way] for way in (False, True)]
        lookups = [asked for asked in ways if asked]
        if len(lookups) < 2:
            for asked in lookups:
                self._heap.free(self._update(asked, self._world))
            return
        # Of two look-ups, rows with their gradients are gathered, and updated together.
        gathered = []
        for asked in lookups:
            gathered += [self._heap.tensor(each.sparse_bytes(self._world)) for each in asked]
            self._heap.free(self._update(asked, self._world))
        copied = self._heap.tensor(sum(block.written for block in gathered))
        room = _ENTRY_ROOM * max(each.chosen(self._world) for each in self._mine)
        self._heap.free(self._heap.kept([(0.0, room)]), copied, *gathered)

    def _update(self, asked: Sequence[_Asked], ranks: int) -> Block:
        """Take what the kernel works in: ids in order of rows, and gradients that it reads more than twice."""
        split = [each for each in asked if each.adds_squares]
        if split:
            return self._update_together(split, ranks)
        most = ranks * max(each.ids for each in asked)
        written = max(ranks * each.ids * _entry(each, ranks) for each in asked)
        room = (most + 1) * _ENTRY_ROOM  # one more ends them; behind are sums of a few rows
        packed = sum(_packed(each, ranks, len(asked) > 1) for each in asked)
        return self._heap.kept([(0.0, written), (room, room + packed)])

    def _update_together(self, asked: Sequence[_Asked], ranks: int) -> Block:
        """Take what the kernel works in, until other ranks have told their squares, for all tables at once."""
        numbers = ranks * sum(min(each.ids, each.bags + each.ids / 2) for each in asked)
        self._message(_NUMBER * numbers)
        ids = sum(ranks * each.ids * _entry(each, ranks) for each in asked)
        packed = sum(_packed(each, ranks, len(asked) > 1) for each in asked)
        block = self._heap.kept([(0.0, ids + packed + _NUMBER * numbers)])
        self._heap.free(self._heap.tensor(2 * _NUMBER * numbers))
        return block


def _power_of_two(num_bytes: float) -> int:
    """Return the least one that is no less."""
    return 1 << max(0, math.ceil(num_bytes) - 1).bit_length()


def _once(asked: Sequence[_Asked]) -> bool:
    """Say whether rows of some features are summed at once: of one width, without weights."""
    return len({each.columns for each in asked}) == 1 and not any(e.is_weighted for e in asked)


def _entry(asked: _Asked, ranks: int) -> int:
    bits = _bits(asked.rows) + _bits(round(ranks * asked.vectors))
    return _ENTRY if bits <= _ENTRY_BITS and not asked.is_weighted else _WIDE_ENTRY


def _bits(count: int) -> int:
    """Return how many number as many things, from 0 on."""
    return max(1, (count - 1).bit_length())


def _packed(asked: _Asked, ranks: int, has_others: bool) -> float:
    """Return the bytes of gradients that are brought together, where they lie between those of others."""
    apart = has_others and not asked.by_rows and asked.ids > 2 * asked.bags
    return ranks * asked.num_bytes if apart else 0.0
