"""Several KeyedBags, or the JaggedTensors of several keys, joined to one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor
from torch.compiler import is_compiling

from torchrec.ops.jagged import are_surely_distinct
from torchrec.sparse._bags import Inverse, KeyedBags
from torchrec.sparse._checks import repeated
from torchrec.sparse._jagged import JaggedTensor


def concat(every: Sequence[KeyedBags]) -> KeyedBags:
    """Join the keys of several over the same batch; see ``KeyedJaggedTensor.concat``."""
    if not every:
        raise ValueError("`kjt_list` should hold at least one KeyedJaggedTensor. Received none.")
    compiling = is_compiling()  # then sizes are not to be compared
    keys: list[str] = []
    values: list[Tensor] = []
    weights: list[Tensor] = []
    lengths: list[Tensor] = []
    parts: list[KeyedBags] = []
    variable, even = False, True
    for part in every:
        own, of_part = part.keys, part.lengths()
        if not own and len(every) > 1:
            continue
        parts.append(part)
        keys += own
        values.append(part.values)
        lengths.append(of_part)
        if part.weights is not None:
            weights.append(part.weights)
        if part.strides_per_rank is not None:
            variable = True
        elif not compiling:
            of_first, keys_of_first = lengths[0], parts[0].keys
            if of_part.numel() * len(keys_of_first) != of_first.numel() * len(own):
                even = False
    if not parts:
        return concat(every[:1])
    if weights and len(weights) != len(parts):
        raise ValueError(
            "`kjt_list` should be weighted in all parts or in none. "
            f"Received {len(weights)} of {len(parts)} with weights."
        )
    if (compiling or not are_surely_distinct(keys)) and len(set(keys)) != len(keys):
        raise ValueError(f"`kjt_list` should hold each key once. Received {repeated(keys)} again.")
    joined = torch.cat(values), torch.cat(weights) if weights else None, torch.cat(lengths)
    if variable:
        stride, strides, inverse = _join_stride(parts), _join_strides(parts), _join_inverse(parts)
        return KeyedBags(keys, *joined, None, stride, strides, inverse)
    if not keys:
        return KeyedBags(keys, *joined, None, parts[0].stride())
    if not even:
        _refuse_strides(parts)
    return KeyedBags(keys, *joined)


def _refuse_strides(parts: Sequence[KeyedBags]) -> NoReturn:
    stride = parts[0].stride()
    other = next(part for part in parts if part.stride() != stride)
    raise ValueError(
        f"`kjt_list` should have batches of one size ({stride}, of keys {parts[0].keys}). "
        f"Received {other.stride()} for keys {other.keys}."
    )


def _join_stride(parts: Sequence[KeyedBags]) -> int | None:
    """Return the size of the full batch as the parts know it that are parts of a whole, or None."""
    known = [stride for part in parts if (stride := part.stride_or_none()) is not None]
    return max(known) if known else None


def _join_strides(parts: Sequence[KeyedBags]) -> list[list[int]]:
    """Put together the batch sizes of parts whose batches vary by key."""
    per_rank = [
        part.stride_per_key_per_rank() or [[stride] for stride in part.stride_per_key()]
        for part in parts
    ]
    if len({len(row) for rows in per_rank for row in rows}) > 1:
        raise ValueError(
            f"`kjt_list` should have batch sizes for one number of ranks. Received {per_rank}."
        )
    return [row for rows in per_rank for row in rows]


def _join_inverse(parts: Sequence[KeyedBags]) -> Inverse | None:
    given = [part.inverse_indices for part in parts if part.inverse_indices is not None]
    if not given:
        return None
    if len(given) != len(parts):
        raise ValueError(
            "`kjt_list` should have inverse indices in all parts or in none. "
            f"Received {len(given)} of {len(parts)} with them."
        )
    if all(pair is given[0] for pair in given):
        return given[0]
    if len({tensor.size(-1) for _, tensor in given}) > 1:
        raise ValueError(
            "`kjt_list` should have inverse indices for one size of the full batch. "
            f"Received {[tensor.size(-1) for _, tensor in given]}."
        )
    names = [name for names, _ in given for name in names]
    return names, torch.cat([tensor for _, tensor in given])


def concat_keys(jt_dict: dict[str, JaggedTensor]) -> KeyedBags:
    """Join one JaggedTensor a key; see ``KeyedJaggedTensor.from_jt_dict``."""
    if not isinstance(jt_dict, dict):
        raise TypeError(f"`jt_dict` should be a dict. Received {type(jt_dict).__name__}.")
    if not jt_dict:
        raise ValueError("`jt_dict` should hold at least one JaggedTensor. Received none.")
    for key, jt in jt_dict.items():
        if not isinstance(key, str) or not isinstance(jt, JaggedTensor):
            raise TypeError(
                "`jt_dict` should map strings to JaggedTensors. "
                f"Received {type(jt).__name__} under key {key!r}."
            )
    every = list(jt_dict.values())
    weights = [jt.weights() for jt in every if jt.weights_or_none() is not None]
    if weights and len(weights) != len(every):
        raise ValueError(
            "`jt_dict` should be weighted in all JaggedTensors or in none. "
            f"Received {len(weights)} of {len(every)} with weights."
        )
    lengths = [jt.lengths() for jt in every]
    sizes = [own.size(0) for own in lengths]
    varies = any(size != sizes[0] for size in sizes)
    return KeyedBags(
        list(jt_dict),
        torch.cat([jt.values() for jt in every]),
        torch.cat(weights) if weights else None,
        torch.cat(lengths),
        None,
        None,
        [[size] for size in sizes] if varies else None,
    )


torch.fx.wrap("concat_keys")  # tracers record the call
