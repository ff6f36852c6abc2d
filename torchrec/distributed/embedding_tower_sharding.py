"""Towers whose tables are spread over ranks.

The tables of a tower are sharded as those of any collection, and its interaction is a layer that every rank has: it is
applied where the sample is, and the data-parallel wrapper of the model keeps it alike. A tower hence trains as in one
process under every plan, and its tables may lie anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from torchrec.distributed._awaitable import Deferred
from torchrec.distributed._default_sharders import collection_sharders
from torchrec.distributed.collection import append_prefix
from torchrec.distributed.embedding_types import BaseEmbeddingSharder, ShardedEmbeddingModule
from torchrec.distributed.types import (
    Awaitable,
    EmbeddingModuleShardingPlan,
    LazyAwaitable,
    LazyNoWait,
    QuantizedCommCodecs,
    ShardingEnv,
)
from torchrec.modules.collection import Collection
from torchrec.modules.embedding_tower import (
    EmbeddingTower,
    EmbeddingTowerCollection,
    tower_input_params,
)
from torchrec.optim.fused import FusedOptimizerModule
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Multistreamable

__all__ = [
    "EmbeddingTowerCollectionSharder",
    "EmbeddingTowerSharder",
    "ShardedEmbeddingTower",
    "ShardedEmbeddingTowerCollection",
]


class ShardedEmbeddingTower(
    ShardedEmbeddingModule[Multistreamable, Any, Tensor, Multistreamable], FusedOptimizerModule
):
    """An `EmbeddingTower` whose tables are spread over ranks.

    Args:
        module: the tower.
        table_name_to_parameter_sharding: where each table goes.
        embedding_sharder: who shards the tables.
        kjt_features: features that they take without weights.
        wkjt_features: features that they take with weights.
        env: the ranks.
        fused_params: None, or those of ``embedding_sharder``, which is who trains the tables.
        device: where this rank has its parts. Default: the CPU.
        qcomm_codecs_registry: None, or those of ``embedding_sharder``.
        module_fqn: its path in the model, for errors.
    """

    def __init__(
        self,
        module: EmbeddingTower,
        table_name_to_parameter_sharding: EmbeddingModuleShardingPlan,
        embedding_sharder: BaseEmbeddingSharder[Any],
        kjt_features: list[str],
        wkjt_features: list[str],
        env: ShardingEnv,
        fused_params: dict[str, Any] | None = None,
        device: torch.device | None = None,
        qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None,
        *,
        module_fqn: str | None = None,
    ) -> None:
        _check_options(embedding_sharder, fused_params, qcomm_codecs_registry)
        super().__init__()
        self.embedding = embedding_sharder.shard(
            module.embedding,
            table_name_to_parameter_sharding,
            env,
            device,
            append_prefix(module_fqn or "", "embedding"),
        )
        self.interaction = module.interaction
        self._features = kjt_features, wkjt_features

    @property
    def unsharded_module_type(self) -> type[nn.Module]:
        """What it was before it was sharded."""
        return EmbeddingTower

    @property
    def fused_optimizer(self) -> KeyedOptimizer:
        """The optimizer of the parts of tables that this rank updates in the backward pass."""
        return CombinedOptimizer([("embedding", _fused_optimizer(self.embedding))])

    def features(self) -> tuple[list[str], list[str]]:
        """Return which features the tables take: without weights, and with."""
        return self._features

    def create_context(self) -> Multistreamable:
        """Return what the parts of one forward pass hand on to each other."""
        context: Multistreamable = self.embedding.create_context()
        return context

    def input_dist(
        self,
        ctx: Multistreamable,
        features: KeyedJaggedTensor | None,
        optional_features: KeyedJaggedTensor | None = None,
        error: Exception | None = None,
    ) -> Awaitable[Awaitable[Any]]:
        """Send ids to the ranks that have their rows.

        Args:
            ctx: of the forward pass.
            features: of this rank's batch, with weights if the tables take some; None beside an ``error``.
            optional_features: there are no tables that take both; must be None.
            error: what is wrong with them already, if anything: all ranks raise it.
        """
        if optional_features is not None and error is None:
            error = ValueError(
                "`optional_features` should be None: tables take features without weights, or with. "
                "Received some."
            )
        return self.embedding.input_dist(ctx, features, error=error)

    def compute(self, ctx: Multistreamable, dist_input: Any) -> Any:
        """Look up what all ranks have asked this one for."""
        return self.embedding.compute(ctx, dist_input)

    def output_dist(self, ctx: Multistreamable, output: Any) -> LazyAwaitable[Tensor]:
        """Send vectors back to the ranks that asked for them, and let them interact there."""
        return LazyNoWait(self.interaction(self.embedding.output_dist(ctx, output)))

    def sharded_parameter_names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of the parameters that are spread over ranks: those of tables.

        Args:
            prefix: written before each. Default none.
        """
        yield from self.embedding.sharded_parameter_names(append_prefix(prefix, "embedding"))


