"""Jagged tensors as plain tensors: values of all bags one after another, and the length (or offset) of each bag."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchrec.ops.jagged import reference


def lengths_to_offsets(lengths: Tensor) -> Tensor:
    return reference.lengths_to_offsets(lengths)


def offsets_to_lengths(offsets: Tensor) -> Tensor:
    return offsets[1:] - offsets[:-1]


def length_per_key(lengths: Tensor, strides: Sequence[int]) -> list[int]:
    parts = torch.split_with_sizes(lengths, list(strides))
    return [int(part.sum()) for part in parts]


def jagged_index_select(values: Tensor, lengths: Tensor, bags: Tensor) -> tuple[Tensor, Tensor]:
    total = int(lengths.index_select(0, bags).sum())
    return reference.jagged_index_select(values, lengths, bags, total)


def jagged_to_padded(values: Tensor, offsets: Tensor, width: int, padding: float = 0.0) -> Tensor:
    return reference.jagged_to_padded(values, offsets, width, padding)


def padded_to_jagged(padded: Tensor, offsets: Tensor, total: int) -> Tensor:
    return reference.padded_to_jagged(padded, offsets, total)
