"""Managed collision on many ranks: maps and tables that are looked up as one, each part of a map beside its rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from torchrec.distributed.collection import StepContext, append_prefix
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import (
    BaseEmbeddingSharder,
    KJTList,
    ShardedEmbeddingModule,
)
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.mc_modules import (
    LazyFeatures,
    ManagedCollisionCollectionContext,
    ManagedCollisionCollectionSharder,
)
from torchrec.distributed.types import (
    Awaitable,
    ParameterSharding,
    QuantizedCommCodecs,
    ShardingEnv,
)
from torchrec.modules.collection import TableStore
from torchrec.modules.collision.interface import FindsRows
from torchrec.modules.mc_embedding_modules import (
    BaseManagedCollisionEmbeddingCollection,
    ManagedCollisionEmbeddingBagCollection,
    ManagedCollisionEmbeddingCollection,
)
from torchrec.modules.mc_modules import ManagedCollisionStats
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Multistreamable

__all__ = [
    "BaseManagedCollisionEmbeddingCollectionSharder",
    "BaseShardedManagedCollisionEmbeddingCollection",
    "ManagedCollisionContext",
]

M = TypeVar("M", bound=BaseManagedCollisionEmbeddingCollection)


class ManagedCollisionContext(Multistreamable):
    """What the steps of one forward pass hand on to each other.

    Attributes:
        maps: of the maps.
        tables: of the look-up.
        rows: the features with rows in place of ids.
    """

    rows: KeyedJaggedTensor

    def __init__(self, maps: ManagedCollisionCollectionContext, tables: StepContext) -> None:
        self.maps, self.tables = maps, tables

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory of every tensor alive until the work queued on ``stream`` is done."""
        self.maps.record_stream(stream)
        self.tables.record_stream(stream)