class TowersContext(Multistreamable):
    """What the parts of one forward pass of several towers hand on to each other.

    Args:
        contexts: of the towers.
    """

    def __init__(self, contexts: list[Multistreamable]) -> None:
        self.contexts = contexts
        self.asked: list[Any] = []  # of each tower

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory of every tensor alive until the work queued on ``stream`` is done."""
        for context in self.contexts:
            context.record_stream(stream)


class ShardedEmbeddingTowerCollection(
    ShardedEmbeddingModule[TowersContext, list[Any], Tensor, TowersContext], FusedOptimizerModule
):
    """An `EmbeddingTowerCollection` whose tables are spread over ranks.

    Args:
        module: the towers.
        table_name_to_parameter_sharding: where each table goes.
        tower_sharder: who shards a tower.
        env: the ranks.
        fused_params: None, or those of ``tower_sharder``.
        device: where this rank has its parts. Default: the CPU.
        qcomm_codecs_registry: None, or those of ``tower_sharder``.
        module_fqn: its path in the model, for errors.
    """

    def __init__(
        self,
        module: EmbeddingTowerCollection,
        table_name_to_parameter_sharding: EmbeddingModuleShardingPlan,
        tower_sharder: BaseEmbeddingSharder[EmbeddingTower],
        env: ShardingEnv,
        fused_params: dict[str, Any] | None = None,
        device: torch.device | None = None,
        qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None,
        *,
        module_fqn: str | None = None,
    ) -> None:
        _check_options(tower_sharder, fused_params, qcomm_codecs_registry)
        super().__init__()
        self.towers = nn.ModuleList()
        self._takes = []
        left = dict(table_name_to_parameter_sharding)
        for number, tower in enumerate(_towers(module)):
            names = tower_sharder.shardable_parameters(tower)
            plan = EmbeddingModuleShardingPlan(
                {name: left.pop(name) for name in names if name in left}
            )
            path = append_prefix(module_fqn or "", f"towers.{number}")
            self._takes.append(tower_input_params(tower.embedding))
            self.towers.append(tower_sharder.shard(tower, plan, env, device, path))
        if left:
            raise ValueError(
                f"The plan of the towers at '{module_fqn or ''}' should have their tables. "
                f"Received a table '{next(iter(left))}'."
            )

    @property
    def unsharded_module_type(self) -> type[nn.Module]:
        """What it was before it was sharded."""
        return EmbeddingTowerCollection

    @property
    def fused_optimizer(self) -> KeyedOptimizer:
        """The optimizer of the parts of tables that this rank updates in the backward pass."""
        return CombinedOptimizer(
            [(f"towers.{n}", _fused_optimizer(tower)) for n, tower in enumerate(self.towers)]
        )

    def create_context(self) -> TowersContext:
        """Return what the parts of one forward pass hand on to each other."""
        return TowersContext([tower.create_context() for tower in _sharded(self.towers)])

    def forward(
        self,
        features: KeyedJaggedTensor | None = None,
        weighted_features: KeyedJaggedTensor | None = None,
    ) -> LazyAwaitable[Tensor]:
        """Return the outputs of all towers, side by side, ``(B, sum of D)``.

        Args:
            features: ids by feature; needed if a tower takes them.
            weighted_features: likewise, ids with weights.
        """
        return super().forward(features, weighted_features)

    def input_dist(
        self,
        ctx: TowersContext,
        kjt_features: KeyedJaggedTensor | None = None,
        wkjt_features: KeyedJaggedTensor | None = None,
    ) -> Awaitable[Awaitable[TowersContext]]:
        """Send ids to the ranks that have their rows, one tower after the other.

        Args:
            ctx: of the forward pass.
            kjt_features: of this rank's batch; needed if a tower takes them.
            wkjt_features: likewise, with weights.
        """
        pairs = zip(_sharded(self.towers), ctx.contexts, self._takes, strict=True)
        sizes = []
        for number, (tower, context, takes) in enumerate(pairs):
            name, given = (
                ("features", kjt_features) if takes[0] else ("weighted_features", wkjt_features)
            )
            error = None
            if given is None:
                error = ValueError(
                    f"`{name}` should be given, as tower number {number} takes them. Received None."
                )
            sizes.append(tower.input_dist(context, given, error=error))

        def sent() -> Awaitable[TowersContext]:
            ids = [each.wait() for each in sizes]
            return Deferred(lambda: asked(ids))

        def asked(ids: list[Awaitable[Any]]) -> TowersContext:
            ctx.asked.extend(each.wait() for each in ids)
            return ctx

        return Deferred(sent)

    def compute(self, ctx: TowersContext, dist_input: TowersContext) -> list[Any]:
        """Look up what all ranks have asked this one for."""
        pairs = zip(_sharded(self.towers), ctx.contexts, dist_input.asked, strict=True)
        return [tower.compute(context, asked) for tower, context, asked in pairs]

    def output_dist(self, ctx: TowersContext, output: list[Any]) -> LazyAwaitable[Tensor]:
        """Send vectors back to the ranks that asked for them, and let them interact there."""
        pairs = zip(_sharded(self.towers), ctx.contexts, output, strict=True)
        outputs = [tower.output_dist(context, mine).wait() for tower, context, mine in pairs]
        return LazyNoWait(torch.cat(outputs, dim=1))

    def sharded_parameter_names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of the parameters that are spread over ranks: those of tables.

        Args:
            prefix: written before each. Default none.
        """
        for number, tower in enumerate(_sharded(self.towers)):
            yield from tower.sharded_parameter_names(append_prefix(prefix, f"towers.{number}"))


