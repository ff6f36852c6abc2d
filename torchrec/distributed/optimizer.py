"""Optimizers of tables that the backward pass does not update, on many ranks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from torchrec.optim.keyed import KeyedOptimizer
from torchrec.optim.wholes import shown_states

__all__ = ["ShardedOptimizer"]


class ShardedOptimizer(KeyedOptimizer):
    """An optimizer whose state goes by tables, not by what a rank has of them: it loads under any plan.

    ``state_dict()`` of every `KeyedOptimizer` shows the states of parts of tables as that of the model shows weights.
    This one has ``state`` show them so as well, and makes them all at once, so that ranks have the same ones whatever
    rows they have met, and there is something to load into. Tables that the backward pass updates do not need it:
    ``fused_optimizer`` does the same.

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
        own = {id(param) for param in model.parameters()}
        others = [name for name, param in optimizer.params.items() if id(param) not in own]
        if others:
            raise ValueError(
                f"`optimizer` should be of parameters of `model`. Received others, of the names {others}."
            )
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
        return shown_states(self._optimizer.state)

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

    def accumulate(self) -> AbstractContextManager[None]:
        """Have the gradients of the backward passes inside wait for one update, in the optimizer inside."""
        return self._optimizer.accumulate()

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
        return self._optimizer._live_state(param)
