"""Several KeyedJaggedTensors in one, and one copied into another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.compiler import is_compiling

from torchrec.sparse._checks import check_same_sizes, repeated, require_type
from torchrec.sparse._layout import JaggedLayout


def concat_into(joined: JaggedLayout, kjt_list: Sequence[JaggedLayout]) -> None:
    """Join the keys of several over the same batch; see ``KeyedJaggedTensor.concat``."""
    if not kjt_list:
        raise ValueError("`kjt_list` should hold at least one KeyedJaggedTensor. Received none.")
    keys: list[str] = []
    values: list[Tensor] = []
    weights: list[Tensor] = []
    lengths: list[Tensor] = []
    parts: list[JaggedLayout] = []
    variable = False
    for part in kjt_list:
        if not isinstance(part, JaggedLayout):
            raise TypeError(
                f"`kjt_list` should hold KeyedJaggedTensors. Received {type(part).__name__}."
            )
        own = part._keys
        if not own and len(kjt_list) > 1:
            continue
        parts.append(part)
        keys += own
        values.append(part._values)
        lengths.append(part.lengths() if part._lengths is None else part._lengths)
        if part._weights is not None:
            weights.append(part._weights)
        if part._strides_per_rank is not None:
            variable = True
    if not parts:
        return concat_into(joined, [kjt_list[0]])
    if weights and len(weights) != len(parts):
        raise ValueError(
            "`kjt_list` should be weighted in all parts or in none. "
            f"Received {len(weights)} of {len(parts)} with weights."
        )
    if len(set(keys)) != len(keys):
        raise ValueError(f"`kjt_list` should hold each key once. Received {repeated(keys)} again.")
    joined._keys = keys
    joined._values = torch.cat(values)
    joined._weights = torch.cat(weights) if weights else None
    joined._lengths = torch.cat(lengths)
    joined._offsets = None
    if variable:
        _join_strides(joined, parts)
    elif not keys:
        joined._stride = parts[0].stride()
    elif not is_compiling():
        _require_one_stride(parts, lengths)


def _require_one_stride(parts: Sequence[JaggedLayout], lengths: list[Tensor]) -> None:
    stride = lengths[0].numel() // len(parts[0]._keys)
    for part, own in zip(parts, lengths, strict=True):
        if own.numel() != stride * len(part._keys):
            raise ValueError(
                f"`kjt_list` should have batches of one size ({stride}, of keys {parts[0]._keys}). "
                f"Received {part.stride()} for keys {part._keys}."
            )


def _join_strides(joined: JaggedLayout, parts: Sequence[JaggedLayout]) -> None:
    """Put together the batch sizes and inverse indices of parts whose batches vary by key."""
    per_rank = [
        part.stride_per_key_per_rank() or [[stride] for stride in part.stride_per_key()]
        for part in parts
    ]
    if len({len(row) for rows in per_rank for row in rows}) > 1:
        raise ValueError(
            f"`kjt_list` should have batch sizes for one number of ranks. Received {per_rank}."
        )
    joined._strides_per_rank = [row for rows in per_rank for row in rows]
    inverse = [part._inverse_indices for part in parts]
    given = [pair for pair in inverse if pair is not None]
    if not given:
        return
    if len(given) != len(parts):
        raise ValueError(
            "`kjt_list` should have inverse indices in all parts or in none. "
            f"Received {len(given)} of {len(parts)} with them."
        )
    if all(pair is given[0] for pair in given):
        joined._inverse_indices = given[0]
        return
    if len({tensor.size(-1) for _, tensor in given}) > 1:
        raise ValueError(
            "`kjt_list` should have inverse indices for one size of the full batch. "
            f"Received {[tensor.size(-1) for _, tensor in given]}."
        )
    joined._inverse_indices = (
        [name for names, _ in given for name in names],
        torch.cat([tensor for _, tensor in given]),
    )


def copy_into(target: JaggedLayout, source: JaggedLayout, non_blocking: bool) -> None:
    """Copy one into the tensors of another of the same sizes; see ``KeyedJaggedTensor.copy_``."""
    require_type("kjt", source, type(target))
    if target.keys() != source.keys():
        raise ValueError(f"`kjt` should have the keys {target.keys()}. Received {source.keys()}.")
    pairs = [(target._values, source._values), (target.lengths(), source.lengths())]
    if target._offsets is not None:
        pairs.append((target._offsets, source.offsets()))
    if target._weights is not None and source._weights is not None:
        pairs.append((target._weights, source._weights))
    if target._inverse_indices is not None:
        pairs.append((target._inverse_indices[1], source.inverse_indices()[1]))
    check_same_sizes("kjt", pairs, source._weights, target._weights)
    for into, given in pairs:
        into.copy_(given, non_blocking)
    target._strides_per_rank = source._strides_per_rank
    target._stride_per_key = source._stride_per_key
    target._lengths_offset_per_key = source._lengths_offset_per_key
    target.unsync()
