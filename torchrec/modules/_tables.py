"""The tables of a collection: what pooled and sequence collections have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from torchrec.modules._fused import (
    EmbeddingFusedOptimizer,
    FusedTable,
    TablesUpdater,
    install_step_hook,
)
from torchrec.modules.embedding_configs import (
    BaseEmbeddingConfig,
    EmbeddingBagConfig,
    PoolingType,
)
from torchrec.ops.embedding import Group, LookupSpec, PolicyCode, PoolingCode, SlotSpec, TableSpec
from torchrec.ops.embedding.updates import RULES, Hyper
from torchrec.optim._fusable import fused_rule
from torchrec.types import DataType, IdPolicy, OptimizerType

_POOLING = {
    PoolingType.SUM: PoolingCode.SUM,
    PoolingType.MEAN: PoolingCode.MEAN,
    PoolingType.NONE: PoolingCode.NONE,
}
_POLICY = {
    IdPolicy.ERROR: PolicyCode.ERROR,
    IdPolicy.HASH: PolicyCode.HASH,
    IdPolicy.UNKNOWN: PolicyCode.OVERFLOW,
    IdPolicy.CLAMP: PolicyCode.CLAMP,
    IdPolicy.IGNORE: PolicyCode.IGNORE,
}
_TRAINABLE = (DataType.FP32, DataType.FP16, DataType.BF16)


def embedding_names_by_table(tables: Sequence[BaseEmbeddingConfig]) -> list[list[str]]:
    """Return, for each table, the names of the outputs of its features.

    A feature that is looked up in several tables gives one output each, named ``feature@table``.

    Args:
        tables: the tables.
    """
    count: dict[str, int] = {}
    for table in tables:
        for feature in table.feature_names:
            count[feature] = count.get(feature, 0) + 1
    return [
        [f if count[f] == 1 else f"{f}@{table.name}" for f in table.feature_names]
        for table in tables
    ]


def check_tables(tables: Sequence[BaseEmbeddingConfig], kind: type[BaseEmbeddingConfig]) -> None:
    """Raise for tables that cannot be in one collection.

    Args:
        tables: the tables.
        kind: what they should be.

    Raises:
        TypeError: for something that is no such table.
        ValueError: for a name that is missing or comes twice, a table without features, or an
            element type that cannot be trained.
    """
    seen: set[str] = set()
    reserved = nn.ModuleDict()
    for number, table in enumerate(tables):
        if not isinstance(table, kind):
            raise TypeError(
                f"`tables` should hold {kind.__name__}s. Received {table!r} as number {number}."
            )
        if not table.name or "." in table.name:
            raise ValueError(
                f"Table number {number} should have a `name` without dots. Received '{table.name}'."
            )
        if hasattr(reserved, table.name):
            raise ValueError(
                f"Table number {number} should have another `name`: nn.ModuleDict needs "
                f"'{table.name}' for itself."
            )
        if table.name in seen:
            raise ValueError(f"Names of tables should differ. Received '{table.name}' twice.")
        if not table.feature_names:
            raise ValueError(f"Table '{table.name}' should have `feature_names`. Received none.")
        if table.data_type not in _TRAINABLE:
            known = ", ".join(str(t) for t in _TRAINABLE)
            raise ValueError(
                f"`data_type` of table '{table.name}' should be one of {known}. "
                f"Received {table.data_type}."
            )
        seen.add(table.name)
    outputs: set[str] = set()
    for name in (n for names in embedding_names_by_table(tables) for n in names):
        if name in outputs:
            raise ValueError(f"Names of outputs should differ. Received '{name}' twice.")
        outputs.add(name)


def initialise(table: BaseEmbeddingConfig, weight: Tensor) -> None:
    """Fill the weights of a table with their initial values, as its configuration says."""
    if weight.is_meta:
        return
    with torch.no_grad():
        if table.init_fn is None:
            weight.uniform_(table.get_weight_init_min(), table.get_weight_init_max())
            return
        filled = table.init_fn(weight)
        if filled is not None and filled is not weight:
            weight.copy_(filled)


class Tables:
    """Describes the look-ups of a collection, and says where the gradient of each table goes.

    Args:
        configs: the tables.
        modules: the module that holds the weight of each.
        prefix: of the names of the weights: ``embedding_bags`` or ``embeddings``.
    """

    def __init__(
        self, configs: Sequence[BaseEmbeddingConfig], modules: Sequence[nn.Module], prefix: str
    ) -> None:
        self.configs = list(configs)
        self.modules = list(modules)
        self.names = [f"{prefix}.{config.name}.weight" for config in configs]
        self.features = [f for config in configs for f in config.feature_names]
        self.embedding_names = [n for names in embedding_names_by_table(configs) for n in names]
        self.dims = [c.embedding_dim for c in configs for _ in c.feature_names]
        self.counts_ids = any(
            c.id_policy != IdPolicy.ERROR or c.hash_size is not None for c in configs
        )
        self._number = {config.name: t for t, config in enumerate(configs)}
        self._bound: list[int] = []
        self._fused: dict[int, FusedTable] = {}
        self._updaters: list[TablesUpdater] = []
        self._optimizer: EmbeddingFusedOptimizer | None = None
        self._lookups: dict[tuple[Any, ...], tuple[LookupSpec, list[Group]]] = {}
        self._version = 0
        for t, config in enumerate(self.configs):
            if config.optimizer is not None:
                self._fused[t] = FusedTable(
                    t,
                    self.names[t],
                    config.optimizer,
                    _hyper_of(config.optimizer, config),
                    inherits_lr=config.lr is None,
                )
        self.bind()

    # The weights, and what knows them.

    def weights(self) -> list[Tensor]:
        """Return the weight of each table, as it is now."""
        return [module._parameters["weight"] for module in self.modules]  # type: ignore[misc]

    def bound_weights(self) -> list[Tensor]:
        """Return the weights, having met those that others have put in place of the former."""
        weights = self.weights()
        if not is_compiling() and [id(weight) for weight in weights] != self._bound:
            self.bind()
        return weights

    def number(self, table: str) -> int:
        """Return the number of a table.

        Raises:
            ValueError: if there is no table of this name.
        """
        if table not in self._number:
            raise ValueError(f"`table` should be one of {list(self._number)}. Received '{table}'.")
        return self._number[table]

    def bind(self) -> None:
        """Meet the weights: those there are now are fused, with their state beside them."""
        weights = self.weights()
        for config, weight in zip(self.configs, weights, strict=True):
            if not weight.is_floating_point():
                raise TypeError(
                    f"The weight of table '{config.name}' should be of a floating type. "
                    f"Received {weight.dtype}."
                )
        alone = [[f] for f in self._fused.values() if f.inherits_lr]
        together = [f for f in self._fused.values() if not f.inherits_lr]
        self._updaters = [self._updater(f) for f in ([together] if together else []) + alone]
        for updater in self._updaters:
            updater.place(weights)
        self._bound = [id(weight) for weight in weights]
        self.dtype = _widest([weight.dtype for weight in weights])
        self._optimizer = None
        self._lookups = {}
        self._version += 1
        for t, weight in enumerate(weights):
            weight._fuse_optimizer = partial(self.fuse, t)  # type: ignore[attr-defined]
            fused = self._fused.get(t)
            if fused is not None and fused.inherits_lr:
                weight._step_with_lr = partial(self._step_with_lr, t)  # type: ignore[attr-defined]
                install_step_hook()
            elif fused is not None:
                # So that in_backward_optimizer_filter leaves it out of other optimizers.
                weight._in_backward_optimizers = []  # type: ignore[attr-defined]

    def _updater(self, fused: list[FusedTable]) -> TablesUpdater:
        """Return the updater of these tables, a new one with the states that they had in another."""
        for old in self._updaters:
            if old.tables == fused:
                return old
        updater = TablesUpdater(fused)
        updater.place(self.weights())
        for old in self._updaters:
            for table in old.tables:
                if table in fused and old.states:
                    for name, value in updater.states_of(table).items():
                        value.copy_(old.states_of(table)[name])
        return updater

    def fuse(
        self, t: int, optimizer_class: type[torch.optim.Optimizer], kwargs: Mapping[str, object]
    ) -> None:
        """Update a table in the backward pass from now on; called by `apply_optimizer_in_backward`.

        Args:
            t: number of the table.
            optimizer_class: a class that can be fused.
            kwargs: its arguments.
        """
        kind, hyper = fused_rule(optimizer_class, kwargs)
        self._fused[t] = FusedTable(t, self.names[t], kind, hyper)
        self._fused = dict(sorted(self._fused.items()))
        self.bind()

    def optimizer(self) -> EmbeddingFusedOptimizer:
        """Return the optimizer of the fused tables."""
        if self._optimizer is None:
            params = dict(zip(self.names, self.weights(), strict=True))
            named = {f.name: params[f.name] for f in self._fused.values()}
            self._optimizer = EmbeddingFusedOptimizer(named, self._updaters)
        return self._optimizer

    def _step_with_lr(self, t: int, lr: float) -> None:
        """Update a table that takes its learning rate from the optimizer that is about to step."""
        weight = self.weights()[t]
        if weight.grad is None:
            return
        updater = next(u for u in self._updaters if u.inherits_lr and u.tables[0].number == t)
        updater.apply_sparse(weight.grad, lr, weight, self._table_spec(t))
        weight.grad = None  # the optimizer itself passes the table over

    def reset_states(self, number: int | None = None, rows: Tensor | None = None) -> None:
        """Set states of fused tables to what they were before any update.

        Args:
            number: of the table; None: all tables, and their step counts.
            rows: of that table.
        """
        weights = self.weights()
        for updater in self._updaters:
            for table in updater.tables:
                if number not in (None, table.number):
                    continue
                states = updater.states_of(table)
                fresh = table.new_states(weights[table.number][:1].detach())
                for name, value in zip(table.state_names, fresh, strict=True):
                    states[name][slice(None) if rows is None else rows] = value
                if number is None:
                    states["step"].zero_()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is made again when the copy is bound."""
        return {**self.__dict__, "_optimizer": None, "_lookups": {}, "_bound": []}

    # Specs.

    def _table_spec(self, t: int, trained: bool = True) -> TableSpec:
        config, fused = self.configs[t], self._fused.get(t)
        policy = PolicyCode.OVERFLOW if config.hash_size else _POLICY[config.id_policy]
        return TableSpec(
            config.name,
            config.embedding_dim,
            config.num_rows,
            config.num_embeddings,
            policy,
            fused.optimizer if fused and trained else None,
            len(fused.state_names) if fused else 0,
        )

    def _make_spec(self, keys: Sequence[str], requires_grad: Sequence[bool]) -> LookupSpec:
        position = {key: k for k, key in enumerate(keys)}
        slots, column = [], 0
        for t, config in enumerate(self.configs):
            pooling = PoolingCode.SUM
            if isinstance(config, EmbeddingBagConfig):
                pooling = _POOLING[config.pooling]
            for feature in config.feature_names:
                if feature not in position:
                    raise ValueError(
                        f"`features` should have the key '{feature}' of table '{config.name}'. "
                        f"Received keys {list(keys)}."
                    )
                slots.append(SlotSpec(feature, t, position[feature], pooling, column))
                column += config.embedding_dim
        tables = [self._table_spec(t, trained) for t, trained in enumerate(requires_grad)]
        return LookupSpec(tables, slots, len(keys), column)

    def mode(self) -> tuple[Any, ...]:
        """Return what a compiled look-up depends on beside keys and weights."""
        waiting = [(u.collecting, len(u.pending)) for u in self._updaters]
        return (self._version, *waiting)

    def lookup(
        self, keys: tuple[str, ...], requires_grad: tuple[bool, ...], mode: tuple[Any, ...]
    ) -> tuple[LookupSpec, list[Group]]:
        """Return the spec for input with these keys, and the groups of tables that get a gradient.

        Args:
            keys: of the input.
            requires_grad: of each table, all False where no gradient is recorded.
            mode: `mode`; a compiled look-up is compiled anew when it changes.
        """
        found = self._lookups.get((keys, requires_grad))
        if found is None:
            spec = self._make_spec(keys, requires_grad)
            found = spec, self._make_groups(spec, requires_grad)
            if type(spec.tensor) is Tensor:  # while exporting it is a fake one, which must not stay
                self._lookups[keys, requires_grad] = found
        return found

    # To torch.compile, the result is a constant: it depends on nothing but the arguments. This mark
    # is all that torch.compiler.assume_constant_result leaves, and that would import the compiler.
    lookup._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def _make_groups(self, spec: LookupSpec, requires_grad: Sequence[bool]) -> list[Group]:
        if not any(requires_grad):
            return []
        groups = [
            Group(spec, [table.number for table in updater.tables], updater)
            for updater in self._updaters
            if not updater.inherits_lr
            and any(requires_grad[table.number] for table in updater.tables)
        ]
        waiting = {u.tables[0].number for u in self._updaters if u.inherits_lr}
        plain = [t for t, asked in enumerate(requires_grad) if asked and t not in self._fused]
        sparse = [
            t
            for t, asked in enumerate(requires_grad)
            if asked and (t in waiting or (t in plain and self.configs[t].sparse))
        ]
        dense = [t for t in plain if t not in sparse]
        if sparse:
            groups.append(Group(spec, sparse, "sparse"))
        if dense:
            groups.append(Group(spec, dense, "dense"))
        return groups


def _widest(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """Return the dtype that holds numbers of all of these."""
    return reduce(torch.promote_types, dtypes) if dtypes else torch.get_default_dtype()


def _hyper_of(optimizer: OptimizerType, config: BaseEmbeddingConfig) -> Hyper:
    """Return the hyper-parameters that a configuration asks for."""
    rule = RULES[optimizer]
    options: dict[str, Any] = dict(config.optimizer_options)
    options["lr"] = 0.0 if config.lr is None else config.lr
    if config.weight_decay is not None:
        options["weight_decay"] = config.weight_decay
    unknown = [name for name in options if name not in rule.options]
    if unknown:
        raise ValueError(
            f"`optimizer_options` of table '{config.name}' should be among {list(rule.options)}, "
            f"which {optimizer.name} has. Received '{unknown[0]}'."
        )
    return rule.hyper(options)
