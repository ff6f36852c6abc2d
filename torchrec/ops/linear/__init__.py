"""Linear maps on the CPU by whichever of PyTorch's two libraries is faster.

PyTorch's own ``linear`` multiplies float32 matrices with MKL, which takes processors that are not
Intel's for older ones than they are; oneDNN, which PyTorch has on board as well, looks at what they
can do. On an AVX-512 processor of AMD it is 2.1 to 2.4 times as fast on the matrices of a DLRM.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import functional

from torchrec.fx.proxies import is_proxy
from torchrec.ops._library import is_observed, shortcut
from torchrec.ops._private import linear_pointwise, linear_pointwise_plus
from torchrec.ops.linear import native

__all__ = [
    "can_use_onednn",
    "is_quicker_by_onednn",
    "linear",
    "onednn_linear",
    "product",
    "weight_grad",
]

# Below these, setting oneDNN up costs more than it saves; so do matrices that are hardly more than
# vectors.
_LEAST_PRODUCTS = 1 << 22
_LEAST_SIDE = 32


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    r"""Apply a linear map, and a ReLU if asked to.

    .. math:: y = W x + b \quad\text{or}\quad y = \max(W x + b, 0)

    Args:
        input: ``(*, I)``, floating.
        weight: ``(O, I)``.
        bias: ``(O,)``, or None.
        relu: whether to apply the ReLU. Default False.

    Returns:
        ``(*, O)``.

    Example:
        >>> import torch
        >>> linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0], [1.0, -1.0]]), relu=True)
        tensor([[3., 0.]])
    """
    if can_use_onednn(input, weight, bias):
        if torch.is_grad_enabled() and (
            input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
        ):
            output: Tensor = _Linear.apply(input, weight, bias, relu)  # type: ignore[no-untyped-call]
            return output
        return onednn_linear(input, weight, bias, relu)
    output = functional.linear(input, weight, bias)
    return torch.relu_(output) if relu else output


def is_quicker_by_onednn(rows: int, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN is quicker for a linear map of so many rows, if it can be called at all.

    Args:
        rows: of the input.
        weight: ``(O, I)``.
        bias: ``(O,)``, or None.
    """
    return (
        rows * weight.numel() >= _LEAST_PRODUCTS
        and weight.size(0) >= _LEAST_SIDE
        and weight.device.type == "cpu"
        and weight.dtype is torch.float32
        and (bias is None or bias.dtype is torch.float32)
    )


def can_use_onednn(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN can be called past everything that may want to know of it, and is quicker.

    Args:
        input: ``(B, I)``.
        weight: ``(O, I)``.
        bias: ``(O,)``, or None.
    """
    return (
        not is_compiling()
        and type(input) is Tensor
        and not is_proxy(weight)
        and input.dim() == 2
        and is_quicker_by_onednn(input.size(0), weight, bias)
        and input.device.type == "cpu"
        and input.dtype is torch.float32
        and weight.size(1) == input.size(1)
        and _available()
        and not is_observed()
        and not torch.is_autocast_enabled("cpu")
    )


def _available() -> bool:
    return bool(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)


def onednn_linear(input: Tensor, weight: Tensor, bias: Tensor | None, relu: bool = False) -> Tensor:
    """Return what `linear` does, by oneDNN and without a gradient.

    Args:
        input: ``(B, I)``.
        weight: ``(O, I)``.
        bias: ``(O,)``, or None.
        relu: whether to apply the ReLU. Default False.
    """
    return linear_pointwise(_dense(input), _dense(weight), bias, "relu" if relu else "none")


def _dense(matrix: Tensor) -> Tensor:
    """Return the matrix without gaps between its rows or columns.

    For the transpose of some columns of a wider matrix, oneDNN has nothing but its reference
    implementation, which takes a thousand times as long.
    """
    dense = matrix.is_contiguous() or matrix.t().is_contiguous()
    return matrix if dense else matrix.contiguous()


def product(left: Tensor, right: Tensor, addend: Tensor | None = None) -> Tensor:
    """Return ``left @ right.T``, and the addend more where there is one.

    Args:
        left: ``(M, K)``, float32.
        right: ``(N, K)``, float32.
        addend: ``(M, N)``, float32, contiguous, or None.
    """
    sides = left.size(0), right.size(0), left.size(1)
    if min(sides) < _LEAST_SIDE:
        result = left @ right.t()
        return result if addend is None else result.add_(addend)
    if addend is None:
        return onednn_linear(left, right, None, relu=False)
    return linear_pointwise_plus(_dense(left), _dense(right), addend)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        output = onednn_linear(input, weight, bias, relu)
        ctx.save_for_backward(input, weight, output if relu else None)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, output = ctx.saved_tensors
        needs = ctx.needs_input_grad
        turned = None
        if output is not None:
            if needs[1] and _wants_turned(grad, input) and not torch.is_grad_enabled():
                grad, turned = _relu_grad(grad, output)
            else:
                grad = torch.ops.aten.threshold_backward(grad, output, 0)
        grad_bias = grad.sum(0) if needs[2] else None
        if torch.is_grad_enabled():  # second derivatives are asked for
            return grad @ weight, grad.t() @ input, grad_bias, None
        return (
            product(grad, weight.t()) if needs[0] else None,
            weight_grad(grad, input, turned) if needs[1] else None,
            grad_bias,
            None,
        )


def _wants_turned(grad: Tensor, input: Tensor) -> bool:
    """Whether oneDNN is to multiply the transpose of the gradient, of which it would make a copy."""
    sides = *grad.shape, input.size(1)
    return min(sides) >= _LEAST_SIDE and not _is_tall(grad, input)


def _is_tall(grad: Tensor, input: Tensor) -> bool:
    return grad.size(1) > 4 * input.size(1) >= 4 * _LEAST_SIDE


def weight_grad(grad: Tensor, input: Tensor, turned: Tensor | None = None) -> Tensor:
    """Return ``grad.T @ input``; tall ones are quicker the other way round.

    Args:
        grad: ``(B, O)``.
        input: ``(B, I)``.
        turned: ``grad.T``, contiguous, where it is there already.
    """
    if _is_tall(grad, input):
        tall: Tensor = _transposed(product(_transposed(input), grad.t()))
        return tall
    if turned is None and _wants_turned(grad, input):
        turned = _transposed(grad)
    return product(grad.t() if turned is None else turned, input.t())


def _compose_transposed(matrix: Tensor) -> Tensor:
    return matrix.t().contiguous()


def _compose_relu_grad(grad: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    masked = torch.ops.aten.threshold_backward(grad, output, 0)
    return masked, masked.t().contiguous()


# PyTorch turns a matrix over on one thread, which takes a third as long as the product that needs it.
_transposed = shortcut(native.transposed, composed=_compose_transposed, tensors=(0,))
_relu_grad = shortcut(native.relu_grad, composed=_compose_relu_grad, tensors=(0, 1))
