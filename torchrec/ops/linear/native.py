"""Turned matrices, and the gradients of cross layers, on the native library: addresses and sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrec.ops._library import native

_lib: Any = native


def _require_floats(name: str, matrix: Tensor) -> None:
    if matrix.dim() != 2 or matrix.dtype is not torch.float32:
        raise ValueError(
            f"`{name}` should be two-dimensional and float32. "
            f"Received {list(matrix.shape)} of {matrix.dtype}."
        )


def transposed(matrix: Tensor) -> Tensor:
    """Return the transpose of a matrix of float32, contiguous."""
    _require_floats("matrix", matrix)
    matrix = matrix.contiguous()
    rows, columns = matrix.shape
    turned = matrix.new_empty((columns, rows))
    threads = torch.get_num_threads()
    _lib.transpose(matrix.data_ptr(), rows, columns, turned.data_ptr(), threads)
    return turned


def relu_grad(grad: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient in front of a ReLU of float32 with this output, and its transpose."""
    _require_floats("grad", grad)
    _require_floats("output", output)
    if grad.shape != output.shape:
        raise ValueError(
            f"`grad` should be {list(output.shape)}, as `output`. Received {list(grad.shape)}."
        )
    grad, output = grad.contiguous(), output.contiguous()
    rows, columns = grad.shape
    masked, turned = grad.new_empty((rows, columns)), grad.new_empty((columns, rows))
    _lib.relu_grad(
        grad.data_ptr(),
        output.data_ptr(),
        rows,
        columns,
        masked.data_ptr(),
        turned.data_ptr(),
        torch.get_num_threads(),
    )
    return masked, turned


def cross_grad(
    grad: Tensor,
    more: Tensor | None,
    input: Tensor,
    factors: Tensor,
    total: Tensor | None,
    is_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of a cross layer of float32, and of the input so far: that is ``total``, written over."""
    for name, tensor in (("grad", grad), ("more", more), ("factors", factors), ("total", total)):
        if tensor is not None:
            _require_floats(name, tensor)
            if tensor.shape != input.shape:
                raise ValueError(
                    f"`{name}` should be {list(input.shape)}, as `input`. Received {list(tensor.shape)}."
                )
    _require_floats("input", input)
    if total is not None and not total.is_contiguous():
        raise ValueError("`total` should be contiguous. Received one that is not.")
    grad, input, factors = grad.contiguous(), input.contiguous(), factors.contiguous()
    more = None if more is None else more.contiguous()
    arrived = grad if more is None else torch.empty_like(grad)
    product = torch.empty_like(grad)
    is_last = total is None
    total = torch.empty_like(grad) if total is None else total
    _lib.cross_grad(
        grad.data_ptr(),
        0 if more is None else more.data_ptr(),
        input.data_ptr(),
        factors.data_ptr(),
        arrived.data_ptr(),
        product.data_ptr(),
        total.data_ptr(),
        grad.numel(),
        is_last,
        is_first,
        torch.get_num_threads(),
    )
    return arrived, product, total
