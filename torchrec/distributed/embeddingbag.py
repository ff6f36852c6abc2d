"""Pooled collections whose tables are spread over ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchrec.checks import require_type
from torchrec.distributed._output_parts import EmbeddingBagCollectionAwaitable
from torchrec.distributed.collection import (
    ShardedTableCollection,
    StepContext,
    append_prefix,
)
from torchrec.distributed.embedding_types import (
    BaseEmbeddingSharder,
    FeatureShardingMixIn,
    ShardedEmbeddingModule,
)
from torchrec.distributed.exchange import LookupOptions
from torchrec.distributed.feature_sharding import shardings_of
from torchrec.distributed.sharded_tables import ShardedTables
from torchrec.distributed.types import (
    Awaitable,
    EmbeddingModuleShardingPlan,
    LazyAwaitable,
    LazyNoWait,
    ParameterSharding,
    QuantizedCommCodecs,
    ShardingEnv,
)
from torchrec.modules.embedding_configs import (
    EmbeddingBagConfig,
    PoolingType,
    dtype_to_data_type,
)
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.tables import embedding_names_by_table
from torchrec.ops.embedding import Bags, lookup_bags
from torchrec.ops.permute import regroup
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.embedding_optimizer import EmbeddingFusedOptimizer
from torchrec.optim.fused import FusedOptimizerModule
from torchrec.optim.keyed import KeyedOptimizer
from torchrec.optim.owners import owner_of
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

__all__ = [
    "EmbeddingBagCollectionAwaitable",
    "EmbeddingBagCollectionSharder",
    "EmbeddingBagSharder",
    "ShardedEmbeddingBag",
    "ShardedEmbeddingBagCollection",
]

_WEIGHT, _INPUT = "weight", "input"  # what a `torch.nn.EmbeddingBag` calls its table, and its ids


class _LazyKeyedTensor(LazyNoWait[KeyedTensor]):
    stands_for = KeyedTensor


class ShardedEmbeddingBagCollection(
    ShardedTableCollection,
    ShardedEmbeddingModule[StepContext, list[Tensor], KeyedTensor, StepContext],
    FusedOptimizerModule,
):
    """An `EmbeddingBagCollection` whose tables are spread over ranks.

    It is called, trained, saved and inspected as one that is not; made by `EmbeddingBagCollectionSharder`.

    Args:
        module: the collection.
        table_name_to_parameter_sharding: where each table goes.
        env: the ranks.
        fused_params: see `BaseEmbeddingSharder`.
        device: where this rank has its parts. Default: the CPU.
        qcomm_codecs_registry: see `BaseEmbeddingSharder`.
        module_fqn: its path in the model, for errors.
        sharded_module_order_overwrite: see `BaseEmbeddingSharder`.
        exact: see `BaseEmbeddingSharder`.
    """

    def __init__(
        self,
        module: EmbeddingBagCollection,
        table_name_to_parameter_sharding: dict[str, ParameterSharding],
        env: ShardingEnv,
        fused_params: dict[str, Any] | None = None,
        device: torch.device | None = None,
        qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None,
        module_fqn: str | None = None,
        sharded_module_order_overwrite: list[str] | None = None,
        *,
        exact: bool = False,
    ) -> None:
        super().__init__(qcomm_codecs_registry)
        self._weighted = module.is_weighted()
        tables = ShardedTables(
            module,
            table_name_to_parameter_sharding,
            env,
            device,
            fused_params,
            "embedding_bags",
            LookupOptions(self._weighted, exact=exact, codecs=qcomm_codecs_registry),
            module_fqn or "",
        )
        self._set_tables(tables)
        self._names = [n for names in embedding_names_by_table(tables.configs) for n in names]
        self._dims = [c.embedding_dim for c in tables.configs for _ in c.feature_names]
        self._configs: list[EmbeddingBagConfig] = module.embedding_bag_configs()
        self._pieces = _pieces(tables)

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """Return the tables."""
        return self._configs

    def update_shards(
        self,
        changed_sharding_params: EmbeddingModuleShardingPlan,
        env: ShardingEnv,
        device: torch.device | None,
    ) -> None:
        """Bring tables to other ranks: see `ShardedTableCollection.update_shards`."""
        super().update_shards(changed_sharding_params, env, device)
        self._pieces = _pieces(self._tables)

    @staticmethod
    def extend_shard_name(shard_name: str) -> str:
        """Return the name that the weight of a table has in the collection.

        Args:
            shard_name: of the table.

        Example:
            >>> ShardedEmbeddingBagCollection.extend_shard_name("t")
            'embedding_bags.t.weight'
        """
        return f"embedding_bags.{shard_name}.weight"

    def is_weighted(self) -> bool:
        """Return whether each id comes with a weight."""
        return self._weighted

    @property
    def unsharded_module_type(self) -> type[nn.Module]:
        """What it was before it was sharded."""
        return EmbeddingBagCollection

    @property
    def shardings(self) -> Mapping[str, FeatureShardingMixIn]:
        """Sharding type -> which ranks look up the features of such tables."""
        return shardings_of(self._tables)

    def compute(self, ctx: StepContext, dist_input: StepContext) -> list[Tensor]:
        """Look up what all ranks have asked this one for."""
        self._begin_lookup(dist_input)
        here, away = self._pool_here(dist_input.features), self._tables.away
        if away is None or dist_input.step is None:
            return [here]
        return [here, *away.compute(dist_input.step)]

    def output_dist(self, ctx: StepContext, output: list[Tensor]) -> LazyAwaitable[KeyedTensor]:
        """Send vectors back to the ranks that asked for them."""
        values, tables = output[0], self._tables
        if tables.away is not None and ctx.step is not None:
            away = tables.away.pool(ctx.step, output[1:])
            values = regroup([values, away], *self._pieces)[0] if tables.here.configs else away
        return _LazyKeyedTensor(KeyedTensor(self._names, self._dims, values))

    def _full_batch(self, features: KeyedJaggedTensor) -> KeyedJaggedTensor:
        if not self._tables.here.configs:
            return features  # what goes to other ranks does so before it is expanded
        different = features.variable_stride_per_key()
        return features.expand_inverse() if different else super()._full_batch(features)

    def _pool_here(self, features: KeyedJaggedTensor) -> Tensor:
        weights, spec, groups = self._tables.here.lookup_of(features.keys())
        if not weights:
            return features.values().new_empty((features.stride(), 0), dtype=self._tables.dtype)
        sample_weights = features.weights_or_none() if self._weighted else None
        if self._weighted and sample_weights is None:
            raise ValueError("`features` should have weights, as `is_weighted` says.")
        bags = Bags(features.values(), features.offsets(), sample_weights)
        output, out_of_range = lookup_bags(weights, spec, bags, self._tables.dtype, groups)
        self._count_here(out_of_range)
        return output


def _pieces(tables: ShardedTables) -> tuple[list[int], list[int]]:
    """Return how columns of tables looked up here and by exchange are put in order, as `regroup` takes it."""
    pieces, at = [], [0, 0]
    for config in tables.configs:
        side = 0 if tables.is_here(config.name) else 1
        for _ in config.feature_names:
            pieces += [side, at[side], config.embedding_dim]
            at[side] += config.embedding_dim
    return pieces, [len(pieces) // 3]


class EmbeddingBagCollectionSharder(BaseEmbeddingSharder[EmbeddingBagCollection]):
    """Spreads the tables of an `EmbeddingBagCollection` over ranks; see `BaseEmbeddingSharder`."""

    def shard(
        self,
        module: EmbeddingBagCollection,
        params: EmbeddingModuleShardingPlan,
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedEmbeddingBagCollection:
        """Return the collection spread over ranks."""
        return ShardedEmbeddingBagCollection(
            module,
            params,
            env,
            self.fused_params,
            device,
            self.qcomm_codecs_registry,
            module_fqn,
            exact=self._exact,
        )

    def reshard(
        self,
        sharded_module: ShardedEmbeddingBagCollection,
        changed_shard_to_params: EmbeddingModuleShardingPlan,
        env: ShardingEnv,
        device: torch.device | None = None,
    ) -> ShardedEmbeddingBagCollection:
        """Bring tables of a sharded collection to other ranks, with their states; all ranks call this.

        Args:
            sharded_module: the collection, changed.
            changed_shard_to_params: where tables go; others stay where they are.
            env: the ranks, the same ones.
            device: of the parts, which stays what it is. Default: that one.

        Returns:
            the same collection.
        """
        sharded_module.update_shards(changed_shard_to_params, env, device)
        return sharded_module

    @property
    def module_type(self) -> type[EmbeddingBagCollection]:
        """What it shards."""
        return EmbeddingBagCollection

    @property
    def sharded_module_type(self) -> type[ShardedEmbeddingBagCollection]:
        """What it makes."""
        return ShardedEmbeddingBagCollection


class ShardedEmbeddingBag(
    ShardedEmbeddingModule[StepContext, list[Tensor], Tensor, StepContext], FusedOptimizerModule
):
    """A `torch.nn.EmbeddingBag` whose table is spread over ranks.

    It is called as one that is not, and its table is called ``weight``. Bags that are summed may have weights of ids,
    on some ranks or all, so that weights are sent with the ids, 1 where none are given.

    Args:
        module: the bag; of mode ``"sum"`` or ``"mean"``, without ``max_norm`` and ``scale_grad_by_freq``.
        table_name_to_parameter_sharding: where the table goes, under the name ``weight``.
        env: the ranks.
        fused_params: see `BaseEmbeddingSharder`.
        device: where this rank has its part. Default: the CPU.
        qcomm_codecs_registry: see `BaseEmbeddingSharder`.
        module_fqn: its path in the model, for errors.
        exact: see `BaseEmbeddingSharder`.

    Raises:
        ValueError: for a bag that does what tables in parts cannot.
    """

    weight: nn.Parameter

    def __init__(
        self,
        module: nn.EmbeddingBag,
        table_name_to_parameter_sharding: dict[str, ParameterSharding],
        env: ShardingEnv,
        fused_params: dict[str, Any] | None = None,
        device: torch.device | None = None,
        *,
        qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None,
        module_fqn: str | None = None,
        exact: bool = False,
    ) -> None:
        super().__init__(qcomm_codecs_registry)
        collection = ShardedEmbeddingBagCollection(
            _as_collection(module, module_fqn or ""),
            table_name_to_parameter_sharding,
            env,
            fused_params,
            device,
            qcomm_codecs_registry,
            module_fqn,
            exact=exact,
        )
        # In a tuple it is no child, whose parameters would have other names.
        self._collection = (collection,)
        self.weight = self._part()
        self._padding = module.padding_idx
        self._ends_with_size = module.include_last_offset
        self.register_state_dict_post_hook(_show_whole)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_take_part)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_weight_loaded)  # type: ignore[no-untyped-call]

    @property
    def collection(self) -> ShardedEmbeddingBagCollection:
        """What looks the table up: a collection of this one table."""
        return self._collection[0]

    @property
    def tables(self) -> ShardedTables:
        """The table, and where its parts are."""
        return self.collection.tables

    @property
    def unsharded_module_type(self) -> type[nn.Module]:
        """What it was before it was sharded."""
        return nn.EmbeddingBag

    @property
    def fused_optimizer(self) -> KeyedOptimizer:
        """The optimizer of this rank's part, if the backward pass updates it."""
        shown = partial(self.collection.tables.shown_updates, {_WEIGHT: _WEIGHT})
        return EmbeddingFusedOptimizer(shown)

    def create_context(self) -> StepContext:
        """Return what the parts of one forward pass hand on to each other."""
        return self.collection.create_context()

    def input_dist(
        self,
        ctx: StepContext,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Awaitable[Awaitable[StepContext]]:
        """Send ids to the ranks that have their rows.

        Args:
            ctx: of the forward pass.
            input: ids, ``(N,)`` with ``offsets``, or ``(B, n)``: bags of n ids each.
            offsets: where each bag begins, ``(B,)``, or ``(B + 1,)`` with ``include_last_offset``.
            per_sample_weights: of the ids, of the shape of ``input``; where bags are summed.
        """
        features, error = KeyedJaggedTensor.empty(), None
        try:
            features = self._features(input, offsets, per_sample_weights)
        except Exception as failed:  # the others wait for this rank
            error = failed
        return self.collection.input_dist(ctx, features, error)

    def compute(self, ctx: StepContext, dist_input: StepContext) -> list[Tensor]:
        """Look up what all ranks have asked this one for."""
        return self.collection.compute(ctx, dist_input)

    def output_dist(self, ctx: StepContext, output: list[Tensor]) -> LazyAwaitable[Tensor]:
        """Send vectors back to the ranks that asked for them."""
        return LazyNoWait(self.collection.output_dist(ctx, output).values())

    def _features(
        self, ids: Tensor, offsets: Tensor | None, weights: Tensor | None
    ) -> KeyedJaggedTensor:
        require_type(ids, "`input`", Tensor)
        if ids.dim() == 2 and offsets is None:
            size = ids.shape[1]
            offsets = torch.arange(0, ids.numel() + 1, size) if size else torch.zeros(len(ids) + 1)
        elif ids.dim() == 1 and offsets is not None:
            if not self._ends_with_size:
                offsets = torch.cat([offsets, offsets.new_tensor([len(ids)])])
        else:
            raise ValueError(
                "`input` should be (N,) with `offsets`, or (B, n) without. "
                f"Received {tuple(ids.shape)} {'without' if offsets is None else 'with'} `offsets`."
            )
        summed = self.collection.is_weighted()
        if weights is not None and (weights.shape != ids.shape or not summed):
            raise ValueError(
                f"`per_sample_weights` should be of the shape of `input`, {tuple(ids.shape)}, and come with mode "
                f"'sum'. Received {tuple(weights.shape)} with mode '{'sum' if summed else 'mean'}'."
            )
        if summed and weights is None:
            weights = torch.ones(ids.shape, dtype=torch.float32, device=ids.device)
        ids, offsets = ids.flatten(), offsets.to(ids.device, torch.int64)
        weights = None if weights is None else weights.flatten()
        if self._padding is not None:  # no part of its bag, neither of the sum nor of the divisor
            kept = ids != self._padding
            before = torch.cat([offsets.new_zeros(1), kept.cumsum(0)])
            offsets = before[offsets]
            ids = ids[kept]
            weights = None if weights is None else weights[kept]
        return KeyedJaggedTensor([_INPUT], ids, weights, offsets=offsets)

    def sharded_parameter_names(self, prefix: str = "") -> Iterator[str]:
        """Yield the name of the table, if it is spread over ranks.

        Args:
            prefix: written before it. Default none.
        """
        for _ in self.collection.sharded_parameter_names():
            yield append_prefix(prefix, _WEIGHT)

    def reset_parameters(self) -> None:
        """Give the table its initial weights anew; and no state."""
        self.collection.reset_parameters()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop gradients, also those that were accumulated and not applied.

        Args:
            set_to_none: set gradients to None instead of zeros.
        """
        self.collection.zero_grad(set_to_none)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.collection._apply(fn, recurse)
        self.weight = self._part()
        return self

    def _part(self) -> nn.Parameter:
        """Return what this rank has of the table, the parameter that the collection looks up."""
        return next(self.collection.parameters())

    def weight_loaded(self) -> None:
        """Meet a weight that was loaded: what waits, such as gradients, was for the former one."""
        self.collection.tables.parts[_WEIGHT].weight = self.weight
        self.collection.weights_loaded()


def _show_whole(bag: ShardedEmbeddingBag, state: dict[str, Any], prefix: str, _: object) -> None:
    """Have ``state_dict()`` show the whole table that a rank's part is of."""
    tables, name = bag.collection.tables, prefix + _WEIGHT
    state[name] = tables.value_of(tables.configs[0], state[name])


def _take_part(bag: ShardedEmbeddingBag, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Load this rank's part of the table."""
    tables, name = bag.collection.tables, prefix + _WEIGHT
    if name in state:
        state[name] = tables.load(tables.configs[0], state[name])


def _weight_loaded(bag: ShardedEmbeddingBag, _: object) -> None:
    bag.weight_loaded()


def _as_collection(module: nn.EmbeddingBag, path: str) -> EmbeddingBagCollection:
    """Return a collection of one table, the weight of a bag."""
    named = f"The EmbeddingBag '{path}'" if path else "The EmbeddingBag"
    for option, value, possible in (
        ("mode", module.mode, ("sum", "mean")),
        ("max_norm", module.max_norm, (None,)),
        ("scale_grad_by_freq", module.scale_grad_by_freq, (False,)),
        ("dtype", module.weight.dtype, (torch.float32, torch.float16, torch.bfloat16)),
    ):
        if value not in possible:
            asked = " or ".join(f"{each!r}" for each in possible)
            raise ValueError(
                f"{named} should have {option}={asked} to be sharded. Received {value!r}."
            )
    owner, weight = owner_of(module.weight), module.weight
    if owner is not None and owner.updated is not None:
        raise ValueError(
            f"{named} should be sharded before it is trained: the state of its optimizer in the backward pass stays "
            "behind. Received one that has been trained."
        )
    table = EmbeddingBagConfig(
        module.num_embeddings,
        module.embedding_dim,
        _WEIGHT,
        data_type=dtype_to_data_type(weight.dtype),
        feature_names=[_INPUT],
        init_fn=nn.init.normal_,
        pooling=PoolingType.MEAN if module.mode == "mean" else PoolingType.SUM,
        enable_grad=weight.requires_grad,
        sparse=module.sparse,
    )
    collection = EmbeddingBagCollection(
        [table], module.mode == "sum", torch.device("meta"), output_dtype=weight.dtype
    )
    if owner is not None:
        weight = nn.Parameter(weight.detach(), weight.requires_grad)
    collection.embedding_bags[_WEIGHT].weight = weight
    collection.table_shards(_WEIGHT)  # meets the weight: a table first, which then has an optimizer
    if owner is not None and owner.applied is not None:
        optimizer, options = owner.applied
        # As an optimizer does that is given a dense gradient: rows go on that no id of the batch chose.
        dense = {} if module.sparse else {"lazy": False}
        apply_optimizer_in_backward(optimizer, collection.parameters(), {**dense, **options})
    return collection


class EmbeddingBagSharder(BaseEmbeddingSharder[nn.EmbeddingBag]):
    """Spreads the table of a `torch.nn.EmbeddingBag` over ranks; see `BaseEmbeddingSharder`."""

    def shard(
        self,
        module: nn.EmbeddingBag,
        params: EmbeddingModuleShardingPlan,
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedEmbeddingBag:
        """Return the bag spread over ranks."""
        return ShardedEmbeddingBag(
            module,
            params,
            env,
            self.fused_params,
            device,
            qcomm_codecs_registry=self.qcomm_codecs_registry,
            module_fqn=module_fqn,
            exact=self._exact,
        )

    @property
    def module_type(self) -> type[nn.EmbeddingBag]:
        """What it shards."""
        return nn.EmbeddingBag

    def shardable_parameters(self, module: nn.EmbeddingBag) -> dict[str, nn.Parameter]:
        """Return the table, under the name ``weight``.

        Args:
            module: the bag.
        """
        return dict(module.named_parameters())
