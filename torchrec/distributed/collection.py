"""A collection whose tables are spread over ranks: what pooled and sequence collections have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from torchrec.checks import require_type
from torchrec.distributed._awaitable import Deferred
from torchrec.distributed.agreement import check_alike
from torchrec.distributed.lookup import Step
from torchrec.distributed.moved_tables import described_moves, moved_tables, replace
from torchrec.distributed.sharded_tables import ShardedTables
from torchrec.distributed.table_store import ShardedTableStore
from torchrec.distributed.types import (
    Awaitable,
    EmbeddingModuleShardingPlan,
    NoWait,
    ShardedModule,
    ShardingEnv,
)
from torchrec.modules.collection import TableStore
from torchrec.modules.stray_ids import add_counts
from torchrec.optim.embedding_optimizer import EmbeddingFusedOptimizer, ShownUpdates
from torchrec.optim.keyed import KeyedOptimizer
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Multistreamable

__all__ = ["LookupObserver", "ShardedTableCollection", "StepContext", "append_prefix", "tables_in"]


def tables_in(model: nn.Module) -> list[ShardedTables]:
    """Return the tables of all sharded collections of a model, in its order."""
    found = (
        getattr(child, "tables", None)
        for child in model.modules()
        if isinstance(child, ShardedModule)
    )
    return list(dict.fromkeys(each for each in found if isinstance(each, ShardedTables)))


def append_prefix(prefix: str, name: str) -> str:
    """Join two parts of a name by a dot, if there are two."""
    return f"{prefix}.{name}" if prefix and name else prefix + name


def _once_agreed(agreement: Awaitable[None], ctx: StepContext) -> Awaitable[StepContext]:
    """Return a step that asks no rank for rows, unless one of them has failed."""
    agreement.wait()
    return NoWait(ctx)


class LookupObserver(Protocol):
    """What is told of the look-ups of a collection."""

    def looked_up(self, table: str, rows: Tensor) -> None:
        """Take note of rows that this rank has, before they are updated, or are made as they were first.

        Args:
            table: its name.
            rows: of the whole table, int64 ``(N,)``.
        """

    def check_moves(self) -> None:
        """Raise if tables should stay where they are for now."""


class StepContext(Multistreamable):
    """What the parts of one forward pass of a sharded collection hand on to each other.

    Attributes:
        given: the features of this rank's batch, as they were given.
        tables: that they were sent to.
        features: the same of the full batch, where they say how.
        step: what is looked up by exchange; None: nothing is.
        unweighted: the features, where their ids have been sent without weights; None: they have not.
    """

    given: KeyedJaggedTensor
    tables: ShardedTables
    features: KeyedJaggedTensor
    step: Step | None = None
    unweighted: KeyedJaggedTensor | None = None

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory of every tensor alive until the work queued on ``stream`` is done."""
        self.features.record_stream(stream)
        if self.step is not None:
            self.step.record_stream(stream)


