"""Gradients of layers that an optimizer applies a step later."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["LateGradients"]


class LateGradients:
    """Gradients of one step that wait for the next one, when they are what an optimizer steps by.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer, late, found = torch.optim.SGD([weight], lr=1.0), LateGradients(), []
        >>> for gradient in (1.0, 2.0, 4.0):
        ...     weight.grad = torch.tensor([gradient])
        ...     late.step(optimizer)
        ...     found.append(weight.item())
        >>> late.apply(optimizer)
        >>> [*found, weight.item()]
        [0.0, -1.0, -3.0, -7.0]
    """

    def __init__(self) -> None:
        self._waiting: dict[Tensor, Tensor] = {}

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step by the gradients of the step before, and keep those that there are now.

        Args:
            optimizer: whose parameters they are of; without gradients that wait, it does not step.
        """
        waiting = self._waiting
        # Copied: those of `DistributedDataParallel` are parts of buckets, which the next backward pass writes to.
        self._waiting = {
            param: param.grad.clone()
            for group in optimizer.param_groups
            for param in group["params"]
            if param.grad is not None
        }
        self._step_by(optimizer, waiting)

    def apply(self, optimizer: torch.optim.Optimizer) -> None:
        """Step by the gradients that wait, if any.

        Args:
            optimizer: see `step`.
        """
        waiting, self._waiting = self._waiting, {}
        self._step_by(optimizer, waiting)

    def forget(self) -> None:
        """Let go of the gradients that wait."""
        self._waiting = {}

    @staticmethod
    def _step_by(optimizer: torch.optim.Optimizer, gradients: dict[Tensor, Tensor]) -> None:
        if not gradients:
            return
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = gradients.get(param)
        optimizer.step()
