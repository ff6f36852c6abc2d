"""Looks tables up whose rows lie on several ranks: from ids of this rank's batch to their vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from torchrec.distributed._awaitable import Awaitable, Deferred
from torchrec.distributed._private import parameters_by_name
from torchrec.distributed.answer import Backward
from torchrec.distributed.block_tables import BlockTables
from torchrec.distributed.checks import check_single_ids, named_collection
from torchrec.distributed.distinct import distinct_rows
from torchrec.distributed.exchange import Asked, Exchange, LookupOptions, Routed
from torchrec.distributed.mean_squares import SplitTable
from torchrec.distributed.placement import TablePlacement
from torchrec.distributed.received_rows import divided, group_of, pool_received
from torchrec.distributed.route import Route, Slot
from torchrec.distributed.split_columns import RowSumExchange
from torchrec.distributed.terms import Terms, number_of
from torchrec.distributed.variable import OwnBatches, as_rows, by_lane, own_batches, padded
from torchrec.distributed.weights import weights_by_lane, weights_by_slot
from torchrec.distributed.wire import Wire
from torchrec.errors import IdOutOfRangeError
from torchrec.modules.embedding_configs import (
    BaseEmbeddingConfig,
    EmbeddingBagConfig,
    PoolingType,
)
from torchrec.modules.tables import slots_of, table_spec_of
from torchrec.ops.embedding import (
    Bags,
    Ids,
    LookupSpec,
    PolicyCode,
    PoolingCode,
    SlotSpec,
    TableSpec,
    choose_rows,
    lookup_bags,
    lookup_sequences,
)
from torchrec.ops.jagged import lengths_to_offsets
from torchrec.ops.permute import regroup
from torchrec.ops.routing import route_rows
from torchrec.optim.owners import owner_of
from torchrec.optim.table_update import TableUpdate
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Multistreamable
from torchrec.types import IdPolicy

__all__ = ["ShardedLookup"]

NO_INTS = torch.zeros(0, dtype=torch.int32)


@dataclass
class _Input:
    """What is looked up by input with certain keys.

    Attributes:
        spec: of the tables as a whole, to choose rows by.
        keys: position of the key of each slot.
        as_they_are: whether the slots are the keys, in their order.
        single_ids: whether there is a slot of pooling NONE, whose bags have one id each.
    """

    spec: LookupSpec
    keys: list[int]
    as_they_are: bool
    single_ids: bool


@dataclass
class Step(Multistreamable):
    """One step of one collection, between asking and answering.

    Attributes:
        routed: what this rank has asked for.
        asked: what all ranks have asked this one for.
        lengths: of the bags of each slot, ``(slots, B)``.
        weights: of the ids of each slot, one slot behind the other, or None.
        out_of_range: ids of this rank's batch that no row stood for, by table.
        topic: which look-up this is.
    """

    routed: Routed
    asked: Asked
    lengths: Tensor
    weights: Tensor | None
    out_of_range: Tensor
    topic: str

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory of every tensor alive until the work queued on ``stream`` is done."""
        asked, routed = self.asked, self.routed
        tensors = [self.lengths, self.out_of_range, routed.rows, routed.places, routed.lengths]
        tensors += [tensor for part in (*asked.parts, *asked.lengths) for tensor in part]
        for tensor in tensors + [w for w in (self.weights, routed.weights) if w is not None]:
            tensor.record_stream(stream)


