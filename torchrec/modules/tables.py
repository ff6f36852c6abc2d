"""The tables of a collection: what pooled and sequence collections have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial, reduce
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from torchrec.checks import require_type
from torchrec.modules._private import (
    constant_in_graphs,
    ddp_around,
    is_cut_up_by_fsdp,
    parameters_by_name,
    reduced_by_ddp,
)
from torchrec.modules.embedding_configs import (
    BaseEmbeddingConfig,
    EmbeddingBagConfig,
    PoolingType,
)
from torchrec.ops import are_held, is_transformed, is_wrapped
from torchrec.ops.embedding import Group, LookupSpec, PolicyCode, PoolingCode, SlotSpec, TableSpec
from torchrec.ops.embedding.updates import RULES
from torchrec.optim.embedding_optimizer import EmbeddingFusedOptimizer, ShownUpdates
from torchrec.optim.joint_update import JointUpdate, LookupUpdater
from torchrec.optim.owners import owner_of
from torchrec.optim.step_hook import install_scaler_check, install_step_hook
from torchrec.optim.table_update import FusedRule, TableUpdate
from torchrec.types import DataType, IdPolicy

C = TypeVar("C", bound=BaseEmbeddingConfig)

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
_PARAMETERS = frozenset((nn.Parameter,))
# What rows of half precision are summed in, and returned.
_SUMMED_IN = dict.fromkeys((torch.float16, torch.bfloat16), torch.float32)
# Orders of keys whose look-ups a collection keeps; of further ones the oldest is made again when it comes.
_MOST_LOOKUPS = 64
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


def table_spec_of(config: BaseEmbeddingConfig) -> TableSpec:
    """Return what decides which rows ids choose in a table."""
    policy = PolicyCode.OVERFLOW if config.hash_size else _POLICY[config.id_policy]
    return TableSpec(
        config.name, config.embedding_dim, config.num_rows, config.num_embeddings, policy
    )


def has_sparse_gradient(config: BaseEmbeddingConfig) -> bool:
    """Say what `DistributedDataParallel` asks the modules that it knows."""
    if config.optimizer is None:
        return config.sparse
    return config.lr is None


def slots_of(
    configs: Sequence[BaseEmbeddingConfig], keys: Sequence[str], partial: bool = False
) -> tuple[list[SlotSpec], int]:
    """Return what is looked up by input with these keys, in order of tables, and the columns of the output.

    Args:
        configs: the tables.
        keys: of the input.
        partial: leave features out that the input does not have.

    Raises:
        ValueError: for a feature that is missing.
    """
    position = {key: k for k, key in enumerate(keys)}
    slots, column = [], 0
    for t, config in enumerate(configs):
        pooling = PoolingCode.SUM
        if isinstance(config, EmbeddingBagConfig):
            pooling = _POOLING[config.pooling]
        for feature in config.feature_names:
            # A map of ids gives the rows of this table alone under the name of its output.
            key = feature if feature in position else f"{feature}@{config.name}"
            if key in position:
                slots.append(SlotSpec(feature, t, position[key], pooling, column))
                column += config.embedding_dim
            elif not partial:
                raise ValueError(
                    f"`features` should have the key '{feature}' of table '{config.name}'. "
                    f"Received keys {list(keys)}."
                )
    return slots, column


def checked_tables(
    tables: Iterable[C], kind: type[C], data_types: Sequence[DataType] = _TRAINABLE
) -> list[C]:
    """Return tables as a list; raise for those that cannot be in one collection.

    Args:
        tables: the tables.
        kind: what they should be.
        data_types: element types that they may have. Default: those that can be trained.

    Raises:
        TypeError: for something that is no such table.
        ValueError: for a name that is missing or comes twice, a table without features, or an
            element type that is not among ``data_types``.
    """
    require_type(tables, "`tables`", Iterable)
    tables = list(tables)
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
        if table.data_type not in data_types:
            known = ", ".join(str(t) for t in data_types)
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
    return tables


class OutputType(NamedTuple):
    """Which dtype look-ups give.

    Attributes:
        given: the one that was asked for; None: none was.
        stored: the widest one of the tables when they were made.
    """

    given: torch.dtype | None
    stored: torch.dtype

    def of(self, dtype: torch.dtype) -> torch.dtype:
        """Return what look-ups give, where the widest dtype of the tables is now ``dtype``."""
        if self.given is not None:
            return self.given
        # Tables that are stored in half precision give FP32, for the layers behind them; a module that was
        # cast to it as a whole gives what its layers have.
        return _SUMMED_IN.get(dtype, dtype) if dtype is self.stored else dtype


class Tables:
    """Describes the look-ups of a collection, and says where the gradient of each table goes.

    Args:
        configs: the tables.
        modules: the module that holds the weight of each.
        prefix: of the names of the weights: ``embedding_bags`` or ``embeddings``.
        partial: whether input may lack features, which are not looked up then.
        output_dtype: of what look-ups give. Default: that of the tables, see `OutputType`.
    """

    def __init__(
        self,
        configs: Sequence[BaseEmbeddingConfig],
        modules: Sequence[nn.Module],
        prefix: str,
        partial: bool = False,
        output_dtype: torch.dtype | None = None,
    ) -> None:
        self.configs = list(configs)
        self._partial = partial
        self._parameters = [parameters_by_name(module) for module in modules]
        self.names = [f"{prefix}.{config.name}.weight" for config in configs]
        self.embedding_names = [n for names in embedding_names_by_table(configs) for n in names]
        self.dims = [c.embedding_dim for c in configs for _ in c.feature_names]
        self.counts_ids = any(
            c.id_policy != IdPolicy.ERROR or c.hash_size is not None for c in configs
        )
        self._number = {config.name: t for t, config in enumerate(configs)}
        self._bound: list[Tensor] = []  # the weights met, never lent ones
        self._updates = [TableUpdate(config.name, _rule_of(config)) for config in configs]
        self._shown: list[int] = []  # the first table of each weight, but those another one shows
        self._to_show: list[int] = []  # of a copy: what its original shows
        self._joints: list[tuple[JointUpdate, list[int]]] = []
        self._optimizer: EmbeddingFusedOptimizer | None = None
        self._lookups: dict[tuple[Any, ...], tuple[LookupSpec, list[Group]]] = {}
        self._compiled_lookups: dict[tuple[Any, ...], tuple[LookupSpec, list[Group]]] = {}
        self._version = 0
        self.in_backward = False  # whether any table is updated in the backward pass
        stored = _widest([parameters["weight"].dtype for parameters in self._parameters])
        self.output_type = OutputType(output_dtype, stored)
        self.bind()

    # The weights, and what knows them.

    def weights(self) -> list[Tensor]:
        """Return the weight of each table, having met those put in place of the former."""
        if not is_compiling() and are_held(self._bound, self._parameters, "weight"):
            return self._bound
        try:
            weights = list(map(itemgetter("weight"), self._parameters))
        except KeyError:
            raise RuntimeError(
                "The weights of tables should be parameters. Received none, as of a "
                "FullyShardedDataParallel: give it `use_orig_params=True`."
            ) from None
        if is_compiling():
            return weights
        self._require_tensors(weights)
        # What a transform puts there, or `torch.func.functional_call`, is gone when it ends.
        if not is_transformed() and not _are_lent(weights):
            self.bind()
        return weights

    def _require_tensors(self, weights: list[Tensor]) -> None:
        for config, weight in zip(self.configs, weights, strict=True):
            require_type(weight, f"The weight of table '{config.name}'", Tensor)

    def updates(self) -> list[TableUpdate]:
        """Return who trains each table, having met weights put in place of the former."""
        self.weights()
        return self._updates

    def unbind(self) -> None:
        """Meet the weights anew when next asked for them."""
        self._bound = []

    def check_not_reduced(self) -> None:
        """Refuse `DistributedDataParallel` around a table that the backward pass updates.

        Each rank would update its own with what it looked up itself, and the ranks drift apart.

        Raises:
            RuntimeError: naming the table.
        """
        reduced = reduced_by_ddp() if self.in_backward else []
        if not reduced:
            return
        ids = {id(param) for param in reduced}
        for config, update in zip(self.configs, self._updates, strict=True):
            if update.in_backward and id(update.weight) in ids:
                raise RuntimeError(
                    f"Table '{config.name}' should have no `lr`, so that the ranks add its gradients "
                    "up, or be left out of DistributedDataParallel: a fused table is updated on each "
                    "rank by itself, with the gradient of that rank alone. For a table that is too "
                    "large for that, shard it over the ranks: each has some rows of it."
                )

    def _check_not_cut_up(self) -> None:
        """Refuse `FullyShardedDataParallel` around tables with a rule of their own: it lends them their weights."""
        for config, update in zip(self.configs, self._updates, strict=True):
            if update.rule is not None and is_cut_up_by_fsdp(update.weight):
                raise RuntimeError(
                    f"Table '{config.name}' should have no `optimizer`, or be left out of "
                    "FullyShardedDataParallel (`ignored_states`), which trains all that it has by the "
                    "optimizer around it, and cuts weights up anywhere. Received "
                    f"{update.rule.optimizer}."
                )

    def number(self, table: str) -> int:
        """Return the number of a table.

        Raises:
            ValueError: if there is no table of this name.
        """
        if not isinstance(table, str) or table not in self._number:
            raise ValueError(f"`table` should be one of {list(self._number)}. Received {table!r}.")
        return self._number[table]

    def table(self, name: str) -> tuple[BaseEmbeddingConfig, Tensor, TableUpdate]:
        """Return the configuration of a table, its weight, and who trains it.

        Raises:
            ValueError: if there is no table of this name.
        """
        t, weights = self.number(name), self.weights()
        return self.configs[t], weights[t], self._updates[t]

    def bind(self) -> None:
        """Meet the weights: those there are now are trained, with their state beside them."""
        weights = [parameters["weight"] for parameters in self._parameters]
        self._require_tensors(weights)
        for config, weight in zip(self.configs, weights, strict=True):
            if not weight.is_floating_point():
                raise TypeError(
                    f"The weight of table '{config.name}' should be of a floating type. "
                    f"Received {weight.dtype}."
                )
        former = self._updates
        for t in range(len(weights)):
            self._meet(t, weights)
        for update in set(former).difference(self._updates):
            update.leave(self)
        first = {update: t for t, update in reversed(list(enumerate(self._updates)))}
        self._shown = sorted(t for update, t in first.items() if update.collections()[0] is self)
        together = [t for t in self._shown if self._updates[t].in_backward]
        alone = [[t] for t in self._shown if self._waits_for_lr(t)]
        self._joints = [self._joint_of(numbers) for numbers in self._apart(together) + alone]
        self.in_backward = any(update.in_backward for update in self._updates)
        if not all(update.in_backward for update in self._updates):
            install_step_hook()
        if self.in_backward:
            install_scaler_check()
        self.output_dtype = self.output_type.of(_widest([weight.dtype for weight in weights]))
        self._optimizer = None
        self._lookups, self._compiled_lookups = {}, {}
        self._version += 1
        self._to_show = []
        self._bound = [] if _are_lent(weights) else weights  # last: what is refused stays refused

    def _meet(self, t: int, weights: list[Tensor]) -> None:
        """Find who trains a table: who trains its weight already, or the one that did train it."""
        update, owner, config = self._updates[t], owner_of(weights[t]), self.configs[t]
        if owner is not None and not isinstance(owner, TableUpdate):
            raise ValueError(
                f"The weight of table '{config.name}' should have no optimizer in the "
                "backward pass before it is a table. Received one that has."
            )
        if owner is None:
            elsewhere = any(known is not self for known in update.collections())
            if elsewhere or any(update.trains(weight) for weight in weights):
                update = TableUpdate(config.name, update.rule)  # it goes on with the former weight
            update.own(weights[t])
        elif owner is not update:
            if update.rule is not None:
                owner.share_rule(update.rule, config.name)
            update = owner
        self._updates = [*self._updates[:t], update, *self._updates[t + 1 :]]
        update.join(self, first=t in self._to_show)

    def _waits_for_lr(self, t: int) -> bool:
        rule = self._updates[t].rule
        return rule is not None and rule.inherits_lr

    def _joint_of(self, numbers: list[int]) -> tuple[JointUpdate, list[int]]:
        """Return what updates these tables, which is kept as long as they are the same ones."""
        updates = [self._updates[t] for t in numbers]
        found = [joint for joint, _ in self._joints if joint.updates == updates]
        kept = found and all(update.joint is found[0] for update in updates)
        joint = found[0] if kept else self._new_joint(numbers, updates)
        joint.place()
        return joint, numbers

    def _apart(self, numbers: list[int]) -> list[list[int]]:
        """Return which tables that the backward pass updates are updated by one call: all of them."""
        return [numbers] if numbers else []

    def _new_joint(self, numbers: list[int], updates: list[TableUpdate]) -> JointUpdate:
        """Return what updates some tables together."""
        return JointUpdate(updates)

    def optimizer(self) -> EmbeddingFusedOptimizer:
        """Return the optimizer of the fused tables, but those that another collection shows."""
        updates = self.updates()
        if self._optimizer is None:
            shown = sorted(t for _, numbers in self._joints for t in numbers)
            named = {self.names[t]: updates[t] for t in shown}
            # These stay the same; and a partial can be copied and pickled, as a lambda cannot.
            self._optimizer = EmbeddingFusedOptimizer(
                partial(ShownUpdates, *ShownUpdates.of(named))
            )
        return self._optimizer

    def reset_states(self) -> None:
        """Set all states of fused tables to what they were before any update."""
        for update in self.updates():
            update.reset_state()

    def restart(self) -> None:
        """Meet weights that were loaded: what waits was for the former ones."""
        self.bind()
        for update in self._updates:
            update.restart()

    def discard_gradients(self) -> None:
        """Drop the gradients that were accumulated and not applied."""
        for update in self.updates():
            update.discard_gradients()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is made again when the copy is bound."""
        self.weights()
        made_anew: dict[str, Any] = {
            "_optimizer": None,
            "_lookups": {},
            "_compiled_lookups": {},
            "_bound": [],
            "_joints": [],
            "_shown": [],
            "_to_show": self._shown,
        }
        return {**self.__dict__, **made_anew}

    # Specs.

    def _table_spec(self, t: int, trained: bool = True) -> TableSpec:
        update, spec = self._updates[t], table_spec_of(self.configs[t])
        rule = update.rule.optimizer if update.rule is not None and trained else None
        return replace(spec, optimizer=rule, states=len(update.states))

    def _make_spec(self, keys: Sequence[str], requires_grad: Sequence[bool]) -> LookupSpec:
        slots, width = slots_of(self.configs, keys, self._partial)
        tables = [self._table_spec(t, trained) for t, trained in enumerate(requires_grad)]
        return LookupSpec(tables, slots, len(keys), width)

    def lookup_of(self, keys: list[str]) -> tuple[list[Tensor], LookupSpec, list[Group]]:
        """Return the weights, the spec of a look-up by these keys, and the groups that get a gradient.

        Args:
            keys: of the input.
        """
        weights, recorded, compiling = self.weights(), torch.is_grad_enabled(), is_compiling()
        if recorded and self.in_backward and not compiling and ddp_around() is not None:
            self.check_not_reduced()
        lent = not compiling and weights is not self._bound and _are_lent(weights)
        if lent and recorded:
            self._check_not_cut_up()
        requires_grad = (False,) * len(weights)
        if recorded:
            requires_grad = tuple([weight.requires_grad for weight in weights])
        spec, groups = self.lookup(tuple(keys), requires_grad, (self._version, lent, compiling))
        if self._partial and not groups:  # those that take gradients are looked up by other input
            weights = [weight.detach() for weight in weights]
        return weights, spec, groups

    # To torch.compile the result is a constant: it depends on nothing but the arguments.
    @constant_in_graphs
    def lookup(
        self, keys: tuple[str, ...], requires_grad: tuple[bool, ...], mode: tuple[int, bool, bool]
    ) -> tuple[LookupSpec, list[Group]]:
        """Return the spec for input with these keys, and the groups of tables that get a gradient.

        Args:
            keys: of the input.
            requires_grad: of each table, all False where no gradient is recorded.
            mode: a number that changes with the tables, so that a compiled look-up is compiled anew; whether
                the weights are lent; and whether it is a compiled look-up.
        """
        _, lent, compiled = mode
        if compiled and any(requires_grad):
            self.check_not_reduced()
        lookups = self._compiled_lookups if compiled else self._lookups
        found = lookups.get((keys, requires_grad, lent))
        if found is None:
            spec = self._make_spec(keys, [r and not lent for r in requires_grad])
            found = spec, self._make_groups(spec, requires_grad, lent)
            # While exporting it is a fake one, and a transform's dies with it: neither may stay.
            if type(spec.tensor) is Tensor and not is_wrapped(spec.tensor):
                # Keys may come in ever new orders. Compiled code finds its groups by number, so these have to stay;
                # it is the compiler that limits them.
                if not compiled and len(lookups) >= _MOST_LOOKUPS:
                    lookups.pop(next(iter(tuple(lookups))), None)
                lookups[keys, requires_grad, lent] = found
        return found

    def _make_groups(
        self, spec: LookupSpec, requires_grad: Sequence[bool], lent: bool
    ) -> list[Group]:
        # Of input that lacks features, a table may be looked up by none: nothing comes to it then.
        looked_up = {slot.table for slot in spec.slots}
        asked = [t for t, required in enumerate(requires_grad) if required and t in looked_up]
        if not asked:
            return []
        if lent:  # the gradient is that of who lends them
            return [Group(spec, asked, "dense")]
        groups = []
        for joint, numbers in self._joints:
            if set(numbers) & set(asked) and self._updates[numbers[0]].in_backward:
                groups.append(self._fused_group(spec, numbers, joint.updates))
        fused = [t for t in asked if self._updates[t].in_backward]
        shared = [t for t in fused if t not in self._shown]
        if shared:
            groups.append(self._fused_group(spec, shared, [self._updates[t] for t in shared]))
        rest = [t for t in asked if t not in fused]
        sparse = [t for t in rest if self.configs[t].sparse or self._waits_for_lr(t)]
        dense = [t for t in rest if t not in sparse]
        if sparse:
            groups.append(Group(spec, sparse, "sparse"))
        if dense:
            groups.append(Group(spec, dense, "dense"))
        return groups

    @staticmethod
    def _fused_group(spec: LookupSpec, numbers: list[int], updates: list[TableUpdate]) -> Group:
        return Group(spec, numbers, LookupUpdater(updates))


