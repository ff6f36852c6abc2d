"""KeyedBags from the arguments of ``KeyedJaggedTensor``, checked."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from torchrec.checks import checked_device, require_list, require_type
from torchrec.ops.jagged import bags_surely_fit
from torchrec.sparse._bags import Inverse, KeyedBags, Strides
from torchrec.sparse._checks import (
    check_inverse_indices,
    check_keyed_jagged,
    check_metadata,
    checked_keys,
    strides_of_ranks,
)


def checked_bags(
    keys: list[str],
    values: Tensor,
    weights: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
    stride: int | None,
    strides_per_rank: Strides | None,
    stride_per_key: list[int] | None,
    inverse_indices: Inverse | None,
) -> KeyedBags:
    """Take in what a KeyedJaggedTensor is built from, and check it; see there for what each is."""
    if type(keys) is not list:
        keys = checked_keys(keys)
    if strides_per_rank is not None or stride_per_key is not None:
        strides_per_rank, stride_per_key = _strides(keys, strides_per_rank, stride_per_key)
    if not is_compiling():
        lengths, offsets = check_keyed_jagged(
            keys, values, weights, lengths, offsets, stride, stride_per_key
        )
    if lengths is not None and lengths.dim() != 1:
        lengths = lengths.reshape(-1)
    bags = KeyedBags(
        keys,
        values,
        weights,
        lengths,
        offsets,
        stride if keys and strides_per_rank is not None else None if keys else stride or 0,
        strides_per_rank,
        inverse_indices,
        stride_per_key,
    )
    if inverse_indices is not None and not is_compiling():
        check_inverse_indices(keys, bags.stride_per_key(), inverse_indices)
    return bags


def synced(
    keys: list[str],
    values: Tensor,
    weights: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
    stride: int | None,
    strides_per_rank: Strides | None,
    inverse_indices: Inverse | None,
) -> KeyedBags:
    """Take in what a KeyedJaggedTensor is built from, and bring the numbers of each key to the host."""
    tensors = values, weights, lengths, offsets
    plain = stride is None and strides_per_rank is None and inverse_indices is None
    if plain and bags_surely_fit(keys, *tensors):
        bags = KeyedBags(keys, *tensors)
    else:
        bags = checked_bags(keys, *tensors, stride, strides_per_rank, None, inverse_indices)
    bags.sync()
    return bags


torch.fx.wrap("synced")  # tracers record the call


def reader() -> Any:
    """Return what reads lists and tables, imported when first used."""
    return importlib.import_module("torchrec.sparse._read")


def empty_parts(
    is_weighted: bool,
    device: torch.device | None,
    values_dtype: torch.dtype | None,
    weights_dtype: torch.dtype | None,
    lengths_dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return values, weights and lengths of no bags; see ``JaggedTensor.empty``."""
    if device is not None:
        device = checked_device(device)
    dtypes = {"values_dtype": values_dtype, "weights_dtype": weights_dtype}
    for name, dtype in dtypes.items():
        if dtype is not None:
            require_type(dtype, f"`{name}`", torch.dtype)
    require_type(lengths_dtype, "`lengths_dtype`", torch.dtype)
    return (
        torch.empty(0, dtype=values_dtype or torch.int64, device=device),
        torch.empty(0, dtype=weights_dtype, device=device) if is_weighted else None,
        torch.empty(0, dtype=lengths_dtype, device=device),
    )


def _strides(
    keys: list[str], per_rank: Strides | None, per_key: list[int] | None
) -> tuple[Strides | None, list[int] | None]:
    """Return the sizes of the batches ``[F][W]``, and of each key; sizes that are all the same are nothing special."""
    if per_rank is None:
        assert per_key is not None
        if not is_compiling():
            require_list(per_key, "`stride_per_key`", int)
        varies = len(set(per_key)) > 1
        return ([[size] for size in per_key], list(per_key)) if varies else (None, None)
    if is_compiling():
        return per_rank, None
    strides = strides_of_ranks(keys, per_rank)
    if per_key is not None:
        require_list(per_key, "`stride_per_key`", int)
        check_metadata("stride_per_key", list(per_key), strides)
    return per_rank, strides
