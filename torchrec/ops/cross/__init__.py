"""The element-wise part of a cross layer, with a backward pass that moves less memory than PyTorch's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from torchrec.ops._library import is_observed, is_transformed

__all__ = ["cross"]


def cross(x: Tensor, input: Tensor, factors: Tensor) -> Tensor:
    r"""Multiply the input of a cross network with the factors of a layer, and add what came into the layer.

    .. math:: x_{l+1} = x_l + x_0 * f_l

    This is ``torch.addcmul``, to the last bit of output and gradients. PyTorch's gradient multiplies
    each side with the number 1 first, which costs as much as the rest: these tensors seldom fit a cache.

    Args:
        x: :math:`x_l`, floating.
        input: :math:`x_0`, of the same shape.
        factors: :math:`f_l`, of the same shape.

    Returns:
        A tensor of the same shape.

    Example:
        >>> import torch
        >>> cross(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), torch.tensor([5.0, 6.0]))
        tensor([16., 26.])
    """
    if _is_plain(x, input, factors):
        output: Tensor = _Cross.apply(x, input, factors)  # type: ignore[no-untyped-call]
        return output
    return torch.addcmul(x, input, factors)


def _is_plain(x: Tensor, input: Tensor, factors: Tensor) -> bool:
    """Whether eager PyTorch computes this from tensors as they are, and a gradient is asked for."""
    return (
        torch.is_grad_enabled()
        and not is_compiling()
        and type(x) is type(input) is type(factors) is Tensor
        and (x.requires_grad or input.requires_grad or factors.requires_grad)
        and x.dtype is input.dtype is factors.dtype
        and x.shape == input.shape == factors.shape
        and not is_observed()
        and not is_transformed()
    )


class _Cross(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, input: Tensor, factors: Tensor) -> Tensor:
        ctx.save_for_backward(input, factors)
        return torch.addcmul(x, input, factors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, factors = ctx.saved_tensors
        of_x, of_input, of_factors = ctx.needs_input_grad
        return (
            grad if of_x else None,
            grad * factors if of_input else None,
            grad * input if of_factors else None,
        )
