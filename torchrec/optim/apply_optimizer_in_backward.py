"""Runs an optimizer inside the backward pass, parameter by parameter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from torchrec.optim._fusable import fused_rule


def apply_optimizer_in_backward(
    optimizer_class: type[torch.optim.Optimizer],
    params: Iterable[nn.Parameter],
    optimizer_kwargs: dict[str, Any],
) -> None:
    """Update each parameter as soon as its gradient is known, in the backward pass.

    A gradient lives only until its parameter is updated, so the gradients of a model never exist
    all at once; for the tables of an embedding collection the gradient is never built at all: the
    rows are updated in the kernel. There is no ``step()`` to call for these parameters, and
    ``param.grad`` is ``None`` after the backward pass.

    The result is that of a loop with ``backward()``, ``step()``, ``zero_grad()``. So it *cannot*
    accumulate gradients: two backward passes are two updates. To accumulate, put the micro-batches
    into one backward pass (``sum(losses).backward()``), or leave the optimizer outside. A
    parameter that is used several times in one forward pass is updated once, with the sum.

    What runs can be reached, to change the learning rate or to save state: for ordinary parameters
    ``param._in_backward_optimizers`` holds one optimizer over this one parameter, which
    learning-rate schedulers take; for tables it is the ``fused_optimizer`` of their collection.

    Copies of a model, deep or pickled, are ordinary: apply an optimizer to their parameters anew.

    Args:
        optimizer_class: the optimizer; for tables, one that can be fused (those of
            `torchrec.optim`, and SGD, Adagrad, Adam, AdamW, SparseAdam of `torch.optim`).
        params: the parameters. A parameter may come twice in one call; it is updated once.
        optimizer_kwargs: arguments of ``optimizer_class``, ``{"lr": 0.1}`` say.

    Raises:
        ValueError: if a parameter is no leaf of the graph, or already has another optimizer in the
            backward pass, or is a table and the optimizer cannot be fused.
        TypeError: if the optimizer does not take an argument.

        Then no parameter has been changed.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.ones_(model.weight)
        >>> apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.5})
        >>> model(torch.tensor([[1.0, 0.0]])).sum().backward()
        >>> model.weight.tolist(), model.weight.grad
        ([[0.5, 1.0]], None)
        >>> optimizer = model.weight._in_backward_optimizers[0]
        >>> scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    """
    parameters = [p for p in dict.fromkeys(params) if _is_new(p, optimizer_class, optimizer_kwargs)]
    if any(hasattr(param, "_fuse_optimizer") for param in parameters):
        fused_rule(optimizer_class, optimizer_kwargs)
    optimizers = [
        None if hasattr(param, "_fuse_optimizer") else optimizer_class([param], **optimizer_kwargs)
        for param in parameters
    ]
    for param, optimizer in zip(parameters, optimizers, strict=True):
        if optimizer is None:
            param._fuse_optimizer(optimizer_class, optimizer_kwargs)  # type: ignore[attr-defined]
        else:
            _step_after_gradient(param, optimizer)
        marks = {
            "_optimizer_classes": [optimizer_class],
            "_optimizer_kwargs": [dict(optimizer_kwargs)],
            "_in_backward_optimizers": [] if optimizer is None else [optimizer],
        }
        for name, value in marks.items():
            setattr(param, name, value)


def _is_new(
    param: nn.Parameter,
    optimizer_class: type[torch.optim.Optimizer],
    optimizer_kwargs: dict[str, Any],
) -> bool:
    """Whether a parameter still needs this optimizer; an error if it cannot have it."""
    shape = tuple(param.shape)
    if not param.is_leaf:
        raise ValueError(
            "`params` should be leaves of the graph, such as parameters of a module. "
            f"Received a tensor of shape {shape} that was computed from others."
        )
    present = getattr(param, "_optimizer_classes", None)
    if present is None:
        return True
    kwargs = param._optimizer_kwargs  # type: ignore[attr-defined]
    if present == [optimizer_class] and kwargs == [optimizer_kwargs]:
        return False
    raise ValueError(
        "A parameter should have one optimizer in the backward pass. Received "
        f"{optimizer_class.__name__} with {optimizer_kwargs} for the parameter of shape {shape}, "
        f"which has {present[0].__name__} with {kwargs[0]}."
    )


def _step_after_gradient(param: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
    """Run ``optimizer``, which has this one parameter, whenever its gradient has been summed up."""

    def step(param: Tensor) -> None:
        optimizer.step()
        param.grad = None

    # A hook is refused while a parameter is frozen, but stays while it is frozen later.
    required = param.requires_grad
    param.requires_grad_(True)
    param.register_post_accumulate_grad_hook(step)
    param.requires_grad_(required)
