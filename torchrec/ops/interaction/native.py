"""Interactions on the native library: addresses and sizes. Tables of float64 take plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrec.ops._library import native
from torchrec.ops.interaction import reference

_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

_lib: Any = native


def dot_interaction(dense: Tensor, sparse: Tensor) -> Tensor:
    """See ``reference.dot_interaction``."""
    code = _CODES.get(dense.dtype)
    if code is None:
        return reference.dot_interaction(dense, sparse)
    reference.require_vectors(dense, sparse)
    dense, sparse = dense.contiguous(), sparse.contiguous()
    samples, features, dim = sparse.shape
    output = dense.new_empty((samples, dim + features * (features + 1) // 2))
    _lib.dot_interaction(
        dense.data_ptr(),
        sparse.data_ptr(),
        samples,
        features,
        dim,
        code,
        output.data_ptr(),
        torch.get_num_threads(),
    )
    return output


def dot_interaction_grad(grad: Tensor, dense: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
    """See ``reference.dot_interaction_grad``."""
    code = _CODES.get(dense.dtype)
    if code is None:
        return reference.dot_interaction_grad(grad, dense, sparse)
    reference.require_vectors(dense, sparse)
    samples, features, dim = sparse.shape
    width = dim + features * (features + 1) // 2
    if grad.shape != (samples, width) or grad.dtype is not dense.dtype:
        raise ValueError(
            f"`grad` should be [{samples}, {width}] of {dense.dtype}, as the output. "
            f"Received {list(grad.shape)} of {grad.dtype}."
        )
    grad, dense, sparse = grad.contiguous(), dense.contiguous(), sparse.contiguous()
    grad_dense, grad_sparse = dense.new_empty(dense.shape), sparse.new_empty(sparse.shape)
    _lib.dot_interaction_grad(
        dense.data_ptr(),
        sparse.data_ptr(),
        samples,
        features,
        dim,
        code,
        grad.data_ptr(),
        grad_dense.data_ptr(),
        grad_sparse.data_ptr(),
        torch.get_num_threads(),
    )
    return grad_dense, grad_sparse
