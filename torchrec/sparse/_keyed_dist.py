"""A KeyedJaggedTensor on its way between ranks: what is sent, and how it is put together again."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torchrec.sparse._keyed_jagged import KeyedJaggedTensor


def labels(kjt: KeyedJaggedTensor) -> list[str]:
    """Name the tensors that are sent, in order."""
    names = ["lengths", "values"]
    if kjt.variable_stride_per_key():
        names.append("strides")
    if kjt.weights_or_none() is not None:
        names.append("weights")
    return names


def tensors(kjt: KeyedJaggedTensor) -> list[Tensor]:
    """Return the tensors that are sent, in the order of ``labels``."""
    sent = [kjt.lengths(), kjt.values()]
    if kjt.variable_stride_per_key():
        sent.append(torch.tensor(kjt.stride_per_key(), device=kjt.device()))
    weights = kjt.weights_or_none()
    if weights is not None:
        sent.append(weights)
    return sent


def splits(kjt: KeyedJaggedTensor, key_splits: list[int]) -> list[list[int]]:
    """Return how many rows of each tensor go to each rank, in the order of ``labels``."""
    if sum(key_splits) != len(kjt.keys()):
        raise ValueError(
            f"`key_splits` should sum to the number of keys ({len(kjt.keys())}). "
            f"Received {key_splits}."
        )
    bounds = list(accumulate(key_splits, initial=0))
    bags, rows = kjt.lengths_offset_per_key(), kjt.offset_per_key()
    pairs = list(zip(bounds, bounds[1:], strict=False))
    value_splits = [rows[b] - rows[a] for a, b in pairs]
    result = [[bags[b] - bags[a] for a, b in pairs], value_splits]
    if kjt.variable_stride_per_key():
        result.append(list(key_splits))
    if kjt.weights_or_none() is not None:
        result.append(value_splits)
    return result
