"""The interaction operators in the dispatcher: schemas, shapes, gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrec.ops._library import Gradient, define
from torchrec.ops.interaction import native, reference


def _fake(dense: Tensor, sparse: Tensor) -> Tensor:
    reference.require_vectors(dense, sparse)
    samples, features, dim = sparse.shape
    return dense.new_empty((samples, dim + features * (features + 1) // 2))


def _fake_grad(grad: Tensor, dense: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
    return dense.new_empty(dense.shape), sparse.new_empty(sparse.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    dense, sparse = ctx.saved_tensors
    if torch.is_grad_enabled():  # second derivatives are asked for
        return reference.dot_interaction_grad(grad, dense, sparse)
    both: tuple[Tensor, Tensor] = dot_interaction_grad(grad, dense, sparse)
    return both


dot_interaction: Any = define(
    "dot_interaction(Tensor dense, Tensor sparse) -> Tensor",
    reference=reference.dot_interaction,
    fake=_fake,
    native_kernel=native.dot_interaction,
    gradient=Gradient(_save, _backward),
)
dot_interaction_grad: Any = define(
    "dot_interaction_grad(Tensor grad, Tensor dense, Tensor sparse) -> (Tensor, Tensor)",
    reference=reference.dot_interaction_grad,
    fake=_fake_grad,
    native_kernel=native.dot_interaction_grad,
)