class ShardedTableCollection(nn.Module):
    """What a collection does whose tables are spread over ranks; its classes are sharded modules as well.

    Its parameters have the names of the unsharded collection; each is this rank's part of the table,
    empty where it has none.
    """

    _tables: ShardedTables
    _out_of_range: Tensor
    _observer: LookupObserver | None = None

    def _set_tables(self, tables: ShardedTables) -> None:
        self._tables = tables
        self.add_module(tables.prefix, tables.parts)
        counts = torch.zeros(len(tables.configs), dtype=torch.int64, device="cpu")
        self.register_buffer("_out_of_range", counts, persistent=False)
        self.register_state_dict_post_hook(_show_wholes)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_take_parts)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_weights_loaded)  # type: ignore[no-untyped-call]

    def observe_lookups(self, observer: LookupObserver | None) -> None:
        """Have somebody be told which rows of this rank are looked up from now on, instead of who was told before.

        Args:
            observer: who is. None: nobody is.
        """
        self._observer = observer

    def _begin_lookup(self, lookup: StepContext) -> None:
        """Make sure that ids are where the tables are, and tell who observes look-ups."""
        self._follow_moved(lookup)
        if self._observer is None:
            return
        for table, rows in self._tables.rows_here(lookup.features):
            self._observer.looked_up(table, rows)
        if self._tables.away is not None and lookup.step is not None:
            for table, rows in self._tables.away.rows_asked(lookup.step):
                self._observer.looked_up(table, rows)

    def described_moves(self, changes: EmbeddingModuleShardingPlan) -> dict[str, str]:
        """Return where tables go, by what that is, as all ranks should be given it; see `moved_tables`.

        Args:
            changes: where some of the tables go, by name.

        Raises:
            ValueError: if they cannot, or should not for now.
        """
        if self._observer is not None:
            self._observer.check_moves()
        return described_moves(self._tables, changes)

    def update_shards(
        self,
        changed_sharding_params: EmbeddingModuleShardingPlan,
        env: ShardingEnv,
        device: torch.device | None,
    ) -> None:
        """Bring tables to other ranks, with their states; all ranks call this, between steps.

        The collection stays what it is, and so do parameters of tables that stay where they are. Those of others are
        new ones; a `fused_optimizer` that was asked for before has them too, and the same parameter groups.

        Args:
            changed_sharding_params: where tables go; others stay where they are.
            env: the ranks, the same ones.
            device: of the parts, which stays what it is. None: that one.

        Raises:
            ValueError: on all ranks, with nothing changed: for a table that there is not, a plan that does not fit or
                is not the same on all ranks, a table that moves and that an optimizer around the model trains, and
                within ``accumulate()``, with gradients of it that wait, or while a tracker has states of rows that
                nobody has asked for.
        """
        if device not in (None, self._tables.device):
            raise ValueError(
                f"`device` should be that of the tables, {self._tables.device}. Received {device}."
            )
        check_alike(env, lambda: self.described_moves(changed_sharding_params))
        self.replace_tables(self.moved_tables(changed_sharding_params, env))

    def moved_tables(self, changes: EmbeddingModuleShardingPlan, env: ShardingEnv) -> ShardedTables:
        """Return the tables as they are to lie, beside those that there are; see `moved_tables`.

        Args:
            changes: where some of the tables go, which nothing is wrong with.
            env: the ranks, the same ones.
        """
        return moved_tables(self._tables, dict(changes), env)

    def replace_tables(self, moved: ShardedTables) -> None:
        """Go on with tables that lie elsewhere, which cannot fail; see `replace`.

        Args:
            moved: what `moved_tables` has returned.
        """
        replace(self._tables, moved)
        self._tables = moved
        self.add_module(moved.prefix, moved.parts)

    @property
    def tables(self) -> ShardedTables:
        """The tables, and where their parts are."""
        return self._tables

    @property
    def fused_optimizer(self) -> KeyedOptimizer:
        """The optimizer of the parts of tables that this rank updates in the backward pass, as they are by then."""
        return EmbeddingFusedOptimizer(self._shown_updates)

    def _shown_updates(self) -> ShownUpdates:
        return self._tables.shown_updates()

    def sharded_parameter_names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of the parameters that no data-parallel wrapper should take.

        These are spread over ranks, or updated in the backward pass by all ranks together.

        Args:
            prefix: written before each. Default none.
        """
        for config in self._tables.configs:
            if not self._tables.is_layer(config.name):
                yield append_prefix(prefix, f"{self._tables.prefix}.{config.name}.weight")

    def create_context(self) -> StepContext:
        """Return what the parts of one forward pass hand on to each other."""
        return StepContext()

    def input_dist(
        self,
        ctx: StepContext,
        features: KeyedJaggedTensor,
        error: Exception | None = None,
        *,
        weights_follow: bool = False,
    ) -> Awaitable[Awaitable[StepContext]]:
        """Send ids to the ranks that have their rows.

        Args:
            ctx: of the forward pass.
            features: of this rank's batch.
            error: what is wrong with them already, if anything: all ranks raise it.
            weights_follow: leave weights of ids to `weigh`.
        """
        try:
            if error is not None:
                raise error
            require_type(features, "`features`", KeyedJaggedTensor)
            ctx.given, ctx.tables = features, self._tables
            ctx.features = self._full_batch(features)
            ctx.unweighted = features if weights_follow else None
            self._tables.check_here(ctx.features)
        except Exception as failed:
            if self._tables.wire is None:
                raise
            error = failed
        wire = self._tables.wire
        if self._tables.away is not None:
            asked = self._tables.away.ask(features, error, weights_follow)
            return Deferred(lambda: self._asked(ctx, asked.wait()))
        if wire is not None:
            agreement = wire.start_agreeing(error, f"a look-up of {self._tables.named}")
            return Deferred(lambda: _once_agreed(agreement, ctx))
        return NoWait(NoWait(ctx))

    def weigh(
        self, ctx: StepContext, features: KeyedJaggedTensor, error: Exception | None = None
    ) -> None:
        """Send the weights of ids that were sent without them, before these are looked up; all ranks call this.

        Args:
            ctx: of the forward pass.
            features: of this rank's batch, with weights.
            error: what has kept this rank from them, if anything: all ranks raise it.
        """
        self._follow_moved(ctx)
        ctx.unweighted = None
        if error is None:
            ctx.given, ctx.features = features, self._full_batch(features)
        wire = self._tables.wire
        if self._tables.away is not None and ctx.step is not None:
            self._tables.away.weigh(ctx.step, features, error)
        elif wire is not None:
            wire.agree(error, f"the weights of a look-up of {self._tables.named}")
        elif error is not None:
            raise error

    def _follow_moved(self, ctx: StepContext) -> None:
        """Send ids anew that were sent to where tables were before they were brought to other ranks."""
        if ctx.tables is self._tables:
            return
        ctx.tables = self._tables
        if self._tables.away is not None and ctx.step is not None:
            asked = self._tables.away.ask(ctx.given, None, ctx.unweighted is not None)
            ctx.step = asked.wait().wait()

    def _asked(self, ctx: StepContext, step: Awaitable[Step]) -> Awaitable[StepContext]:
        def here() -> StepContext:
            ctx.step = step.wait()
            self._count_away(ctx.step.out_of_range)
            return ctx

        return Deferred(here)

    def table_store(self) -> TableStore:
        """Return the tables, of which this rank has some parts."""
        return ShardedTableStore(self._tables, self._out_of_range)

    def out_of_range_counts(self, reset: bool = False) -> dict[str, int]:
        """Return how many ids of this rank's batches were outside the rows of each table.

        Args:
            reset: start again from 0.
        """
        return self.table_store().out_of_range_counts(reset)

    def _count_here(self, out_of_range: Tensor) -> None:
        add_counts(self._out_of_range, self._tables.of_all(out_of_range, True))

    def _count_away(self, out_of_range: Tensor) -> None:
        add_counts(self._out_of_range, self._tables.of_all(out_of_range, False))

    def _full_batch(self, features: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """Bring features with batches of their own to the full batch, where they say how."""
        if features.inverse_indices_or_none() is not None:
            return features.expand_inverse()
        return features

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop gradients, also those that fused tables have accumulated and not applied.

        Args:
            set_to_none: set gradients to None instead of zeros.
        """
        super().zero_grad(set_to_none)
        self._tables.discard_gradients()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._tables.bind()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._tables.bind()  # a copy's tables are trained in the backward pass before it has been called, too

    def reset_parameters(self) -> None:
        """Give every table its initial weights anew; and no state."""
        self._tables.reset()

    def reset_rows(self, table: str, rows: Tensor) -> None:
        """Make rows as they were before any training: their weights, waiting gradients and states.

        Args:
            table: name of the table.
            rows: of the whole table, int64 ``(N,)``, distinct. Those that this rank has none of are left.
        """
        if self._observer is not None:
            self._observer.looked_up(table, self._tables.rows_held(table, rows))
        self._tables.reset_rows(table, rows)

    def weights_loaded(self) -> None:
        """Meet weights that were loaded: what waits, such as gradients, was for the former ones."""
        self._tables.restart()


def _show_wholes(
    collection: ShardedTableCollection, state: dict[str, Any], prefix: str, _: object
) -> None:
    """Have ``state_dict()`` show the whole tables that a rank's parts are of."""
    tables = collection.tables
    for config in tables.configs:
        name = f"{prefix}{tables.prefix}.{config.name}.weight"
        if name in state:
            state[name] = tables.value_of(config, state[name])


def _take_parts(
    collection: ShardedTableCollection, state: dict[str, Any], prefix: str, *_: object
) -> None:
    """Load this rank's parts of tables: at once, so that no second copy of all of them is held."""
    tables = collection.tables
    for config in tables.configs:
        name = f"{prefix}{tables.prefix}.{config.name}.weight"
        if name in state:
            state[name] = tables.load(config, state[name])


def _weights_loaded(collection: ShardedTableCollection, _: object) -> None:
    collection.weights_loaded()
