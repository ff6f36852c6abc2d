"""Optimizers of tables that the backward pass does not update, on many ranks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from torchrec.distributed.collection import ShardedTableCollection, ShardedTables
from torchrec.distributed.embeddingbag import ShardedEmbeddingBag
from torchrec.optim.keyed import KeyedOptimizer

__all__ = ["ShardedOptimizer"]


class ShardedOptimizer(KeyedOptimizer):
    """An optimizer whose state goes by tables, not by what a rank has of them: it loads under any plan.

    Each rank's optimizer knows of its own parts only, and saved under one name they would take each
    other's place. This one shows them as ``state_dict()`` of the model shows weights. Tables that the
    backward pass updates do not need it: ``fused_optimizer`` does the same.

    Args:
        optimizer: of parameters of the model, by their names there. States that it has not made yet are
            made now, so that all ranks have the same ones.
        model: the sharded model.
        sparse_grad_parameter_names: see `KeyedOptimizer.init_state`. Default none.

    Example:
        >>> import torch
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
        >>> from torchrec.distributed import DistributedModelParallel
        >>> from torchrec.optim.keyed import KeyedOptimizerWrapper
        >>> table = EmbeddingBagConfig(10, 2, "t", feature_names=["f"])
        >>> model = DistributedModelParallel(EmbeddingBagCollection([table], device="meta"))
        >>> named = dict(model.named_parameters())
        >>> adam = KeyedOptimizerWrapper(named, lambda params: torch.optim.Adam(params, lr=0.1))
        >>> optimizer = ShardedOptimizer(adam, model)
        >>> list(optimizer.state_dict()["state"]["embedding_bags.t.weight"])
        ['step', 'exp_avg', 'exp_avg_sq']
    """

    def __init__(
        self,
        optimizer: KeyedOptimizer,
        model: nn.Module,
        sparse_grad_parameter_names: set[str] | None = None,
    ) -> None:
        self._tables = {
            name: (tables, table)
            for name, param in model.named_parameters()
            for tables, table in _table_of(param, model)
        }
        self._optimizer = optimizer
        optimizer.init_state(sparse_grad_parameter_names)
        self._start()

    @property
    def params(self) -> Mapping[str, Tensor]:
        """Name -> parameter; of a table, this rank's part."""
        return self._optimizer.params

    @property
    def param_groups(self) -> Collection[Mapping[str, Any]]:  # type: ignore[override]
        """Parameter groups of the optimizer inside."""
        return self._optimizer.param_groups

    @property
    def state(self) -> Mapping[Any, Any]:  # type: ignore[override]
        """Parameter -> its state, of tables as wholes, in the very memory of the optimizer inside."""
        inside = self._optimizer.state
        return {
            param: self._shown(name, param, inside[param])
            for name, param in self.params.items()
            if param in inside
        }

    def step(self, closure: Any = None) -> Any:
        """Update what this rank has.

        Args:
            closure: computes the loss and the gradients anew; for optimizers that need it.
        """
        return self._optimizer.step(closure=closure)

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Drop all gradients.

        Args:
            set_to_none: see `KeyedOptimizerWrapper.zero_grad`.
        """
        self._optimizer.zero_grad(set_to_none)

    def set_optimizer_step(self, step: int) -> None:
        """Set the step counters of the optimizer inside.

        Args:
            step: how many updates to assume to have been done.
        """
        self._optimizer.set_optimizer_step(step)

    def init_state(self, sparse_grad_parameter_names: set[str] | None = None) -> None:
        """Do nothing: all states were made when this optimizer was.

        Args:
            sparse_grad_parameter_names: without effect.
        """

    def post_load_state_dict(self) -> None:
        """Tell the optimizer inside that a state has been loaded."""
        self._optimizer.post_load_state_dict()

    def _live_state(self, param: Tensor) -> dict[str, Any]:
        inside = self._optimizer._live_state(param)
        (name,) = (name for name, own in self.params.items() if own is param)
        return _Live(self._shown(name, param, inside), inside)

    def _shown(self, name: str, param: Tensor, state: Mapping[str, Any]) -> dict[str, Any]:
        if name not in self._tables:
            return dict(state)
        tables, table = self._tables[name]
        return {
            key: tables.whole_state(table, key, value, value.shape != param.shape)
            if isinstance(value, Tensor)
            else value
            for key, value in state.items()
        }


class _Live(dict[str, Any]):
    """A state to write to: what is put in place of a number goes to the optimizer inside."""

    def __init__(self, shown: Mapping[str, Any], inside: dict[str, Any]) -> None:
        super().__init__(shown)
        self._inside = inside

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        self._inside[name] = value


def _table_of(param: Tensor, model: nn.Module) -> list[tuple[ShardedTables, str]]:
    """Return the sharded tables that a parameter is a part of, and its name there: one or none."""
    return [
        (tables, config.name)
        for tables in _tables_in(model)
        for config in tables.configs
        if tables.parts.get_submodule(config.name).weight is param
    ][:1]


def _tables_in(model: nn.Module) -> Iterator[ShardedTables]:
    for module in model.modules():
        if isinstance(module, ShardedTableCollection):
            yield module.tables
        elif isinstance(module, ShardedEmbeddingBag):
            yield module.collection.tables