class EmbeddingTowerSharder(BaseEmbeddingSharder[EmbeddingTower]):
    """Spreads the tables of an `EmbeddingTower` over ranks; see `BaseEmbeddingSharder`."""

    def shard(
        self,
        module: EmbeddingTower,
        params: EmbeddingModuleShardingPlan,
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedEmbeddingTower:
        """Return the tower spread over ranks."""
        kjt_features, wkjt_features = self.embedding_feature_names(module)
        return ShardedEmbeddingTower(
            module,
            params,
            self.embedding_sharder(module),
            kjt_features,
            wkjt_features,
            env,
            self.fused_params,
            device,
            self.qcomm_codecs_registry,
            module_fqn=module_fqn,
        )

    def embedding_sharder(self, module: EmbeddingTower) -> BaseEmbeddingSharder[Any]:
        """Return who shards the tables of a tower.

        Args:
            module: the tower.

        Raises:
            TypeError: if nobody can.
        """
        sharders = collection_sharders(self.fused_params, self.qcomm_codecs_registry, self._exact)
        for sharder in sharders:
            if sharder.module_type is type(module.embedding):
                return sharder
        raise TypeError(
            "The `embedding` of a tower should be of a type that some sharder shards: "
            f"{sorted(sharder.module_type.__name__ for sharder in sharders)}. "
            f"Received {type(module.embedding).__name__}."
        )

    def embedding_feature_names(self, module: EmbeddingTower) -> tuple[list[str], list[str]]:
        """Return which features the tables of a tower take: without weights, and with.

        Args:
            module: the tower.
        """
        found: list[str] = []
        if isinstance(module.embedding, Collection):
            configs = module.embedding.table_store().table_configs()
            found = list(dict.fromkeys(f for config in configs for f in config.feature_names))
        plain, _ = tower_input_params(module.embedding)
        return (found, []) if plain else ([], found)

    @property
    def module_type(self) -> type[EmbeddingTower]:
        """What it shards."""
        return EmbeddingTower

    def shardable_parameters(self, module: EmbeddingTower) -> dict[str, nn.Parameter]:
        """Return the weights of the tables by the names of the tables.

        Args:
            module: the tower.
        """
        return self.embedding_sharder(module).shardable_parameters(module.embedding)


class EmbeddingTowerCollectionSharder(BaseEmbeddingSharder[EmbeddingTowerCollection]):
    """Spreads the tables of an `EmbeddingTowerCollection` over ranks.

    Args:
        fused_params: see `BaseEmbeddingSharder`.
        qcomm_codecs_registry: likewise.
        exact: likewise.
    """

    def __init__(
        self,
        fused_params: dict[str, Any] | None = None,
        qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None,
        *,
        exact: bool = False,
    ) -> None:
        super().__init__(fused_params, qcomm_codecs_registry, exact=exact)
        self._tower_sharder = EmbeddingTowerSharder(
            fused_params, qcomm_codecs_registry, exact=exact
        )

    def shard(
        self,
        module: EmbeddingTowerCollection,
        params: EmbeddingModuleShardingPlan,
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedEmbeddingTowerCollection:
        """Return the towers spread over ranks."""
        return ShardedEmbeddingTowerCollection(
            module,
            params,
            self._tower_sharder,
            env,
            self.fused_params,
            device,
            self.qcomm_codecs_registry,
            module_fqn=module_fqn,
        )

    @property
    def module_type(self) -> type[EmbeddingTowerCollection]:
        """What it shards."""
        return EmbeddingTowerCollection

    def shardable_parameters(self, module: EmbeddingTowerCollection) -> dict[str, nn.Parameter]:
        """Return the weights of the tables by the names of the tables.

        Args:
            module: the towers.

        Raises:
            ValueError: if two towers have tables of one name, which a plan could not tell apart.
        """
        found: dict[str, nn.Parameter] = {}
        for number, tower in enumerate(_towers(module)):
            for name, param in self._tower_sharder.shardable_parameters(tower).items():
                if name in found:
                    raise ValueError(
                        "Tables of towers should have names of their own. Received two of the name "
                        f"'{name}', one of them in tower number {number}."
                    )
                found[name] = param
        return found


def _towers(module: EmbeddingTowerCollection) -> Iterator[EmbeddingTower]:
    for tower in module.towers:
        if isinstance(tower, EmbeddingTower):
            yield tower


def _sharded(towers: nn.ModuleList) -> Iterator[ShardedEmbeddingTower]:
    for tower in towers:
        if isinstance(tower, ShardedEmbeddingTower):
            yield tower


def _fused_optimizer(module: nn.Module) -> KeyedOptimizer:
    return (
        module.fused_optimizer
        if isinstance(module, FusedOptimizerModule)
        else CombinedOptimizer([])
    )


def _check_options(
    sharder: BaseEmbeddingSharder[Any],
    fused_params: dict[str, Any] | None,
    codecs: dict[str, QuantizedCommCodecs] | None,
) -> None:
    for name, given, its in (
        ("fused_params", fused_params, sharder.fused_params),
        ("qcomm_codecs_registry", codecs, sharder.qcomm_codecs_registry),
    ):
        if given is not None and given != its:
            raise ValueError(
                f"`{name}` should be None, or those of the sharder that is given: {its}. Received {given}."
            )
