"""Pools whose rows are spread over ranks: what those of vectors and of samples have in common.

A row of a pool travels as bytes, whatever it is made of, so that a look-up has three exchanges (how many, ids, rows)
and an update two, and the pool's own code makes rows of objects and objects of rows.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from torchrec.distributed.collection import append_prefix
from torchrec.distributed.comm import get_local_size
from torchrec.distributed.layout import Shard
from torchrec.distributed.parts import load_block
from torchrec.distributed.placement import TablePlacement
from torchrec.distributed.state import sharded_table
from torchrec.distributed.types import (
    Awaitable,
    LazyAwaitable,
    LazyNoWait,
    NoWait,
    ObjectPoolShardingPlan,
    ObjectPoolShardingType,
    ShardedModule,
    ShardingEnv,
    ShardingEnv2D,
)
from torchrec.distributed.wire import Wire
from torchrec.modules.object_pool import ObjectPool
from torchrec.modules.pool_rows import check_ids, last_of_each
from torchrec.streamable import Multistreamable

__all__ = ["ObjectPoolShardingContext", "ShardedObjectPool"]

T = TypeVar("T")


class ObjectPoolShardingContext(Multistreamable):
    """What the parts of one look-up hand on to each other.

    Attributes:
        order: positions of this rank's ids, in the order in which they are sent.
        sent: how many go to each rank.
        received: how many come from each rank.
        asked: the ids that all ranks ask this one for.
    """

    order: Tensor
    asked: Tensor
    sent: list[int]
    received: list[int]

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory of every tensor alive until the work queued on ``stream`` is done."""
        self.order.record_stream(stream)
        self.asked.record_stream(stream)