class BaseShardedManagedCollisionEmbeddingCollection(
    ShardedEmbeddingModule[KJTList, list[Tensor], Any, ManagedCollisionContext]
):
    """A collection of tables and its maps, spread over ranks; see `ShardedManagedCollisionCollection`.

    A row that changes hands starts as a new one on every rank that has a part of it. Maps learn in `compute`, so that
    ids may be sent ahead of time.

    Args:
        module: the collection.
        table_name_to_parameter_sharding: where each table goes, and with it its map.
        e_sharder: spreads the tables.
        mc_sharder: spreads the maps.
        env: the ranks.
        device: where this rank has its parts.
        module_fqn: its path in the model, for errors.
    """

    def __init__(
        self,
        module: ManagedCollisionEmbeddingBagCollection | ManagedCollisionEmbeddingCollection,
        table_name_to_parameter_sharding: dict[str, ParameterSharding],
        e_sharder: EmbeddingBagCollectionSharder | EmbeddingCollectionSharder,
        mc_sharder: ManagedCollisionCollectionSharder,
        env: ShardingEnv,
        device: torch.device,
        *,
        module_fqn: str | None = None,
    ) -> None:
        super().__init__()
        params: Any = table_name_to_parameter_sharding
        tables: Any = module.table_store()
        sharded = e_sharder.shard(tables, params, env, device, module_fqn)
        self._managed_collision_collection = mc_sharder.shard(
            module.managed_collision_collection(), params, env, [], device, module_fqn=module_fqn
        )
        self._embedding_module = sharded
        self._return_remapped_features = module.returns_remapped_features()
        self.register_load_state_dict_post_hook(_move_rows)  # type: ignore[no-untyped-call]
        if self._managed_collision_collection.row_moves:
            self.move_rows()
            optimizer = sharded.fused_optimizer
            optimizer.load_state_dict(self.fit_optimizer_state(optimizer.state_dict()))

    def table_store(self) -> TableStore:
        """Return the tables, of which this rank has some parts."""
        return self._embedding_module.table_store()

    def sharded_parameter_names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of what is spread over ranks: the parameters of tables, and the buffers of maps.

        Args:
            prefix: written before each. Default none.
        """
        yield from self._managed_collision_collection.sharded_parameter_names(
            append_prefix(prefix, "_managed_collision_collection")
        )
        yield from self._embedding_module.sharded_parameter_names(
            append_prefix(prefix, "_embedding_module")
        )

    def create_context(self) -> ManagedCollisionContext:
        """Return what the steps of one forward pass hand on to each other."""
        maps = self._managed_collision_collection.create_context(self._embedding_module.reset_rows)
        return ManagedCollisionContext(maps, self._embedding_module.create_context())

    def input_dist(
        self,
        ctx: ManagedCollisionContext,
        features: KeyedJaggedTensor,
        mutate_miss_lengths: bool = True,
        error: Exception | None = None,
    ) -> Awaitable[Awaitable[KJTList]]:
        """Send ids to the ranks that have their maps.

        Args:
            ctx: of the forward pass.
            features: of this rank's batch.
            mutate_miss_lengths: for maps that leave ids out: whether their lengths become 0.
            error: what is wrong with the features already, if anything: all ranks raise it.
        """
        return self._managed_collision_collection.input_dist(
            ctx.maps, features, mutate_miss_lengths=mutate_miss_lengths, error=error
        )

    def compute(self, ctx: ManagedCollisionContext, dist_input: KJTList) -> list[Tensor]:
        """Find rows for the ids, reset the rows that change hands, and look rows up.

        Args:
            ctx: of the forward pass.
            dist_input: the ids that all ranks ask for.
        """
        maps, tables = self._managed_collision_collection, self._embedding_module
        ctx.rows = maps.compute_and_output_dist(ctx.maps, dist_input).wait()
        return tables.compute(ctx.tables, tables.input_dist(ctx.tables, ctx.rows).wait().wait())

    def output_dist(self, ctx: ManagedCollisionContext, output: list[Tensor]) -> Any:
        """Send vectors back to the ranks that asked for them.

        Args:
            ctx: of the forward pass.
            output: what `compute` returned.

        Returns:
            What the collection of tables returns; and the features with rows in place of ids, if asked for, else None.
        """
        rows = LazyFeatures(ctx.rows) if self._return_remapped_features else None
        return self._embedding_module.output_dist(ctx.tables, output), rows

    def held(self, table: str) -> tuple[Tensor, Tensor] | None:
        """Return the rows of a table that ids hold by this rank's part of its map, ascending, and these ids.

        Args:
            table: its name.

        Returns:
            int64 ``(N,)`` both, ids as an ``input_hash_func`` left them; None: this rank has no map of the table, or
            one of a kind of a program's own.
        """
        maps = self._managed_collision_collection.maps().get(table, [])
        held = [each.held() for each in maps if isinstance(each, FindsRows)]
        if not held:
            return None
        rows, ids = (torch.cat(parts) for parts in zip(*held, strict=True))
        return rows, ids

    def stats(self, reset: bool = True) -> dict[str, ManagedCollisionStats]:
        """Return, for each table that this rank has a map of, how full it is and what it has done.

        Args:
            reset: start to count anew.
        """
        return self._managed_collision_collection.stats(reset)

    # State that was saved where maps were divided otherwise.

    def move_rows(self) -> None:
        """Have the rows of tables follow the ids of maps that were loaded; all ranks call this."""
        maps, tables = self._managed_collision_collection, self._embedding_module
        with torch.no_grad():
            for table, moves in maps.row_moves.items():
                name = f"{tables.tables.prefix}.{table}.weight"
                value = tables.state_dict()[name]
                moved = maps.with_rows_moved(table, value)
                if moved is not value:  # a copy that every rank has
                    value.copy_(moved)
                tables.reset_rows(table, moves.left)

    def warn_of_states(self) -> None:
        """Say which tables have rows that moved, and that states saved with them have to follow."""
        trained = list(self._embedding_module.fused_optimizer.state_dict()["state"])
        for table, moves in self._managed_collision_collection.row_moves.items():
            if len(moves.old_rows) and any(name.endswith(f".{table}.weight") for name in trained):
                warnings.warn(
                    f"Rows of table '{table}' are on other ranks than where they were saved: {moves}. Give the state "
                    "of the optimizer that was saved with them to `fit_optimizer_state` before it is loaded.",
                    stacklevel=2,
                )

    def fit_optimizer_state(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Return the saved state of an optimizer with its rows where those of the tables are now.

        After a state was loaded that was saved where the rows of tables were divided otherwise, state that was
        saved with it needs this. All ranks call it.

        Args:
            state_dict: of ``fused_optimizer``, or of another optimizer with names: its ``"state"`` has the names
                of parameters, or these with something in front. This rank's parts in it are written to.
        """
        maps, prefix = self._managed_collision_collection, self._embedding_module.tables.prefix
        state = {}
        for param, values in state_dict["state"].items():
            tensors = dict(values)
            for table in maps.row_moves:
                name = f"{prefix}.{table}.weight"
                if str(param) == name or str(param).endswith(f".{name}"):
                    tensors = {
                        key: maps.with_rows_moved(table, value)
                        if isinstance(value, Tensor) and value.dim()
                        else value
                        for key, value in values.items()
                    }
            state[param] = tensors
        return {**state_dict, "state": state}

    def sync_hash_zch_weights(
        self,
        table_name: str,
        rank_to_global: Tensor,
        survived: Tensor,
        include_optimizer_state: bool,
        allreduce_fn: Callable[..., None],
        indices_slots: Tensor | None = None,
    ) -> None:
        """Refuse with a NotImplementedError: each part of a map is on one rank, and has no replicas.

        Args:
            table_name: name of the table.
            rank_to_global: rows of the replicas.
            survived: which of them stay.
            include_optimizer_state: of the rows, too.
            allreduce_fn: adds up.
            indices_slots: rows.
        """
        raise NotImplementedError(
            f"The map of table '{table_name}' should be one of its kind: replicas of maps are not there."
        )


