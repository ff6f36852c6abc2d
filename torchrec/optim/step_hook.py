"""Lets the owners of parameters act before an optimizer steps that somebody else made.

Three things depend on who steps: a table without a learning rate of its own takes that of the optimizer that its
parameter was given to; evicted rows have state in all optimizers that have stepped with them; and where a gradient
scaler steps, the backward pass has updated fused tables with gradients that nobody has unscaled. PyTorch tells a
parameter nothing about the optimizers that hold it, and an optimizer made by others can only be met through the hook
that PyTorch has for all of them. The hooks themselves keep nothing: they ask the owners of the parameters, once the
innermost optimizer steps: those around it may clip the gradients first, or write the rates.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper, OptimizerWrapper
from torchrec.optim.owners import owner_of
from torchrec.optim.scaled_steps import scaled_steps
from torchrec.optim.semi_sync import SemisyncOptimizer

# Whose steps are those of the optimizers inside.
_AROUND_OTHERS = (CombinedOptimizer, KeyedOptimizerWrapper, OptimizerWrapper, SemisyncOptimizer)


@cache
def install_step_hook() -> None:
    """Have the owners of parameters asked before every step of every optimizer from now on."""
    register_optimizer_step_pre_hook(_before_step)


@cache
def install_scaler_check() -> None:
    """Have steps refused from now on that a gradient scaler takes for updates in the backward pass."""
    register_optimizer_step_pre_hook(_check_scaler)


def _check_scaler(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    scaled_steps.check(optimizer)


def _before_step(
    optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Ask the owners; with a closure, once the gradients are there that it computes."""
    if isinstance(optimizer, _AROUND_OTHERS):
        return None
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None:
        _ask_owners(optimizer)
        return None

    def closure_then_owners() -> Any:
        loss = closure()
        with torch.no_grad():
            _ask_owners(optimizer)
        return loss

    return (args[0],), {**kwargs, "closure": closure_then_owners}


def _ask_owners(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for param in group["params"]:
            owner = owner_of(param)
            if owner is not None:
                owner.before_step(optimizer, group)
