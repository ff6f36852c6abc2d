"""The operators' definitions: schema, shapes for tracing, implementations."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from torchrec.ops import _library
from torchrec.ops.embedding import reference

kernels: ModuleType | None = None
if _library.native is not None:
    kernels = importlib.import_module("torchrec.ops.embedding.native")

_BAG = (
    "Tensor spec, Tensor values, Tensor offsets, Tensor? sample_weights, Tensor? divisors,"
    " int num_keys"
)
_SEQUENCE = "Tensor spec, Tensor values, SymInt[] starts, SymInt[] counts"
_TABLES = "Tensor(a!)[] weights, Tensor(b!)[] states, Tensor(c!) hyper"


def _fake_bag(
    weights: Sequence[Tensor],
    spec: Tensor,
    values: Tensor,
    offsets: Tensor,
    sample_weights: Tensor | None,
    divisors: Tensor | None,
    num_keys: int,
    width: int,
    dtype: torch.dtype,
    names: str,
) -> tuple[Tensor, Tensor]:
    bags = reference.batch_size(values, offsets, num_keys)
    output = values.new_empty((bags, width), dtype=dtype)
    return output, values.new_empty((len(weights),), dtype=torch.int64)


def _fake_sequence(
    weights: Sequence[Tensor],
    spec: Tensor,
    values: Tensor,
    starts: Sequence[int],
    counts: Sequence[int],
    dims: Sequence[int],
    dtype: torch.dtype,
    names: str,
) -> list[Tensor]:
    rows = [values.new_empty((n, dim), dtype=dtype) for n, dim in zip(counts, dims, strict=True)]
    return [*rows, values.new_empty((len(weights),), dtype=torch.int64)]


def _fake_choose(
    spec: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    starts: Sequence[int],
    counts: Sequence[int],
    num_keys: int,
    num_tables: int,
    names: str,
) -> tuple[Tensor, Tensor]:
    rows = values.new_empty((sum(counts),), dtype=torch.int64)
    return rows, values.new_empty((num_tables,), dtype=torch.int64)


def _fake_dense(grad: object, weights: Sequence[Tensor], *_: object) -> list[Tensor]:
    return [w.new_empty(w.shape) for w in weights]


def _fake_sparse(grad: object, weights: Sequence[Tensor], *_: object) -> list[Tensor]:
    result = []
    for w in weights:
        # On the meta device nobody ever learns which rows have a gradient: none stand for them.
        count = 0 if w.is_meta else torch.library.get_ctx().new_dynamic_size()
        result.append(w.new_empty((count,), dtype=torch.int64))
        result.append(w.new_empty((count, w.shape[1])))
    return result


def _fake_weights_grad(grad: Tensor, *args: object) -> Tensor:
    sample_weights = args[4]
    if not isinstance(sample_weights, Tensor):
        raise TypeError("`sample_weights` should be a tensor.")
    return torch.empty_like(sample_weights, memory_format=torch.contiguous_format)


def _fake_update(*_: object) -> None:
    return None


choose_rows = _library.define(
    "choose_rows(Tensor spec, Tensor values, Tensor? offsets, SymInt[] starts, SymInt[] counts,"
    " int num_keys, int num_tables, str names) -> (Tensor rows, Tensor out_of_range)",
    reference=reference.choose_rows,
    fake=_fake_choose,
    native_kernel=kernels.choose_rows if kernels else None,
)
embedding_bag = _library.define(
    f"embedding_bag(Tensor[] weights, {_BAG}, int width, ScalarType dtype, str names)"
    " -> (Tensor output, Tensor out_of_range)",
    reference=reference.embedding_bag,
    fake=_fake_bag,
    native_kernel=kernels.embedding_bag if kernels else None,
)
embedding_bag_dense_grad = _library.define(
    f"embedding_bag_dense_grad(Tensor grad, Tensor[] weights, {_BAG}) -> Tensor[]",
    reference=reference.embedding_bag_dense_grad,
    fake=_fake_dense,
    native_kernel=kernels.embedding_bag_dense_grad if kernels else None,
)
embedding_bag_sparse_grad = _library.define(
    f"embedding_bag_sparse_grad(Tensor grad, Tensor[] weights, {_BAG}) -> Tensor[]",
    reference=reference.embedding_bag_sparse_grad,
    fake=_fake_sparse,
    native_kernel=kernels.embedding_bag_sparse_grad if kernels else None,
)
embedding_bag_weights_grad = _library.define(
    f"embedding_bag_weights_grad(Tensor grad, Tensor[] weights, {_BAG}) -> Tensor",
    reference=reference.embedding_bag_weights_grad,
    fake=_fake_weights_grad,
    native_kernel=kernels.embedding_bag_weights_grad if kernels else None,
)
embedding_bag_update_ = _library.define(
    f"embedding_bag_update_(Tensor grad, {_TABLES}, {_BAG}) -> ()",
    reference=reference.embedding_bag_update_,
    fake=_fake_update,
    native_kernel=kernels.embedding_bag_update_ if kernels else None,
    decided_by=("grad", "weights", "values"),
)
embedding_sequence = _library.define(
    f"embedding_sequence(Tensor[] weights, {_SEQUENCE}, int[] dims, ScalarType dtype, str names)"
    " -> Tensor[]",
    reference=reference.embedding_sequence,
    fake=_fake_sequence,
    native_kernel=kernels.embedding_sequence if kernels else None,
)
embedding_sequence_dense_grad = _library.define(
    f"embedding_sequence_dense_grad(Tensor?[] grads, Tensor[] weights, {_SEQUENCE}) -> Tensor[]",
    reference=reference.embedding_sequence_dense_grad,
    fake=_fake_dense,
    native_kernel=kernels.embedding_sequence_dense_grad if kernels else None,
)
embedding_sequence_sparse_grad = _library.define(
    f"embedding_sequence_sparse_grad(Tensor?[] grads, Tensor[] weights, {_SEQUENCE}) -> Tensor[]",
    reference=reference.embedding_sequence_sparse_grad,
    fake=_fake_sparse,
    native_kernel=kernels.embedding_sequence_sparse_grad if kernels else None,
)
embedding_sequence_update_ = _library.define(
    f"embedding_sequence_update_(Tensor?[] grads, {_TABLES}, {_SEQUENCE}) -> ()",
    reference=reference.embedding_sequence_update_,
    fake=_fake_update,
    native_kernel=kernels.embedding_sequence_update_ if kernels else None,
    decided_by=("grads", "weights", "values"),
)