def _move_rows(collection: BaseShardedManagedCollisionEmbeddingCollection, _: object) -> None:
    collection.move_rows()
    collection.warn_of_states()


class BaseManagedCollisionEmbeddingCollectionSharder(BaseEmbeddingSharder[M], Generic[M]):
    """Spreads a managed-collision collection over ranks.

    Args:
        e_sharder: spreads its tables.
        mc_sharder: spreads its maps.
        qcomm_codecs_registry: see `BaseEmbeddingSharder`.
    """

    def __init__(
        self,
        e_sharder: BaseEmbeddingSharder[Any],
        mc_sharder: ManagedCollisionCollectionSharder,
        qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None,
    ) -> None:
        super().__init__(e_sharder.fused_params, qcomm_codecs_registry)
        self._e_sharder, self._mc_sharder = e_sharder, mc_sharder

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Return in which ways tables can be spread, values of `ShardingType`.

        Args:
            compute_device_type: ``"cpu"`` or ``"cuda"``.
        """
        return self._e_sharder.sharding_types(compute_device_type)

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """Return with which kernels, the best one first.

        Args:
            sharding_type: value of a `ShardingType`.
            compute_device_type: ``"cpu"`` or ``"cuda"``.
        """
        return self._e_sharder.compute_kernels(sharding_type, compute_device_type)


def refuse_both(sharder: object, name: str, fused_params: object, codecs: object) -> None:
    """Refuse options of a sharder of tables beside the sharder.

    Args:
        sharder: of the tables, or None.
        name: of the argument that it is.
        fused_params: the options, or None.
        codecs: ``qcomm_codecs_registry``, or None.
    """
    if sharder is not None and (fused_params or codecs):
        raise ValueError(
            f"`fused_params` and `qcomm_codecs_registry` should be given to `{name}`, where there is one. "
            f"Received {fused_params} and {codecs} beside it."
        )
