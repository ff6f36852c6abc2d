"""Turned matrices, and the gradients of cross layers, on the native library: addresses and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchrec.ops._library import native
from torchrec.ops._recycled import recycled

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
    grads: Sequence[Tensor],
    input: Tensor,
    factors: Sequence[Tensor],
    total: Tensor | None,
    is_first: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradient of the factors of a cross layer of float32, and of the input so far: ``total``, written over.

    ``grads``, of what comes out of the layer, and ``factors`` come in parts, some samples each.
    """
    _require_floats("input", input)
    rows = [part.size(0) for part in factors]
    if sum(rows) != input.size(0):
        raise ValueError(
            f"`factors` should be {input.size(0)} samples, as `input`. Received {rows}."
        )
    for name, parts in (("factors", factors), ("grads", grads)):
        for part, count in zip(parts, rows, strict=True):
            _require_shape(name, part, (count, input.size(1)))
    if total is not None:
        _require_shape("total", total, input.shape)
    if total is not None and not total.is_contiguous():
        raise ValueError("`total` should be contiguous. Received one that is not.")
    input = input.contiguous()
    product = recycled(input.shape)
    is_last = total is None
    total = recycled(input.shape) if total is None else total
    whole = [tensor.data_ptr() for tensor in (input, product, total)]
    for grad, part in zip(grads, factors, strict=True):
        grad, part = grad.contiguous(), part.contiguous()
        of_input, of_product, of_total = whole
        _lib.cross_grad(
            grad.data_ptr(),
            of_input,
            part.data_ptr(),
            of_product,
            of_total,
            part.numel(),
            is_last,
            is_first,
            torch.get_num_threads(),
        )
        whole = [address + part.nbytes for address in whole]
    return product, total


def _require_shape(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    _require_floats(name, tensor)
    if tensor.shape != tuple(shape):
        raise ValueError(
            f"`{name}` should be {list(shape)}, as of `input`. Received {list(tensor.shape)}."
        )
