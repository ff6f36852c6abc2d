"""The optimizers of a model: those that its tables have fused, and one for all other parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from torchrec.optim.fused import FusedOptimizer, FusedOptimizerModule
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.types import optimizer_value

DENSE = "dense"
_RULES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
}


def fused_optimizers(model: nn.Module) -> list[tuple[str, KeyedOptimizer]]:
    """Return the optimizers of the tables that the backward pass updates, by path of their module."""
    found: list[tuple[str, KeyedOptimizer]] = []
    seen: set[int] = set()
    for path, module in model.named_modules():
        if not isinstance(module, FusedOptimizerModule):
            continue
        optimizer = module.fused_optimizer
        own = {id(param) for param in optimizer.params.values()}
        if own and not own & seen:  # a module around a collection shows the same tables
            parts = (
                optimizer.optimizers
                if isinstance(optimizer, CombinedOptimizer)
                else [("", optimizer)]
            )
            found += [(f"{path}.{name}".strip("."), part) for name, part in parts]
            seen |= own
    return found


def dense_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that an optimizer has to be given: all but fused and frozen ones."""
    rest = in_backward_optimizer_filter(model.named_parameters())
    return {name: param for name, param in rest if param.requires_grad}


def combined_optimizer(
    model: nn.Module, dense: torch.optim.Optimizer | None = None
) -> CombinedOptimizer:
    """Return all optimizers of a model as one.

    Args:
        model: the model.
        dense: of the parameters that are not fused. Default: that of `dense_optimizer`.

    Raises:
        TypeError: if ``dense`` is no optimizer.
        ValueError: if there is nothing to train, ``dense`` has other parameters than those that are
            not fused and require a gradient, or a table has an optimizer without a learning rate.
    """
    params = dense_parameters(model)
    pairs = fused_optimizers(model)
    if not params and not pairs:
        raise ValueError(
            "The model should have parameters to train. Received none that requires a gradient."
        )
    _require_rates(pairs)
    if dense is None:
        dense = dense_optimizer(model)
    elif not isinstance(dense, torch.optim.Optimizer):
        raise TypeError(
            f"`optimizer` should be a torch.optim.Optimizer. Received {type(dense).__name__}."
        )
    if dense is not None:
        _require_all(dense, params, model)
    if isinstance(dense, KeyedOptimizer):
        pairs.append((DENSE, dense))
    elif dense is not None:
        pairs.append((DENSE, KeyedOptimizerWrapper(params, lambda _: dense)))
    return CombinedOptimizer(pairs)


def dense_optimizer(
    model: nn.Module,
    rule: str = "adam",
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
) -> KeyedOptimizer | None:
    """Return an optimizer of the parameters that are not fused; None if there are none.

    Args:
        model: the model.
        rule: ``"adam"``, ``"adamw"``, ``"adagrad"`` or ``"sgd"``, as `OptimizerType` takes it. Default ``"adam"``.
        learning_rate: Default 0.001.
        weight_decay: Default 0.

    Raises:
        ValueError: if there is no such rule.

    Example:
        >>> dense_optimizer(nn.Linear(2, 1), "SGD", learning_rate=0.5).param_groups[0]["lr"]
        0.5
    """
    name = optimizer_value(rule)
    if name not in _RULES:
        raise ValueError(f"`rule` should be one of {', '.join(_RULES)}. Received {rule}.")
    params = dense_parameters(model)
    if not params:
        return None
    return KeyedOptimizerWrapper(
        params,
        # `fused` is one kernel for all parameters.
        lambda each: _RULES[str(name)](
            each, lr=learning_rate, weight_decay=weight_decay, fused=True
        ),
    )


def _require_all(
    optimizer: torch.optim.Optimizer, params: dict[str, Tensor], model: nn.Module
) -> None:
    """Refuse an optimizer that leaves some parameters as they are, or has some that it should not."""
    should = "should have all parameters that are not fused and require a gradient, and no others"
    grouped = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    for name, param in params.items():
        if grouped.pop(id(param), None) is None:
            raise ValueError(f"`optimizer` {should}. Received one without '{name}'.")
    for key, param in grouped.items():
        names = {id(each): f"'{name}'" for name, each in model.named_parameters()}
        what = names.get(key, f"one of shape {tuple(param.shape)} that the model does not have")
        none = "" if params else ": None would be right, as the model has none of these"
        raise ValueError(f"`optimizer` {should}. Received one with {what}{none}.")


def _require_rates(pairs: list[tuple[str, KeyedOptimizer]]) -> None:
    """Refuse tables that take their learning rate from whoever steps: here that could be several."""
    for _, optimizer in pairs:
        grouped = {id(param) for group in optimizer.param_groups for param in group["params"]}
        for name, param in optimizer.params.items():
            if id(param) not in grouped:
                table = name.removesuffix(".weight").rpartition(".")[2]
                raise ValueError(
                    f"`lr` of table '{table}' should be given for a trainer, as its optimizer is. "
                    "Received None."
                )


@runtime_checkable
class _Managed(Protocol):
    """A collection with maps of ids, whose rows move where these are divided otherwise."""

    def fit_optimizer_state(self, state_dict: dict[str, Any]) -> dict[str, Any]: ...


def moved_with_rows(model: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """Return a state of optimizers with its rows where those of the tables are, after these were loaded.

    Args:
        model: whose maps of ids may have been divided otherwise, on other ranks, when the state was saved.
        state: as it was saved.
    """
    for module in model.modules():
        if isinstance(module, _Managed):
            state = module.fit_optimizer_state(state)
    return state


def weights_moved_with_rows(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights by name, an average of them say, with their rows where those of the tables are.

    Args:
        model: see `moved_with_rows`.
        weights: as they were saved.
    """
    state = {"state": {name: {"weight": value} for name, value in weights.items()}}
    moved = moved_with_rows(model, state)["state"]
    return {name: values["weight"] for name, values in moved.items()}


def stepping(optimizer: CombinedOptimizer) -> list[torch.optim.Optimizer]:
    """Return those that a step is left to; the tables are updated by then, and shown by the others."""
    rest = [each for _, each in optimizer.optimizers if not isinstance(each, FusedOptimizer)]
    # Each layer around an optimizer costs a step some microseconds.
    return [each.wrapped if type(each) is KeyedOptimizerWrapper else each for each in rest]


@contextmanager
def collecting(optimizer: CombinedOptimizer) -> Iterator[None]:
    """Have the fused tables collect the gradients of the backward passes inside for the next one."""
    with ExitStack() as stack:
        for _, each in optimizer.optimizers:
            accumulate = getattr(each, "accumulate", None)
            if accumulate is not None:
                stack.enter_context(accumulate())
        yield
