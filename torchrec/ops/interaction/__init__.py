"""Interactions between the vectors of a sample."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrec.fx.proxies import is_proxy
from torchrec.ops.interaction import schema

__all__ = ["dot_interaction"]


def dot_interaction(dense_features: Tensor, sparse_features: Tensor) -> Tensor:
    r"""Join the dense vector of each sample with the dot products of all pairs of its vectors.

    With :math:`x_0` the dense vector and :math:`x_1 \dots x_F` the sparse ones, a row is

    .. math:: (x_0,\; x_0 \cdot x_1,\; \dots,\; x_0 \cdot x_F,\; x_1 \cdot x_2,\; \dots,\;
        x_{F-1} \cdot x_F)

    Only these pairs are computed, in float32 (float64 for float64), and nothing is copied in
    between. Differentiable, twice too.

    Args:
        dense_features: ``(B, D)``, floating.
        sparse_features: ``(B, F, D)``, floating. Of two dtypes the wider one counts.

    Returns:
        ``(B, D + F (F + 1) / 2)``.

    Raises:
        ValueError: the shapes are not these.

    Example:
        >>> import torch
        >>> dense = torch.tensor([[1.0, 2.0]])
        >>> sparse = torch.tensor([[[3.0, 4.0], [5.0, 6.0]]])
        >>> dot_interaction(dense, sparse)  # 1*3+2*4, 1*5+2*6, 3*5+4*6
        tensor([[ 1.,  2., 11., 17., 39.]])
    """
    output: Tensor
    if is_proxy(dense_features) or is_proxy(sparse_features):
        vectors = (
            _widened(dense_features, sparse_features),
            _widened(sparse_features, dense_features),
        )
        output = torch.ops.rowwise.dot_interaction(*vectors)  # TorchScript knows no `.default`
        return output
    _check(dense_features, sparse_features)
    if dense_features.dtype != sparse_features.dtype:
        dense_features, sparse_features = (
            _widened(dense_features, sparse_features),
            _widened(sparse_features, dense_features),
        )
    output = schema.dot_interaction(dense_features, sparse_features)
    return output


def _widened(tensor: Tensor, other: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, other.dtype))


torch.fx.wrap("_widened")  # a tracer knows no dtypes


def _check(dense: Tensor, sparse: Tensor) -> None:
    shape = sparse.shape
    if len(shape) == 3 and dense.shape == (shape[0], shape[2]):
        return
    if dense.dim() != 2:
        raise ValueError(
            f"`dense_features` should have shape (B, D). Received {tuple(dense.shape)}."
        )
    if sparse.dim() != 3 or sparse.size(0) != dense.size(0) or sparse.size(2) != dense.size(1):
        raise ValueError(
            f"`sparse_features` should have shape (B, F, D) with B={dense.size(0)} and "
            f"D={dense.size(1)}, as `dense_features`. Received {tuple(sparse.shape)}."
        )
