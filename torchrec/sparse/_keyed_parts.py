"""What is made of a KeyedJaggedTensor: parts of it, permutations, copies elsewhere.

What comes of a checked one needs no check of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor
from torch.compiler import is_compiling

from torchrec.ops.jagged import jagged_index_select
from torchrec.ops.permute import permute_jagged
from torchrec.sparse._jagged import JaggedTensor, make_jagged
from torchrec.sparse._layout import JaggedLayout, running_sums

K = TypeVar("K", bound=JaggedLayout)


def split_rows(rows: Tensor, sizes: list[int]) -> Sequence[Tensor]:
    """Cut a tensor into views of ``sizes`` rows.

    Of integers the "unsafe" kind is meant: it only leaves out the bookkeeping of views for autograd, which has no use
    for integers, and that is a third of the time.
    """
    if rows.is_floating_point() or is_compiling():
        return torch.split_with_sizes(rows, sizes)
    return torch.unsafe_split_with_sizes(rows, sizes)


def one_key(kjt: JaggedLayout, key: str) -> JaggedTensor:
    """Return the JaggedTensor of one key."""
    try:
        i = kjt._keys.index(key)
    except ValueError:
        raise KeyError(f"Key should be one of {kjt._keys}. Received {key!r}.") from None
    sizes = kjt.length_per_key()
    start = sum(sizes[:i])
    end = start + sizes[i]
    if kjt._strides_per_rank is None:
        stride = kjt.stride()
        first, last = i * stride, (i + 1) * stride
    else:
        first, last = kjt.lengths_offset_per_key()[i : i + 2]
    weights = kjt._weights
    return make_jagged(
        kjt._values[start:end],
        None if weights is None else weights[start:end],
        kjt.lengths()[first:last],
        None,
    )


def by_key(kjt: JaggedLayout) -> dict[str, JaggedTensor]:
    """Return the JaggedTensor of every key."""
    keys = kjt._keys
    sizes = kjt.length_per_key()
    values = split_rows(kjt._values, sizes)
    weights = [None] * len(keys) if kjt._weights is None else split_rows(kjt._weights, sizes)
    lengths = split_rows(kjt.lengths(), kjt.stride_per_key())
    return {
        key: make_jagged(v, w, n, None)
        for key, v, w, n in zip(keys, values, weights, lengths, strict=True)
    }


def split(kjt: K, segments: list[int]) -> list[K]:
    """Cut the keys into runs; see ``KeyedJaggedTensor.split``."""
    keys = kjt._keys
    if sum(segments) != len(keys) or min(segments, default=0) < 0:
        raise ValueError(
            f"`segments` should not be negative and sum to the number of keys ({len(keys)}). Received {segments}."
        )
    runs = list(pairwise(running_sums(segments)))
    sizes = kjt.length_per_key()
    rows = [sum(sizes[a:b]) for a, b in runs]
    values = split_rows(kjt._values, rows)
    weights = [None] * len(runs) if kjt._weights is None else split_rows(kjt._weights, rows)
    plain = kjt._strides_per_rank is None
    if plain:
        stride = kjt.stride()
        bags = [stride * n for n in segments]
    else:
        strides = kjt.stride_per_key()
        bags = [sum(strides[a:b]) for a, b in runs]
    lengths = split_rows(kjt.lengths(), bags)
    parts = []
    for (a, b), v, w, n in zip(runs, values, weights, lengths, strict=True):
        part = kjt._new(keys[a:b], v, w, n)
        part._length_per_key = sizes[a:b]
        if a == b or not plain:
            _hand_down(kjt, part, range(a, b))
        parts.append(part)
    return parts


def permute(kjt: K, order: list[int]) -> K:
    """Take keys by position; see ``KeyedJaggedTensor.permute``."""
    keys = kjt._keys
    plain = kjt._strides_per_rank is None
    # In a graph the sizes may be unknown, and if every key is taken once they need not be known.
    sizes = kjt._length_per_key if is_compiling() else kjt.length_per_key()
    values, weights, lengths = permute_jagged(
        kjt.lengths(),
        kjt._values,
        kjt._weights,
        kjt.stride() if plain and sizes is not None else kjt.stride_per_key(),
        order,
        sizes,
    )
    part = kjt._new([keys[i] for i in order], values, weights, lengths)
    part._length_per_key = None if sizes is None else [sizes[i] for i in order]
    if not plain or not order:
        _hand_down(kjt, part, order)
    return part


def _hand_down(kjt: JaggedLayout, part: JaggedLayout, order: Sequence[int]) -> None:
    """Give a KeyedJaggedTensor of some of the keys what its tensors do not say of its batch."""
    if not part._keys:
        part._stride = kjt.stride()
    strides = kjt._strides_per_rank
    if strides is not None:
        part._strides_per_rank = (
            strides[list(order)] if isinstance(strides, Tensor) else [strides[i] for i in order]
        )
        if kjt._stride_per_key is not None:
            part._stride_per_key = [kjt._stride_per_key[i] for i in order]
        # They name their keys, so that they stay right for any selection.
        part._inverse_indices = kjt._inverse_indices


def expand_inverse(kjt: K) -> K:
    """Gather every key to the full batch; see ``KeyedJaggedTensor.expand_inverse``."""
    names, inverse = kjt.inverse_indices()
    row = {name: i for i, name in enumerate(names)}
    first_bags = torch.tensor(kjt.lengths_offset_per_key()[:-1], device=inverse.device)
    own = inverse[[row[key] for key in kjt._keys]]
    bags = (own + first_bags[:, None]).reshape(-1)
    lengths = kjt.lengths()
    total = int(lengths.index_select(0, bags).sum())
    values, taken = jagged_index_select(kjt._values, lengths, bags, total)
    weights = kjt._weights
    if weights is not None:
        weights, _ = jagged_index_select(weights, lengths, bags, total)
    expanded = kjt._new(kjt._keys, values, weights, taken)
    if not kjt._keys:
        expanded._stride = kjt.stride()
    return expanded


def map_tensors(kjt: K, function: Callable[[Tensor], Tensor]) -> K:
    """Apply a function to every tensor of data, and keep what is known on the host."""

    def apply(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else function(tensor)

    other = kjt._new(
        kjt._keys,
        function(kjt._values),
        apply(kjt._weights),
        apply(kjt._lengths),
        apply(kjt._offsets),
    )
    if kjt._inverse_indices is not None:
        keys, inverse = kjt._inverse_indices
        other._inverse_indices = keys, function(inverse)
    other._stride = kjt._stride
    other._strides_per_rank = kjt._strides_per_rank
    other._stride_per_key = kjt._stride_per_key
    other._length_per_key = kjt._length_per_key
    other._offset_per_key = kjt._offset_per_key
    other._lengths_offset_per_key = kjt._lengths_offset_per_key
    other._index_per_key = kjt._index_per_key
    return other
