"""The permute operators in the dispatcher: schemas, shapes, gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrec.ops._library import Gradient, define
from torchrec.ops.jagged.reference import source_rows
from torchrec.ops.permute import native, reference


def _fake_permute(
    lengths: Tensor,
    values: Tensor,
    weights: Tensor | None,
    strides: list[int],
    order: list[int],
    total: int,
) -> tuple[Tensor, Tensor, Tensor]:
    reference.check_order(order, len(strides))
    bags = sum(strides[i] for i in order)
    out = values.new_empty(0) if weights is None else weights.new_empty((total, *weights.shape[1:]))
    return values.new_empty((total, *values.shape[1:])), out, lengths.new_empty(bags)


def _fake_regroup(inputs: list[Tensor], pieces: list[int], counts: list[int]) -> list[Tensor]:
    outputs = []
    at = 2
    for count in counts:
        columns = sum(pieces[at : at + 3 * count : 3])
        at += 3 * count
        outputs.append(inputs[0].new_empty((inputs[0].size(0), columns)))
    return outputs


def _save_permute(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    lengths, values, weights, strides, order, total = inputs
    ctx.save_for_backward(lengths)
    ctx.strides, ctx.order, ctx.total = strides, order, total
    ctx.shapes = values.shape, None if weights is None else weights.shape
    ctx.mark_non_differentiable(*(t for t in output if not t.is_floating_point()))


def _permute_backward(
    ctx: Any, grad_values: Tensor | None, grad_weights: Tensor | None, _: Tensor | None
) -> tuple[None, Tensor | None, Tensor | None, None, None, None]:
    (lengths,) = ctx.saved_tensors
    bags = reference.bags_of_keys(ctx.strides, ctx.order, lengths.device)
    index, _taken = source_rows(lengths, bags, ctx.total)

    def back(grad: Tensor | None, shape: torch.Size | None, needed: bool) -> Tensor | None:
        if grad is None or shape is None or not needed:
            return None
        return grad.new_zeros(shape).index_add(0, index, grad)

    needs = ctx.needs_input_grad
    return (
        None,
        back(grad_values, ctx.shapes[0], needs[1]),
        back(grad_weights, ctx.shapes[1], needs[2]),
        None,
        None,
        None,
    )


def _save_regroup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    tensors, pieces, counts = inputs
    ctx.columns = [tensor.size(1) for tensor in tensors]
    ctx.pieces, ctx.counts = pieces, counts


def _regroup_backward(ctx: Any, grads: list[Tensor]) -> tuple[list[Tensor], None, None]:
    """Regroup the gradients the other way round; a column read more than once gets the sum."""
    used: list[list[tuple[int, int, int, int]]] = [[] for _ in ctx.columns]
    piece = 0
    for output, count in enumerate(ctx.counts):
        at = 0
        for _ in range(count):
            source, start, width = ctx.pieces[3 * piece : 3 * piece + 3]
            piece += 1
            if source >= 0:
                used[source].append((start, width, output, at))
            at += width
    pieces: list[int] = []
    counts: list[int] = []
    again: list[tuple[int, int, int, int, int]] = []
    for source, columns in enumerate(ctx.columns):
        before, end = len(pieces), 0
        for start, width, output, at in sorted(used[source]):
            if start < end:
                again.append((source, start, width, output, at))
                continue
            if start > end:
                pieces += [-1, 0, start - end]
            pieces += [output, at, width]
            end = start + width
        if end < columns:
            pieces += [-1, 0, columns - end]
        counts.append((len(pieces) - before) // 3)
    back = regroup(grads, pieces, counts)
    for source, start, width, output, at in again:
        back[source].narrow(1, start, width).add_(grads[output].narrow(1, at, width))
    return back, None, None


permute_jagged: Any = define(
    "permute_jagged(Tensor lengths, Tensor values, Tensor? weights, SymInt[] strides, int[] order,"
    " SymInt total) -> (Tensor, Tensor, Tensor)",
    reference=reference.permute_jagged,
    fake=_fake_permute,
    native_kernel=native.permute_jagged,
    gradient=Gradient(_save_permute, _permute_backward),
)
regroup: Any = define(
    "regroup(Tensor[] inputs, SymInt[] pieces, int[] counts) -> Tensor[]",
    reference=reference.regroup,
    fake=_fake_regroup,
    native_kernel=native.regroup,
    gradient=Gradient(_save_regroup, _regroup_backward),
)
