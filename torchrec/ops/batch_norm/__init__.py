"""Batch normalisation whose results do not depend on the number of threads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import functional

from torchrec.ops._library import is_observed
from torchrec.threads import using_threads

__all__ = ["batch_norm"]


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    r"""Normalise each column by its mean and variance, those of the batch while training.

    .. math:: y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    PyTorch sums the rows that each thread has by themselves, so that the last bits of the mean tell
    how many there were; of all steps of training in float32 on a CPU it is the only one. Here one thread
    does it, which is as quick: it waits for memory.

    Args:
        input: ``(B, D)``, floating.
        running_mean: ``(D,)``, moved towards that of the batch while training; None: not kept.
        running_var: likewise.
        weight: gamma, ``(D,)``.
        bias: beta, ``(D,)``.
        training: whether to go by the batch, of two rows at least.
        momentum: how far the running values move.
        eps: added to the variance.

    Returns:
        ``(B, D)``.

    Example:
        >>> one, none = torch.ones(1), torch.zeros(1)
        >>> batch_norm(torch.tensor([[1.0], [3.0]]), None, None, one, none, True, 0.1, 1e-9)
        tensor([[-1.],
                [ 1.]])
    """
    if (
        training
        and not is_compiling()
        and type(input) is Tensor
        and input.device.type == "cpu"
        and not is_observed()
        and torch.get_num_threads() > 1
    ):
        output: Tensor = _BatchNorm.apply(  # type: ignore[no-untyped-call]
            input, weight, bias, running_mean, running_var, momentum, eps
        )
        return output
    return functional.batch_norm(
        input, running_mean, running_var, weight, bias, training, momentum, eps
    )


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        with using_threads(1):
            output, mean, scale = torch.native_batch_norm(
                input, weight, bias, running_mean, running_var, True, momentum, eps
            )
        ctx.save_for_backward(input, weight, bias, mean, scale)
        ctx.eps = eps
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, bias, mean, scale = ctx.saved_tensors
        if torch.is_grad_enabled():  # second derivatives are asked for
            # Of views: one may be computed from another, whose gradient is not to be in its own.
            input, weight, bias = (each.view_as(each) for each in (input, weight, bias))
            output = functional.batch_norm(input, None, None, weight, bias, True, 0.0, ctx.eps)
            wanted = [each for each in (input, weight, bias) if each.requires_grad]
            grads = iter(torch.autograd.grad(output, wanted, grad, create_graph=True))
            return *(
                next(grads) if each.requires_grad else None for each in (input, weight, bias)
            ), *[None] * 4
        with using_threads(1):
            grads = torch.ops.aten.native_batch_norm_backward(
                grad,
                input,
                weight,
                None,
                None,
                mean,
                scale,
                True,
                ctx.eps,
                ctx.needs_input_grad[:3],
            )
        return *grads, *[None] * 4