class ShardedLookup:
    """The tables of a collection that are looked up by exchange.

    Attributes:
        dtype: of vectors; who casts tables gives it anew.

    Args:
        configs: the tables, as a whole.
        placements: of each.
        modules: of each, what holds this rank's block as ``weight``.
        prefix: of the names of the weights.
        wire: the ranks.
        options: how they are looked up.
        dtype: of vectors.
        path: of their module in its model.
        beside: called in each backward pass, on all ranks.
    """

    def __init__(
        self,
        configs: Sequence[BaseEmbeddingConfig],
        placements: Sequence[TablePlacement],
        modules: Sequence[nn.Module],
        prefix: str,
        wire: Wire,
        options: LookupOptions,
        dtype: torch.dtype,
        path: str = "",
        beside: Callable[[], None] = lambda: None,
    ) -> None:
        self.configs, self.placements = list(configs), list(placements)
        self._beside = beside
        self._weighted, self.dtype = options.weighted, dtype
        self._distinct = options.distinct
        self._sequences, self._exact = options.by_rows, options.exact
        slots = [
            Slot(feature, t, config.embedding_dim, _is_mean(config))
            for t, config in enumerate(configs)
            for feature in config.feature_names
        ]
        self.route = Route(slots, placements, wire.world_size)
        self.exchange = Exchange(self.route, wire, options)
        mine = [t for t, each in enumerate(placements) if _rows_of(each, wire.rank)]
        self._row_sums = self._split_columns(modules, wire, options.by_rows)
        self.tables = BlockTables(
            [self._block_config(t, wire.rank) for t in mine],
            [modules[t] for t in mine],
            prefix,
            self._row_sums,
        )
        self._inputs: dict[tuple[str, ...], _Input] = {}
        self._parameters = [parameters_by_name(module) for module in modules]
        self._named = named_collection(path, [config.name for config in self.configs])
        self._lookups = 0  # that all ranks have begun together
        self._is_retired = False

    def _split_columns(
        self, modules: Sequence[nn.Module], wire: Wire, by_rows: bool
    ) -> RowSumExchange | None:
        """Return how the updates of tables whose columns are split see whole rows; None: there are none."""
        tables, parts, one_way = {}, {}, True
        for config, placement, module in zip(self.configs, self.placements, modules, strict=True):
            if placement.splits_columns:
                partners = placement.partners(wire.rank)
                tables[config.name] = SplitTable(config.embedding_dim, partners)
                parts[config.name] = module
                # Tables of several bands are looked up in one way or the other, as a batch has it.
                one_way = one_way and (by_rows or len(placement.bands) == 1)
        return RowSumExchange(tables, parts, wire, one_way) if tables else None

    @property
    def _rounds(self) -> int:
        """How often ranks add up parts of rows in an update, the same on all of them."""
        return 0 if self._row_sums is None else self._row_sums.rounds

    def retire(self) -> None:
        """Refuse backward passes from now on, on all ranks alike: the tables lie elsewhere."""
        self._is_retired = True

    def _terms(self) -> Terms:
        """Return what all ranks should have alike in a step."""
        if self._is_retired:
            raise ValueError(
                f"Tables of {self._named} should be brought to other ranks when all that was looked up has had its "
                "backward pass. Received a backward pass of what was looked up before."
            )
        # Not asked through the modules, see `RowSumExchange`.
        trained = [
            each["weight"] is not None and each["weight"].requires_grad for each in self._parameters
        ]
        return Terms(
            torch.is_grad_enabled(),
            self._rounds,
            any(isinstance(each, TableUpdate) and each.collecting for each in self._owners()),
            number_of(bytes(trained)),
            number_of(str(self.dtype).encode()),
        )

    def _owners(self) -> list[object]:
        """Return who trains each table, here or not."""
        weights = [each["weight"] for each in self._parameters]
        return [owner_of(weight) for weight in weights if weight is not None]

    def _backward_of(self, step: Step) -> Backward:
        # Where bags are pooled, one output has all slots: what uses it uses them all.
        topic, uses_some = f"the backward pass of {step.topic}", self._sequences
        return Backward(topic, self._terms, self._in_backward, uses_some)

    def _in_backward(self) -> None:
        """Take part, at the end of this backward pass, in updates that ranks make together."""
        if self._rounds and self.tables.split is not None:
            self.tables.split.pass_gradients()
        self._beside()

    def _block_config(self, t: int, rank: int) -> BaseEmbeddingConfig:
        """Describe what a rank holds of a table as a table of its own, whose features are the lanes."""
        block, config = self.placements[t].block(rank), self.configs[t]
        assert block is not None
        lanes = [
            lane
            for lane in self.route.lanes_of_rank[rank]
            if self.route.slots[lane.slot].table == t
        ]
        whole: dict[str, Any] = {
            "num_embeddings": block.num_rows,
            "embedding_dim": block.num_columns,
            "feature_names": [lane.name for lane in lanes],
            "id_policy": IdPolicy.ERROR,
            "hash_size": None,
        }
        if isinstance(config, EmbeddingBagConfig):
            whole["pooling"] = PoolingType.SUM
        return replace(config, **whole)

    def _input_of(self, keys: list[str]) -> _Input:
        known = self._inputs.get(tuple(keys))
        if known is None:
            slots, width = slots_of(self.configs, keys)
            spec = LookupSpec([table_spec_of(c) for c in self.configs], slots, len(keys), width)
            found = [slot.key for slot in slots]
            single_ids = any(slot.pooling == PoolingCode.NONE for slot in slots)
            known = _Input(spec, found, found == list(range(len(keys))), single_ids)
            self._inputs[tuple(keys)] = known
        return known

    # Asking.

    def ask(
        self,
        features: KeyedJaggedTensor,
        error: Exception | None = None,
        weights_follow: bool = False,
    ) -> Awaitable[Awaitable[Step]]:
        """Send the ids of this rank's batch to who has their rows: first how many, then, once awaited, which.

        Nothing that steps of training change is sent: ids may be on their way while an earlier batch trains.

        Args:
            features: of one batch size, or with inverse indices.
            error: what is wrong with them, if anything: all ranks raise it.
            weights_follow: leave weights to `weigh`.

        Raises:
            IdOutOfRangeError: on all ranks, for an id of any of them that should have a row.
            ValueError: on all ranks, for input that cannot be looked up.
        """
        routed: Routed | None = None
        lengths = out_of_range = NO_INTS
        weights: Tensor | None = None
        if error is None:
            try:
                routed, lengths, weights, out_of_range = self._route(features, weights_follow)
            except Exception as failed:
                error = failed
        topic = f"look-up {self._lookups} of {self._named}"
        sizes = self.exchange.ask(routed, error, self._terms(), topic)
        self._lookups += 1

        def sent() -> Awaitable[Step]:
            try:
                asked = sizes.wait()
            except Exception:
                self._lookups -= 1  # which other ranks may not have begun
                raise
            return Deferred(lambda: step(asked))

        def step(asked: Awaitable[Asked]) -> Step:
            assert routed is not None  # else its error was raised
            return Step(routed, asked.wait(), lengths, weights, out_of_range, topic)

        return Deferred(sent)

    def weigh(
        self, step: Step, features: KeyedJaggedTensor, error: Exception | None = None
    ) -> None:
        """Send the weights of ids that were asked for without them; all ranks call this.

        Args:
            step: of the ids.
            features: of this rank's batch, with weights.
            error: what is wrong with them, if anything: all ranks raise it.
        """
        routed, found = step.routed, self._input_of(features.keys())
        if error is None:
            try:
                step.weights = weights_by_slot(self._batches_of(features, found)[0], found.keys)
                lanes = self.route.lanes_of_slot
                routed.weights = weights_by_lane(
                    step.weights, routed.places, routed.slot_counts, routed.counts, lanes
                )
            except Exception as failed:
                error = failed
        self.exchange.weigh(step.asked, routed, error, step.topic)

    def _route(
        self, features: KeyedJaggedTensor, weights_follow: bool
    ) -> tuple[Routed, Tensor, Tensor | None, Tensor]:
        found, batch = self._input_of(features.keys()), features.stride()
        features, own = self._batches_of(features, found)
        sizes = features.length_per_key()
        counts = [sizes[key] for key in found.keys]
        rows, out_of_range = _choose(found, features, own is not None)
        if found.single_ids:
            check_single_ids(found.spec, features)
        lengths = self._lengths_of(features) if own is None else own.lengths
        if not found.as_they_are and own is None:
            lengths = lengths[found.keys]
        weights = None
        if self._weighted and not weights_follow:
            weights = weights_by_slot(features, found.keys)
        if self._distinct and not self._counts_ids():
            return self._route_distinct(rows, counts, batch), lengths, weights, out_of_range
        values, places, lane_lengths, lane_counts = route_rows(
            rows, lengths, counts, self.route.bands
        )
        in_lanes = lane_counts.tolist()
        sent = None
        if weights is not None:
            lanes = self.route.lanes_of_slot
            sent = weights_by_lane(weights, places, counts, in_lanes, lanes)
        routed = Routed(batch, values, places, lane_lengths, in_lanes, counts, sent)
        routed.weights_follow = self._weighted and weights_follow
        if own is not None:
            routed.bags, routed.inverse = own.bags, own.inverse
        return routed, lengths, weights, out_of_range

    def _batches_of(
        self, features: KeyedJaggedTensor, found: _Input
    ) -> tuple[KeyedJaggedTensor, OwnBatches | None]:
        """Return what is looked up: features of one batch size, or with batches of their own as they are."""
        variable = features.variable_stride_per_key()
        if features.inverse_indices_or_none() is None and (self._sequences or not variable):
            return features, None
        without = self._exact or found.single_ids or features.inverse_indices_or_none() is None
        if self._sequences or without or self._counts_ids():
            return features.expand_inverse(), None
        own = own_batches(features, found.keys)
        return (features.expand_inverse() if own is None else features), own

    def _counts_ids(self) -> bool:
        """Whether some table's update goes by how often each id comes, so that each has to be sent as often."""
        return any(
            isinstance(each, TableUpdate) and each.penalises_batch for each in self._owners()
        )

    def _lengths_of(self, features: KeyedJaggedTensor) -> Tensor:
        """Return the lengths of bags, ``(keys, B)``; all of a key as one bag, where nobody asks for bags."""
        if features.variable_stride_per_key():
            return torch.tensor(features.length_per_key()).unsqueeze(1)
        return features.lengths().view(len(features.keys()), features.stride())

    def _route_distinct(self, rows: Tensor, counts: list[int], batch: int) -> Routed:
        """Ask for each row of a slot once. Nobody has to know of which bags they are."""
        kept, places, kept_counts = distinct_rows(rows, counts)
        bags = torch.tensor(kept_counts).unsqueeze(1)
        values, kept_places, lane_lengths, lane_counts = route_rows(
            kept, bags, kept_counts, self.route.bands
        )
        return Routed(
            batch, values, kept_places[places], lane_lengths, lane_counts.tolist(), counts, None
        )

    # Looking up what was asked of this rank.

    def _pool_here(self, asked: Asked) -> Tensor:
        """Pool the bags of all ranks, lane beside lane, ``(sum of batches, width)``, or as many as a lane has most."""
        samples = sum(asked.batches)
        pooled = [
            i for i, lane in enumerate(self.exchange.my_lanes) if not asked.by_rows[lane.slot]
        ]
        if not pooled:
            return torch.zeros((samples, 0), dtype=self.dtype)
        lanes = self.exchange.my_lanes
        values = torch.cat([part[i] for i in pooled for part in asked.parts])
        bags_of = [[each[k] for each in asked.lengths] for k in range(len(pooled))]
        if asked.bags is None:
            lengths = torch.cat([part for parts in bags_of for part in parts])
        else:
            lengths = padded([torch.cat(parts) for parts in bags_of]).flatten()
        weights = None
        if asked.weights is not None:
            split = [
                mine.split([counts[i] for i in pooled])
                for mine, counts in zip(asked.weights, asked.counts, strict=True)
            ]
            weights = torch.cat([mine[i] for i in range(len(pooled)) for mine in split])
        tensors, spec, groups = self.tables.lookup_of([lanes[i].name for i in pooled])
        bags = Bags(values, lengths_to_offsets(lengths), weights)
        return lookup_bags(tensors, spec, bags, self.dtype, groups)[0]

    def _gather_here(self, asked: Asked) -> list[Tensor]:
        """Return the rows that all ranks asked for, for each lane that is looked up by rows."""
        lanes = self.exchange.my_lanes
        chosen = [i for i, lane in enumerate(lanes) if asked.by_rows[lane.slot]]
        if not chosen:
            return []
        values = torch.cat([part[i] for i in chosen for part in asked.parts])
        counts = [sum(each[i] for each in asked.counts) for i in chosen]
        starts = [sum(counts[:k]) for k in range(len(counts))]
        tensors, spec, groups = self.tables.lookup_of([lanes[i].name for i in chosen])
        ids = Ids(values, starts, counts, sum(asked.batches))
        return lookup_sequences(tensors, spec, ids, self.dtype, groups)[0]

    def rows_asked(self, step: Step) -> Iterator[tuple[str, Tensor]]:
        """Yield the rows of tables that all ranks have asked of this one: of the whole table, int64 ``(N,)``."""
        for i, lane in enumerate(self.exchange.my_lanes):
            rows = torch.cat([part[i] for part in step.asked.parts]).long()
            first = lane.band.rows.start - lane.band.base
            yield self.configs[self.route.slots[lane.slot].table].name, rows + first

    def compute(self, step: Step) -> list[Tensor]:
        """Look up what all ranks have asked of this one: pooled bags, then rows, a lane each."""
        asked = step.asked
        pooled, rows = self._pool_here(asked), self._gather_here(asked)
        if asked.bags is None:
            return [pooled, *rows]
        return by_lane(asked, self.route, self.exchange.wire.rank, pooled, rows)

    def _answer(self, step: Step, computed: list[Tensor]) -> tuple[Tensor, dict[int, Tensor]]:
        asked = step.asked
        pooled, tables = self.exchange.answer(
            asked, computed[0], computed[1:], step.routed, self._backward_of(step)
        )
        slots = [s for s, way in enumerate(asked.by_rows) if way]
        return pooled, dict(zip(slots, tables, strict=True))

    # What comes back.

    def pool(self, step: Step, computed: list[Tensor]) -> Tensor:
        """Send back what was computed; return what this rank's batch gets of all ranks.

        Returns:
            Pooled vectors, slot beside slot, ``(B, sum of D)``.
        """
        if step.asked.bags is not None:
            return self._pool_bags(step, computed)
        by_rows = step.asked.by_rows
        pooled, tables = self._answer(step, computed)
        starts = self.route.columns_of(by_rows).starts
        means = [
            (starts[s], slot.dim, s)
            for s, slot in enumerate(self.route.slots)
            if s in starts and slot.mean
        ]
        if means:
            divisors = self._divisors(step, [m[2] for m in means])
            pooled = divided(pooled, [m[:2] for m in means], divisors)
        if not tables:
            return pooled
        own = self._pool_tables(step, tables)
        if len(tables) == len(self.route.slots):
            return own
        pieces, at = [], 0
        for s, slot in enumerate(self.route.slots):
            if s in tables:
                pieces += [1, at, slot.dim]
                at += slot.dim
            else:
                pieces += [0, starts[s], slot.dim]
        return regroup([pooled, own], pieces, [len(pieces) // 3])[0]

    def _pool_bags(self, step: Step, computed: list[Tensor]) -> Tensor:
        """Do what `pool` does where bags are pooled once, and give each sample its own."""
        routed, route, by_rows = step.routed, self.route, step.asked.by_rows
        bags = [routed.batch] * len(by_rows) if routed.bags is None else routed.bags
        asked, own = as_rows(step.asked, routed, route, self.exchange.wire.rank)
        rows = self.exchange.answer(asked, computed[0], computed[1:], own, self._backward_of(step))[
            1
        ]
        tables = {s: rows[s] for s, way in enumerate(by_rows) if way}
        found: dict[int, Tensor] = {}
        if tables:
            widths = [route.slots[s].dim for s in tables]
            pooled = self._pool_tables(step, tables).split(widths, 1)
            found = {s: part[: bags[s]] for s, part in zip(tables, pooled, strict=True)}
        for s, slot in enumerate(route.slots):
            if s in tables:
                continue
            sums = rows[s].view(len(route.lanes_of_slot[s]), bags[s], slot.dim)
            found[s] = sums[0] if len(sums) == 1 else sums.sum(0)
            if slot.mean:
                found[s] = found[s] / self._divisors(step, [s])[0, : bags[s], None]
        if routed.inverse is not None:
            found = {s: part.index_select(0, routed.inverse[s]) for s, part in found.items()}
        return torch.cat([found[s] for s in range(len(by_rows))], 1)

    def _divisors(self, step: Step, slots: list[int]) -> Tensor:
        """Return how many rows each bag of some slots has, ``(slots, B)``, 1 if none."""
        lanes = [[lane.number for lane in self.route.lanes_of_slot[s]] for s in slots]
        found = torch.stack([step.routed.lengths[numbers].sum(0) for numbers in lanes])
        return found.clamp_(min=1).to(self.dtype)

    def _pool_tables(self, step: Step, tables: dict[int, Tensor]) -> Tensor:
        """Pool rows that came for each id, where the sample is."""
        chosen, counts, lengths = list(tables), step.routed.slot_counts, step.lengths
        places, weights = step.routed.places, step.weights
        if len(tables) < len(self.route.slots):
            lengths = lengths[chosen]
            places = torch.cat([places.split(counts)[s] for s in chosen])
            if weights is not None:
                weights = torch.cat([weights.split(counts)[s] for s in chosen])
        return pool_received(
            [self.route.slots[s] for s in chosen],
            list(tables.values()),
            places,
            lengths,
            [counts[s] for s in chosen],
            weights,
            self.dtype,
        )

    def gather(self, step: Step, computed: list[Tensor]) -> list[Tensor]:
        """Send back what was computed; return what this rank's batch gets of all ranks.

        Returns:
            The vectors of its ids, for each slot in turn, ``(n, D)``.
        """
        _, tables = self._answer(step, computed)
        counts, lanes = step.routed.slot_counts, self.route.lanes_of_slot
        # Those of one lane came in the order of the ids.
        if all(len(lanes[s]) == 1 and len(rows) == counts[s] for s, rows in tables.items()):
            return list(tables.values())
        specs = [
            TableSpec(
                self.route.slots[s].feature, rows.shape[1], len(rows), len(rows), PolicyCode.ROWS
            )
            for s, rows in tables.items()
        ]
        slots = [SlotSpec(self.route.slots[s].feature, s, s) for s in tables]
        spec = LookupSpec(specs, slots, len(slots), 0)
        starts = [sum(counts[:s]) for s in tables]
        rows = list(tables.values())
        ids = Ids(step.routed.places, starts, counts, step.routed.batch)
        return lookup_sequences(rows, spec, ids, self.dtype, group_of(spec, rows))[0]


def _is_mean(config: BaseEmbeddingConfig) -> bool:
    return isinstance(config, EmbeddingBagConfig) and config.pooling == PoolingType.MEAN


def _rows_of(placement: TablePlacement, rank: int) -> int:
    block = placement.block(rank)
    return 0 if block is None else block.num_rows * block.num_columns


def _choose(found: _Input, features: KeyedJaggedTensor, own_batches: bool) -> tuple[Tensor, Tensor]:
    """Return the rows of ids, and how many ids of each table no row stands for."""
    starts, sizes = features.offset_per_key(), features.length_per_key()
    counts = [sizes[key] for key in found.keys]
    ids = Ids(features.values(), [starts[key] for key in found.keys], counts, features.stride())
    if not own_batches:
        return choose_rows(found.spec, ids, features.offsets())
    try:
        rows, out_of_range = choose_rows(found.spec, ids, features.offsets())
    except IdOutOfRangeError:
        # With the number of the sample, not of the bag: every bag is one's, so that this fails as well.
        return _choose(found, features.expand_inverse(), False)
    if out_of_range.any():  # counted by sample
        out_of_range = _choose(found, features.expand_inverse(), False)[1]
    return rows, out_of_range