class ShardedObjectPool(
    ObjectPool[T],
    ShardedModule[ObjectPoolShardingContext, Tensor, T, ObjectPoolShardingContext],
    Generic[T],
):
    """A pool whose rows are spread over ranks. All ranks look up together, and update together.

    Ids may be any numbers of any rows on each rank, or none. Of an id that several ranks update at once, that of the
    last rank counts.

    Args:
        states: the tensors of the whole pool by name, ``(E, ...)``, where of a row there is a row each. They may be on
            ``meta``: all rows are 0 at first.
        env: the ranks.
        sharding_plan: where the rows go.
        device: where this rank has its rows. Default: the CPU.

    Raises:
        ValueError: for a plan, or ranks, that are not supported.
    """

    def __init__(
        self,
        states: Mapping[str, Tensor],
        env: ShardingEnv,
        sharding_plan: ObjectPoolShardingPlan,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        _check_plan(sharding_plan)
        if isinstance(env, ShardingEnv2D):
            raise ValueError(
                "A pool should be given ranks of one dimension: groups of ranks would not hear of each other's "
                "updates. Received a ShardingEnv2D."
            )
        self._rank, self._world_size = env.rank, env.world_size
        self._size = next(iter(states.values())).shape[0]
        replicated = sharding_plan.sharding_type is ObjectPoolShardingType.REPLICATED_ROW_WISE
        ranks = get_local_size(env.world_size) if replicated else env.world_size
        # Rows are divided among so many consecutive ranks; the next so many have them all again.
        self._ranks, self._rows_each = ranks, -(-self._size // ranks)
        self._rows = self._rows_of(env.rank)
        first = env.rank // ranks * ranks
        self._shards = [(rank, self._rows_of(rank)) for rank in range(first, first + ranks)]
        self._widths = {name: state.shape[1] for name, state in states.items()}
        self._wire: Wire | None = None
        if env.process_group is not None and env.world_size > 1:
            self._wire = Wire(env.process_group)
        elif env.world_size > 1:
            raise ValueError(
                f"A pool should be given a process group for its {env.world_size} ranks. Received none."
            )
        for name, state in states.items():
            shape = len(self._rows), state.shape[1]
            self.register_buffer(name, torch.zeros(shape, dtype=state.dtype, device=device))
        self.register_state_dict_post_hook(_show_wholes)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_take_parts)  # type: ignore[no-untyped-call]

    def _rows_of(self, rank: int) -> range:
        first = rank % self._ranks * self._rows_each
        return range(min(first, self._size), min(first + self._rows_each, self._size))

    @abstractmethod
    def _rows_from(self, values: T, count: int) -> list[Tensor]:
        """Return what objects are written as, a tensor for each of the states, ``(count, ...)``."""

    @abstractmethod
    def _objects_from(self, rows: list[Tensor]) -> T:
        """Return the objects that rows stand for, a tensor for each of the states."""

    @property
    def pool_size(self) -> int:
        """How many objects there are, on all ranks."""
        return self._size

    @property
    def device(self) -> torch.device:
        """Where this rank has its rows."""
        return next(self.buffers()).device

    def create_context(self) -> ObjectPoolShardingContext:
        """Return what the parts of one look-up hand on to each other."""
        return ObjectPoolShardingContext()

    def forward(self, ids: Tensor) -> LazyAwaitable[T]:
        """Read objects, see `lookup`.

        Args:
            ids: their places.
        """
        return self.lookup(ids)

    def lookup(self, ids: Tensor) -> LazyAwaitable[T]:  # type: ignore[override]
        """Read objects, wherever they are; all ranks call this.

        Args:
            ids: their places, int32 or int64 ``(N,)``; on each rank its own, or none.

        Raises:
            IndexError: on all ranks, for an id of any of them that the pool does not have.
        """
        ctx = self.create_context()
        return self.output_dist(ctx, self.compute(ctx, self.input_dist(ctx, ids).wait().wait()))

    def update(self, ids: Tensor, values: T) -> None:  # type: ignore[override]
        """Write objects, wherever they are; all ranks call this.

        Args:
            ids: their places, int32 or int64 ``(N,)``; on each rank its own, or none. Of an id that comes twice the
                last object counts, of one that several ranks write that of the last rank.
            values: N objects.

        Raises:
            IndexError: on all ranks, for an id of any of them that the pool does not have.
            ValueError: on all ranks, for objects that the pool cannot hold.
        """
        error, rows = None, torch.empty(0)
        try:
            check_ids(ids, self._size)
            parts = [_bytes_of(part) for part in self._rows_from(values, len(ids))]
            rows = torch.cat([_bytes_of(ids.long().unsqueeze(1)), *parts], 1)
        except Exception as failed:  # the others wait for this rank
            if self._wire is None:
                raise
            error = failed
        # Each copy of the pool gets them, from whichever rank.
        copies = range(0, self._world_size, self._ranks)
        owners = [first + ids // self._rows_each for first in copies] if error is None else []
        ctx = self.create_context()
        received = self._send(ctx, owners, rows, error)
        here, *states = self._columns(received, [("", torch.int64, 1), *self._kinds()])
        distinct, last = last_of_each(here[:, 0] - self._rows.start)
        for name, state in zip(self._widths, states, strict=True):
            self.get_buffer(name).index_copy_(0, distinct, state.index_select(0, last))

    def input_dist(
        self, ctx: ObjectPoolShardingContext, ids: Tensor
    ) -> Awaitable[Awaitable[ObjectPoolShardingContext]]:
        """Send ids to the ranks that have their rows.

        Args:
            ctx: of the look-up.
            ids: of this rank.
        """
        error = None
        try:
            check_ids(ids, self._size)
        except Exception as failed:  # the others wait for this rank
            if self._wire is None:
                raise
            error = failed
        first = self._rank // self._ranks * self._ranks
        owners = [first + ids // self._rows_each] if error is None else []
        rows = _bytes_of(ids.long().unsqueeze(1)) if error is None else torch.empty(0)
        received = self._send(ctx, owners, rows, error)
        ctx.asked = self._columns(received, [("", torch.int64, 1)])[0][:, 0]
        return NoWait(NoWait(ctx))

    def compute(
        self, ctx: ObjectPoolShardingContext, dist_input: ObjectPoolShardingContext
    ) -> Tensor:
        """Read the rows that all ranks have asked this one for, as bytes."""
        rows = dist_input.asked - self._rows.start
        parts = [self.get_buffer(name).index_select(0, rows) for name in self._widths]
        return torch.cat([_bytes_of(part) for part in parts], 1)

    def output_dist(self, ctx: ObjectPoolShardingContext, output: Tensor) -> LazyAwaitable[T]:
        """Send rows back to the ranks that asked for them."""
        received = self._swap(output, ctx.received, ctx.sent)
        ordered = torch.empty_like(received)
        ordered[ctx.order] = received
        return LazyNoWait(self._objects_from(self._columns(ordered, self._kinds())))

    def _kinds(self) -> list[tuple[str, torch.dtype, int]]:
        """Return name, dtype and width of each state."""
        return [(n, self.get_buffer(n).dtype, width) for n, width in self._widths.items()]

    @staticmethod
    def _columns(rows: Tensor, kinds: list[tuple[str, torch.dtype, int]]) -> list[Tensor]:
        """Return what rows of bytes are made of."""
        sizes = [torch.empty((), dtype=dtype).element_size() * width for _, dtype, width in kinds]
        parts = rows.split(sizes, 1)
        return [
            # Not `contiguous`, which leaves a single row where it is, at an address that may not do for its type.
            part.clone(memory_format=torch.contiguous_format).view(dtype)
            for part, (_, dtype, _) in zip(parts, kinds, strict=True)
        ]

    def _send(
        self,
        ctx: ObjectPoolShardingContext,
        owners: list[Tensor],
        rows: Tensor,
        error: Exception | None,
    ) -> Tensor:
        """Send rows to their owners, and return those that ranks have sent here, rank by rank.

        Args:
            ctx: is heads how many go where.
            owners: of the rows, ``(N,)`` each: they are sent once to each.
            rows: as bytes, ``(N, size)``.
            error: what kept this rank from it: then all ranks raise it.
        """
        world_size = self._world_size
        if error is None:
            owner = torch.cat(owners)
            order = torch.argsort(owner, stable=True)
            ctx.order = order % max(len(rows), 1)
            ctx.sent = torch.bincount(owner, minlength=world_size).tolist()
        if self._wire is None:
            ctx.received = ctx.sent
            return rows[ctx.order]
        counts = [0] * world_size if error is not None else ctx.sent
        pairs = [[int(error is not None), count] for count in counts]
        heads = self._wire.begin("rows of a pool", pairs, 2).numbers()
        if any(failed for failed, _ in heads):
            self._wire.raise_together(error)
        ctx.received = [count for _, count in heads]
        return self._swap(rows[ctx.order], ctx.sent, ctx.received)

    def _swap(self, rows: Tensor, sent: list[int], expected: list[int]) -> Tensor:
        """Send each rank some rows, and return those that come."""
        if self._wire is None:
            return rows
        size = rows.shape[1]
        received = self._wire.swap(
            rows.reshape(-1), [size * count for count in sent], [size * count for count in expected]
        )
        return received.view(-1, size)

    def sharded_parameter_names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of what is spread over ranks, which no data-parallel wrapper should send about.

        Args:
            prefix: written before each. Default none.
        """
        for name in self._widths:
            yield append_prefix(prefix, name)

    # State.

    def states(self) -> list[str]:
        """Return the names of the tensors that a pool has."""
        return list(self._widths)

    def value_of(self, name: str) -> Tensor:
        """Return what ``state_dict()`` shows of a state: the whole that this rank has some rows of."""
        part = self.get_buffer(name)
        if self._ranks == 1:
            return part
        shape = self._size, self._widths[name]
        columns = range(self._widths[name])
        shards = [Shard(rank, rows, columns) for rank, rows in self._shards]
        placement = TablePlacement(name, shards)
        return sharded_table(f"State '{name}'", part, shape, placement, self._rank, self._wire)

    def take(self, pool: ObjectPool[T]) -> None:
        """Hold what a pool that is not sharded holds; nothing, if that is on ``meta``.

        Args:
            pool: of the same objects.
        """
        for name, state in pool.named_buffers():
            if not state.is_meta:
                self.load(name, state)

    def load(self, name: str, value: object) -> Tensor:
        """Load this rank's rows of a state that was saved, and return them."""
        part, columns = self.get_buffer(name), range(self._widths[name])
        placement = TablePlacement(name, [Shard(self._rank, self._rows, columns)])
        block = placement.block(self._rank)
        if block is not None:
            load_block(name, block, part, value, (self._size, len(columns)))
        return part


def _bytes_of(rows: Tensor) -> Tensor:
    """Return rows as bytes, ``(N, size)``."""
    return rows.detach().contiguous().view(torch.uint8)


def _show_wholes(
    pool: ShardedObjectPool[Any], state: dict[str, Any], prefix: str, _: object
) -> None:
    """Have ``state_dict()`` show the whole pool that a rank's rows are of."""
    for name in pool.states():
        state[prefix + name] = pool.value_of(name)


def _take_parts(
    pool: ShardedObjectPool[Any], state: dict[str, Any], prefix: str, *_: object
) -> None:
    """Load this rank's rows of the pool."""
    for name in pool.states():
        if prefix + name in state:
            state[prefix + name] = pool.load(name, state[prefix + name])


def _check_plan(plan: ObjectPoolShardingPlan) -> None:
    if plan.inference or plan.memory_capacity_per_rank is not None:
        raise ValueError(
            "A plan of a pool should be without `inference` and `memory_capacity_per_rank`: there are no sharded pools "
            f"in one process. Received inference={plan.inference}, "
            f"memory_capacity_per_rank={plan.memory_capacity_per_rank}."
        )