def _are_lent(weights: Sequence[Tensor]) -> bool:
    """Say whether these are not the module's own: `torch.func.functional_call` puts plain tensors in their place."""
    return not (
        _PARAMETERS.issuperset(map(type, weights))  # nearly always, and quicker asked
        or all(isinstance(weight, nn.Parameter) for weight in weights)
    )


def _widest(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """Return the dtype that holds numbers of all of these."""
    return reduce(torch.promote_types, dtypes) if dtypes else torch.get_default_dtype()


def _rule_of(config: BaseEmbeddingConfig) -> FusedRule | None:
    """Return the rule that a configuration asks for, if any."""
    if config.optimizer is None:
        return None
    rule = RULES[config.optimizer]
    options: dict[str, Any] = dict(config.optimizer_options)
    options["lr"] = 0.0 if config.lr is None else config.lr
    if config.weight_decay is not None:
        options["weight_decay"] = config.weight_decay
    unknown = [name for name in options if name not in rule.table_options]
    if unknown:
        raise ValueError(
            f"`optimizer_options` of table '{config.name}' should be among {list(rule.table_options)}, "
            f"which {config.optimizer.name} has. Received '{unknown[0]}'."
        )
    if config.lr is None and options.get("batch_l2"):
        raise ValueError(
            f"`batch_l2` of table '{config.name}' should come with an `lr`: the gradient that waits for "
            "another optimizer's step does not tell how often each row was looked up. Received "
            f"{options['batch_l2']} and no `lr`."
        )
    return FusedRule(config.optimizer, rule.hyper(options), inherits_lr=config.lr is None)
