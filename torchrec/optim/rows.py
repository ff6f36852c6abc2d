"""Applies an update rule to a parameter: to all rows, or to those that a sparse gradient names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from torchrec.ops.embedding.updates import Hyper, RowSums, Rule


def as_rows(tensor: Tensor) -> Tensor:
    """View a tensor as ``(rows, dim)``: a vector is one row, further axes belong to the row."""
    return tensor.flatten(1) if tensor.dim() > 1 else tensor.reshape(1, tensor.numel())


def new_state(rule: Rule, name: str, param: Tensor, hyper: Hyper) -> Tensor:
    """Return the first value of a state: in the shape of ``param``, or ``(rows, 1)``."""
    state = rule.new_state(name, as_rows(param), hyper)
    return state if rule.state[name] else state.reshape(param.shape)


@torch.no_grad()
def apply_rule(
    rule: Rule,
    param: Tensor,
    grad: Tensor,
    state: Mapping[str, Tensor],
    step: int,
    hyper: Hyper,
    sums: RowSums | None = None,
) -> None:
    """Update ``param`` and ``state`` in place from one gradient.

    A sparse gradient updates the rows that it names, its duplicates summed first; all other rows
    keep weights and state, and weight decay and momentum do not act on them either, unless
    ``hyper.lazy`` is off: then it counts as the dense gradient that it stands for. Computes in
    float32, or in the type of the parameter where that is wider.

    Args:
        rule: what to do.
        param: the parameter.
        grad: its gradient, strided or sparse COO with one sparse dimension.
        state: name -> state, of the shapes of `new_state`.
        step: how often the parameter has been updated, this time included.
        hyper: the hyper-parameters.
        sums: adds up squares over rows whose columns are not all here. Default: they are.
    """
    if grad.is_sparse and grad.sparse_dim() != 1:
        raise ValueError(
            "A sparse gradient should have one sparse dimension, the rows. "
            f"Received {grad.sparse_dim()} for a parameter of shape {tuple(param.shape)}."
        )
    dtype = torch.promote_types(param.dtype, torch.float32)
    if grad.is_sparse and param.dim() > 1 and not rule.updates_all_rows(hyper):
        _apply_sparse(rule, param, grad.to(dtype).coalesce(), state, step, hyper, sums)
        return
    if grad.is_sparse:
        grad = grad.to(dtype).to_dense()
    weights, rows = as_rows(param).to(dtype), as_rows(grad).to(dtype)
    old = {name: as_rows(value) for name, value in state.items()}
    weights, new = _update(rule, weights, rows, old, step, hyper, sums)
    param.copy_(weights.reshape(param.shape))
    for name, value in new.items():
        state[name].copy_(value.reshape(state[name].shape))


def _apply_sparse(
    rule: Rule,
    param: Tensor,
    grad: Tensor,
    state: Mapping[str, Tensor],
    step: int,
    hyper: Hyper,
    sums: RowSums | None,
) -> None:
    """Gather the rows that a coalesced gradient names, update them, and put them back."""
    ids = grad.indices()[0]
    weights = as_rows(param.index_select(0, ids)).to(grad.dtype)
    old = {name: as_rows(value.index_select(0, ids)) for name, value in state.items()}
    weights, new = _update(rule, weights, as_rows(grad.values()), old, step, hyper, sums)
    param.index_copy_(0, ids, weights.to(param.dtype).reshape(len(ids), *param.shape[1:]))
    for name, value in new.items():
        state[name].index_copy_(0, ids, value.reshape(len(ids), *state[name].shape[1:]))


def _update(
    rule: Rule,
    weights: Tensor,
    grads: Tensor,
    state: Mapping[str, Tensor],
    step: int,
    hyper: Hyper,
    sums: RowSums | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    if sums is None or not rule.row_sums:
        return rule.update(weights, grads, state, step, hyper)
    return rule.update(weights, grads, state, step, hyper, sums)
