"""Optimizers whose update has already happened when ``step()`` is called: in the backward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from torchrec.optim.keyed import KeyedOptimizer


class FusedOptimizer(KeyedOptimizer, ABC):
    """An optimizer whose updates run inside the backward pass.

    It gives names, state and hyper-parameters of these updates, so that checkpoints and
    learning-rate schedulers see an ordinary optimizer; a learning rate written to a parameter
    group counts from the next backward pass on. ``step()`` and ``zero_grad()`` are there for loops
    that call them: all that is left to them is what a backward pass was asked to keep.

    Args:
        params: name -> parameter.
        state: parameter -> its state.
        param_groups: parameter groups.

    Example:
        >>> class Frozen(FusedOptimizer):
        ...     def step(self, closure=None): ...
        ...     def zero_grad(self, set_to_none=False): ...
        >>> table = torch.nn.Parameter(torch.zeros(2))
        >>> Frozen({"table": table}, {}, [{"params": [table], "lr": 0.1}]).defaults
        {'lr': 0.1}
    """

    @abstractmethod
    def step(self, closure: Any = None) -> Any:
        """Do what is left to do after the backward pass, if anything.

        Args:
            closure: computes the loss and runs the backward pass; called first.
        """

    @abstractmethod
    def zero_grad(self, set_to_none: bool = False) -> None:
        """Do what is left to do about gradients, if anything: fused updates keep none.

        Args:
            set_to_none: whether to drop gradients that are kept, if any, instead of setting them to 0.
        """

    def init_state(self, sparse_grad_parameter_names: set[str] | None = None) -> None:
        """Do nothing: the state of fused updates exists from the start.

        Args:
            sparse_grad_parameter_names: without effect.
        """


class EmptyFusedOptimizer(FusedOptimizer):
    """The fused optimizer of a module that updates nothing in its backward pass.

    Example:
        >>> EmptyFusedOptimizer().state_dict()
        {'state': {}, 'param_groups': []}
    """

    def __init__(self) -> None:
        super().__init__({}, {}, [])

    def step(self, closure: Any = None) -> Any:
        """Call ``closure``, if there is one, and return what it returned.

        Args:
            closure: computes the loss.
        """
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Do nothing.

        Args:
            set_to_none: without effect.
        """


class FusedOptimizerModule(ABC):
    """A module whose tables are updated in its backward pass, and which shows the optimizer of it.

    Example:
        >>> class Tables(torch.nn.Module, FusedOptimizerModule):
        ...     @property
        ...     def fused_optimizer(self):
        ...         return EmptyFusedOptimizer()
        >>> Tables().fused_optimizer.params
        {}
    """

    @property
    @abstractmethod
    def fused_optimizer(self) -> KeyedOptimizer:
        """The optimizer of the updates in the backward pass."""
