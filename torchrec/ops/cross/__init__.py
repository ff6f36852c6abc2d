"""Cross layers, with backward passes that move less memory than PyTorch's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from torchrec.ops._library import is_observed, is_transformed, shortcut
from torchrec.ops._recycled import recycled
from torchrec.ops.linear import (
    can_use_onednn,
    is_quicker_by_onednn,
    linear,
    native,
    onednn_linear,
    product,
    weight_grad,
)

__all__ = ["cross", "cross_layers", "side_by_side"]

_PART, _LEAST_ROWS = 1 << 20, 64  # numbers, and samples where these are wide

# The linear maps of a layer, one behind the other: weights (O, I), and biases (O,) where there are some.
Layer = Sequence[tuple[Tensor, Tensor | None]]


def side_by_side(dense_features: Tensor, sparse_features: Tensor) -> Tensor:
    """Return all vectors of a sample one after another, the dense one first: what a cross network crosses.

    Args:
        dense_features: ``(B, D)``.
        sparse_features: ``(B, F, D)``.

    Returns:
        ``(B, D + F D)``.

    Example:
        >>> import torch
        >>> side_by_side(torch.tensor([[1.0, 2.0]]), torch.tensor([[[3.0, 4.0], [5.0, 6.0]]]))
        tensor([[1., 2., 3., 4., 5., 6.]])
    """
    vectors = sparse_features.flatten(1)
    if (
        not is_compiling()
        and type(dense_features) is type(vectors) is Tensor
        and dense_features.is_cpu
        and vectors.is_cpu
        and dense_features.dtype is vectors.dtype
        and not is_observed()
        and not is_transformed()
    ):
        output: Tensor = _SideBySide.apply(dense_features, vectors)  # type: ignore[no-untyped-call]
        return output
    return torch.cat([dense_features, vectors], dim=1)


class _SideBySide(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *columns: Tensor) -> Tensor:
        ctx.sizes = [part.size(1) for part in columns]
        output = recycled((columns[0].size(0), sum(ctx.sizes)), columns[0].dtype)
        return torch.cat(columns, dim=1, out=output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = grad.split(ctx.sizes, dim=1)
        return parts


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


def cross_layers(input: Tensor, layers: Sequence[Layer]) -> Tensor:
    r"""Cross features through several layers, whose factors are linear maps of what comes into the layer.

    .. math:: x_{l+1} = x_l + x_0 * f_l(x_l)

    Output and gradients are those of `cross` and ``linear``. A layer's gradients of :math:`x_0` and of the factors are
    made in one pass over memory, which adds up on the way what comes from the layers above.

    Args:
        input: :math:`x_0`, ``(*, N)``, floating.
        layers: the linear maps of each.

    Returns:
        A tensor of the same shape.

    Example:
        >>> import torch
        >>> swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> cross_layers(torch.tensor([[2.0, 3.0]]), [[(swap, torch.ones(2))]])  # 2 * (3 + 1) + 2, 3 * (2 + 1) + 3
        tensor([[10., 12.]])
    """
    if _is_fused(input, layers):
        parameters = [tensor for layer in layers for pair in layer for tensor in pair]
        output: Tensor = _CrossLayers.apply(len(layers[0]), input, *parameters)  # type: ignore[no-untyped-call]
        return output
    x = input
    for layer in layers:
        factors = x
        for weight, bias in layer:
            factors = linear(factors, weight, bias)
        x = cross(x, input, factors)
    return x


def _is_fused(input: Tensor, layers: Sequence[Layer]) -> bool:
    """Whether all products are for oneDNN, and the input gets a gradient."""
    return (
        bool(layers)
        and torch.is_grad_enabled()
        and type(input) is Tensor
        and input.requires_grad
        and can_use_onednn(input, *layers[0][0])
        and not is_transformed()
        and all(
            len(layer) == len(layers[0])
            and _fit(input.size(1), layer)
            and all(is_quicker_by_onednn(input.size(0), *pair) for pair in layer)
            for layer in layers
        )
    )


def _fit(width: int, layer: Layer) -> bool:
    """Whether the maps of a layer follow one another, from so many numbers to as many."""
    sizes = [width, *(weight.size(0) for weight, _ in layer)]
    return sizes[-1] == width and sizes[:-1] == [weight.size(1) for weight, _ in layer]


def _layers(maps: int, parameters: Sequence[Any]) -> list[list[tuple[Any, Any]]]:
    """Return pairs of weight and bias, so many a layer, of all of them in turn."""
    pairs = list(zip(parameters[::2], parameters[1::2], strict=True))
    return [pairs[i : i + maps] for i in range(0, len(pairs), maps)]


class _CrossLayers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: int, input: Tensor, *parameters: Tensor | None) -> Tensor:
        x, sizes = input, _part_sizes(input)
        inputs = []  # of each map, and behind those of a layer its factors, in parts
        for layer in _layers(maps, parameters):
            y, outer = x, layer[-1]
            for weight, bias in layer[:-1]:
                inputs.append(y)
                y = onednn_linear(y, weight, bias)
            inputs.append(y)
            output = recycled(input.shape)
            for of_x, of_input, of_y, of_output in zip(
                *(tensor.split(sizes) for tensor in (x, input, y, output)), strict=True
            ):
                factors = onednn_linear(of_y, *outer)
                torch.addcmul(of_x, of_input, factors, out=of_output)
                inputs.append(factors)
            x = output
        ctx.maps, ctx.sizes, ctx.number = maps, sizes, len(parameters)
        ctx.save_for_backward(input, *parameters, *inputs)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, *saved = ctx.saved_tensors
        parameters, inputs = saved[: ctx.number], saved[ctx.number :]
        layers, needs = _layers(ctx.maps, parameters), _layers(ctx.maps, ctx.needs_input_grad[2:])
        if torch.is_grad_enabled():  # second derivatives are asked for
            return None, *_grads(input, layers, ctx.needs_input_grad[1:], grad)
        of_parameters: list[Tensor | None] = []  # the last first
        grads = list(grad.contiguous().split(ctx.sizes))
        del grad
        total = None
        for number in reversed(range(len(layers))):
            of_layer = inputs[number * (ctx.maps + len(ctx.sizes)) :][: ctx.maps + len(ctx.sizes)]
            factors = of_layer[ctx.maps :]
            own, total = _cross_grad(grads, input, factors, total, number == 0)
            for at in reversed(range(ctx.maps)):
                weight, (of_weight, of_bias) = layers[number][at][0], needs[number][at]
                of_parameters.append(own.sum(0) if of_bias else None)
                of_parameters.append(weight_grad(own, of_layer[at]) if of_weight else None)
                if at:
                    own = product(own, weight.t())
                elif number:
                    for i, part in enumerate(
                        own.split(ctx.sizes)
                    ):  # the next has the memory of this one
                        grads[i] = product(part, weight.t(), grads[i])
                else:  # the input comes into the first layer, and has got what arrives there
                    for part, of_total in zip(
                        own.split(ctx.sizes), total.split(ctx.sizes), strict=True
                    ):
                        of_total.add_(product(part, weight.t()))
        return None, total, *of_parameters[::-1]


def _part_sizes(input: Tensor) -> list[int]:
    """Return how many samples each part has of what oneDNN makes as wide as the input.

    It takes memory from the C library, which has the system clear that of larger results each time.
    """
    samples = input.size(0)
    count = max(1, min(-(-input.numel() // _PART), samples // _LEAST_ROWS))
    return [samples // count + (i < samples % count) for i in range(count)]


def _grads(
    input: Tensor, layers: Sequence[Layer], needs: Sequence[bool], grad: Tensor
) -> Iterable[Tensor | None]:
    """Return the gradients of the input and of all parameters that need one, differentiable themselves.

    They are of views made here: a parameter may be that of two layers, or be computed from another one or from the
    input, and the gradient of each place must not have those of the others in it.
    """
    input = input.view_as(input)
    layers = [
        [
            (weight.view_as(weight), None if bias is None else bias.view_as(bias))
            for weight, bias in layer
        ]
        for layer in layers
    ]
    x = input
    for layer in layers:
        factors = x
        for weight, bias in layer:
            factors = torch.nn.functional.linear(factors, weight, bias)
        x = torch.addcmul(x, input, factors)
    tensors = [input, *(tensor for layer in layers for pair in layer for tensor in pair)]
    asked = [t for t, need in zip(tensors, needs, strict=True) if need and t is not None]
    found = iter(torch.autograd.grad(x, asked, grad, create_graph=True))
    return [next(found) if need else None for need in needs]


def _compose_cross_grad(
    grads: Sequence[Tensor],
    input: Tensor,
    factors: Sequence[Tensor],
    total: Tensor | None,
    is_first: bool,
) -> tuple[Tensor, Tensor]:
    arrived = torch.cat(list(grads))
    if is_first:
        total = arrived if total is None else total + arrived
    own = arrived * torch.cat(list(factors))
    return arrived * input, own if total is None else total + own


_cross_grad = shortcut(
    native.cross_grad, composed=_compose_cross_grad, tensors=(1, 3), lists=(0, 2)
)
