"""Interactions in plain PyTorch: the specification, right on every device, and differentiable twice."""

from __future__ import annotations

import torch
from torch import Tensor


def require_vectors(dense: Tensor, sparse: Tensor) -> None:
    """Refuse what is no batch of vectors of one size."""
    if (
        dense.dim() != 2
        or sparse.dim() != 3
        or dense.shape != (sparse.shape[0], sparse.shape[2])
        or sparse.dtype is not dense.dtype
    ):
        raise ValueError(
            "`dense` should be [B, D] and `sparse` [B, F, D], of one dtype. Received "
            f"{list(dense.shape)} of {dense.dtype} and {list(sparse.shape)} of {sparse.dtype}."
        )


def dot_interaction(dense: Tensor, sparse: Tensor) -> Tensor:
    """Join ``dense`` with the dot products of all pairs of vectors of each sample."""
    require_vectors(dense, sparse)
    vectors = torch.cat([dense.unsqueeze(1), sparse], 1)
    first, second = torch.triu_indices(
        vectors.size(1), vectors.size(1), offset=1, device=dense.device
    )
    squares = torch.bmm(vectors, vectors.transpose(1, 2))
    return torch.cat([dense, squares[:, first, second]], 1)


def dot_interaction_grad(grad: Tensor, dense: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of ``dense`` and ``sparse``, given that of the output."""
    vectors = torch.cat([dense.unsqueeze(1), sparse], 1)
    count, dim = vectors.size(1), vectors.size(2)
    first, second = torch.triu_indices(count, count, offset=1, device=dense.device)
    pairs = first * count + second
    factors = grad.new_zeros(grad.size(0), count * count).index_add(1, pairs, grad[:, dim:])
    factors = factors.view(-1, count, count)
    each = torch.bmm(factors + factors.transpose(1, 2), vectors)
    return grad[:, :dim] + each[:, 0], each[:, 1:].contiguous()
