"""Runs an optimizer inside the backward pass, parameter by parameter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchrec.optim._private import reduced_by_ddp
from torchrec.optim.backward_pass import backward_pass_number
from torchrec.optim.fusable import optimizer_class_of
from torchrec.optim.owners import Owner, UpdateTime, owner_of, set_owner
from torchrec.optim.scaled_steps import scaled_steps
from torchrec.optim.step_hook import install_scaler_check
from torchrec.types import OptimizerType


def apply_optimizer_in_backward(
    optimizer_class: type[torch.optim.Optimizer] | OptimizerType | str,
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
    ``owner_of(param).optimizer`` is an optimizer over this one parameter, which learning-rate
    schedulers take; for tables it is the ``fused_optimizer`` of their collection.

    Copies of a model, deep or pickled, are ordinary: apply an optimizer to their parameters anew.
    Tables that were made on ``meta`` keep theirs when they get memory; for other parameters, which
    PyTorch puts new ones in place of, apply it afterwards.

    Args:
        optimizer_class: the optimizer; for tables, one that can be fused (those of
            `torchrec.optim`, and SGD, Adagrad, Adam, AdamW, SparseAdam of `torch.optim`). A member
            or name of `OptimizerType` stands for the class of `torchrec.optim`.
        params: the parameters. A parameter may come twice in one call; it is updated once.
        optimizer_kwargs: arguments of ``optimizer_class``, ``{"lr": 0.1}`` say. Tables take those of
            fused updates as well: ``"lazy": False`` to update all rows, ``"batch_l2"``. What is left out
            has the default of the rule; of Adagrad and row-wise Adagrad, ``eps`` is 1e-8 for tables, as
            in the fused kernels of this API, and 1e-10 for other parameters, as in PyTorch.

    Raises:
        ValueError: if a parameter is no leaf of the graph, or already has another optimizer in the
            backward pass, or is a table and the optimizer cannot be fused.
        TypeError: if the optimizer does not take an argument.

        Then no parameter has been changed.

        RuntimeError: in the first backward pass, if a `DistributedDataParallel` of several ranks has
            the parameter.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.ones_(model.weight)
        >>> apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.5})
        >>> model(torch.tensor([[1.0, 0.0]])).sum().backward()
        >>> model.weight.tolist(), model.weight.grad
        ([[0.5, 1.0]], None)
        >>> optimizer = owner_of(model.weight).optimizer
        >>> scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    """
    optimizer_class = optimizer_class_of(optimizer_class)
    owners: list[Owner] = []
    for param in dict.fromkeys(params):
        owner = owner_of(param)
        if _is_new(param, owner, optimizer_class, optimizer_kwargs):
            owners.append(_Stepper(param) if owner is None else owner)
    # Tables first: what they refuse is more than what the optimizer itself refuses.
    for owner in sorted(owners, key=lambda owner: isinstance(owner, _Stepper)):
        owner.check(optimizer_class, optimizer_kwargs)
    for owner in owners:
        owner.apply(optimizer_class, optimizer_kwargs)


def _is_new(
    param: nn.Parameter,
    owner: Owner | None,
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
    present = None if owner is None else owner.applied
    if present is None:
        return True
    if present == (optimizer_class, optimizer_kwargs):
        return False
    raise ValueError(
        "A parameter should have one optimizer in the backward pass. Received "
        f"{optimizer_class.__name__} with {optimizer_kwargs} for the parameter of shape {shape}, "
        f"which has {present[0].__name__} with {present[1]}."
    )


class _Stepper(Owner):
    """Steps an optimizer over one ordinary parameter whenever its gradient has been summed up.

    Args:
        param: the parameter; its hook keeps this alive.
    """

    def __init__(self, param: nn.Parameter) -> None:
        self._param = param
        self._optimizer: torch.optim.Optimizer | None = None
        self._applied: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None
        self._updated: UpdateTime | None = None
        self._checked = False

    @property
    def in_backward(self) -> bool:
        return True

    @property
    def applied(self) -> tuple[type[torch.optim.Optimizer], dict[str, Any]] | None:
        return self._applied

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        return self._optimizer

    @property
    def description(self) -> str:
        return f"A parameter of shape {tuple(self._param.shape)}"

    @property
    def updated(self) -> UpdateTime | None:
        return self._updated

    def check(
        self, optimizer_class: type[torch.optim.Optimizer], optimizer_kwargs: Mapping[str, Any]
    ) -> None:
        self._optimizer = optimizer_class([self._param], **optimizer_kwargs)

    def apply(
        self, optimizer_class: type[torch.optim.Optimizer], optimizer_kwargs: Mapping[str, Any]
    ) -> None:
        self._applied = optimizer_class, dict(optimizer_kwargs)
        # A hook is refused while a parameter is frozen, but stays while it is frozen later.
        required = self._param.requires_grad
        self._param.requires_grad_(True)
        self._param.register_post_accumulate_grad_hook(self._step)
        self._param.requires_grad_(required)
        set_owner(self._param, self)
        install_scaler_check()

    def before_step(self, optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> None:
        """Do nothing: the backward pass has left no gradient to step with."""

    def _check_not_reduced(self) -> None:
        """Refuse `DistributedDataParallel` around the parameter: ranks would drift apart.

        It is asked once, in the first pass: before, the parameter may not be where it is trained.
        """
        self._checked = True
        name = reduced_by_ddp(backward_pass_number()).get(id(self._param))
        if name is not None:
            raise RuntimeError(
                f"Parameter '{name}' of shape {tuple(self._param.shape)} should have no optimizer in the backward "
                "pass, or be left out of DistributedDataParallel: each rank updates it by itself, with the gradient "
                "of that rank alone."
            )

    def _step(self, param: Tensor) -> None:
        if not self._checked:
            self._check_not_reduced()
        if self._optimizer is not None:
            self._optimizer.step()
        self._updated = UpdateTime(scaled_steps.taken, backward_pass_number())
        param.grad = None
