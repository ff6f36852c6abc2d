"""The jagged operators in the dispatcher: schemas, shapes, gradients."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torchrec.ops._library import Gradient, define, shortcut
from torchrec.ops._memory import require_integers
from torchrec.ops.jagged import native, reference


def _fake_offsets(lengths: Tensor) -> Tensor:
    require_integers("lengths", lengths)
    return lengths.new_empty(lengths.size(0) + 1)


def _fake_select(
    values: Tensor, lengths: Tensor, bags: Tensor, total: int
) -> tuple[Tensor, Tensor]:
    return values.new_empty((total, *values.shape[1:])), lengths.new_empty(bags.size(0))


def _fake_to_padded(values: Tensor, offsets: Tensor, width: int, padding: float) -> Tensor:
    return values.new_empty((offsets.size(0) - 1, width, *values.shape[1:]))


def _fake_from_padded(padded: Tensor, offsets: Tensor, total: int) -> Tensor:
    return padded.new_empty((total, *padded.shape[2:]))


def _save_select(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    values, lengths, bags, _ = inputs
    ctx.save_for_backward(lengths, bags)
    ctx.shape = values.shape
    ctx.mark_non_differentiable(output[1])


def _select_backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, None, None, None]:
    lengths, bags = ctx.saved_tensors
    rows, _taken = reference.source_rows(lengths, bags, grad.size(0))
    return grad.new_zeros(ctx.shape).index_add(0, rows, grad), None, None, None


def _save_to_padded(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, offsets, _, _ = inputs
    ctx.save_for_backward(offsets)
    ctx.total = values.size(0)


def _to_padded_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    (offsets,) = ctx.saved_tensors
    return padded_to_jagged(grad, offsets, ctx.total), None, None, None


def _save_from_padded(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    padded, offsets, _ = inputs
    ctx.save_for_backward(offsets)
    ctx.width = padded.size(1)


def _from_padded_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (offsets,) = ctx.saved_tensors
    return jagged_to_padded(grad, offsets, ctx.width, 0.0), None, None


lengths_to_offsets: Any = define(
    "lengths_to_offsets(Tensor lengths) -> Tensor",
    reference=reference.lengths_to_offsets,
    fake=_fake_offsets,
    native_kernel=native.lengths_to_offsets,
)
jagged_index_select: Any = define(
    "jagged_index_select(Tensor values, Tensor lengths, Tensor bags, SymInt total) -> (Tensor, Tensor)",
    reference=reference.jagged_index_select,
    fake=_fake_select,
    native_kernel=native.jagged_index_select,
    gradient=Gradient(_save_select, _select_backward),
)
jagged_to_padded: Any = define(
    "jagged_to_padded(Tensor values, Tensor offsets, SymInt width, float padding) -> Tensor",
    reference=reference.jagged_to_padded,
    fake=_fake_to_padded,
    native_kernel=native.jagged_to_padded,
    gradient=Gradient(_save_to_padded, _to_padded_backward),
)
padded_to_jagged: Any = define(
    "padded_to_jagged(Tensor padded, Tensor offsets, SymInt total) -> Tensor",
    reference=reference.padded_to_jagged,
    fake=_fake_from_padded,
    native_kernel=native.padded_to_jagged,
    gradient=Gradient(_save_from_padded, _from_padded_backward),
)

# No operators: what they return is on the host.
sum_equal_groups: Any = shortcut(
    native.sum_equal_groups, composed=reference.sum_equal_groups, tensors=(0,)
)
sum_groups: Any = shortcut(native.sum_groups, composed=reference.sum_groups, tensors=(0,))
lengths_fit: Any = shortcut(native.lengths_fit, composed=reference.lengths_fit, tensors=(0,))
offsets_fit: Any = shortcut(native.offsets_fit, composed=reference.offsets_fit, tensors=(0,))
