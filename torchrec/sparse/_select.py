"""Parts of KeyedBags, permutations of them, and the bags of one key.

What comes of a checked record needs no check of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.compiler import is_compiling

from torchrec.ops.jagged import jagged_index_select
from torchrec.ops.permute import permute_jagged
from torchrec.sparse._bags import KeyedBags
from torchrec.sparse._checks import check_positions, check_runs
from torchrec.sparse._jagged import JaggedTensor, make_jagged
from torchrec.sparse._lengths import number_in


def _split_rows(rows: Tensor, sizes: list[int]) -> Sequence[Tensor]:
    """Cut a tensor into views of ``sizes`` rows.

    Of integers the "unsafe" kind is meant: it only leaves out the bookkeeping of views for autograd, which has no use
    for integers, and that is a third of the time.
    """
    if rows.is_floating_point() or is_compiling():
        return torch.split_with_sizes(rows, sizes)
    return torch.unsafe_split_with_sizes(rows, sizes)


def one_key(bags: KeyedBags, key: str) -> JaggedTensor:
    """Return the JaggedTensor of one key."""
    try:
        i = bags.keys.index(key)
    except ValueError:
        raise KeyError(f"Key should be one of {bags.keys}. Received {key!r}.") from None
    sizes = bags.length_per_key()
    start = sum(sizes[:i])
    end = start + sizes[i]
    if bags.strides_per_rank is None:
        stride = bags.stride()
        first, last = i * stride, (i + 1) * stride
    else:
        first, last = bags.lengths_offset_per_key()[i : i + 2]
    weights = bags.weights
    return make_jagged(
        bags.values[start:end],
        None if weights is None else weights[start:end],
        bags.lengths()[first:last],
        None,
    )


def by_key(bags: KeyedBags) -> dict[str, JaggedTensor]:
    """Return the JaggedTensor of every key."""
    keys = bags.keys
    sizes = bags.length_per_key()
    values = _split_rows(bags.values, sizes)
    weights = [None] * len(keys) if bags.weights is None else _split_rows(bags.weights, sizes)
    lengths = _split_rows(bags.lengths(), bags.stride_per_key())
    return {
        key: make_jagged(v, w, n, None)
        for key, v, w, n in zip(keys, values, weights, lengths, strict=True)
    }


def split(bags: KeyedBags, segments: list[int]) -> list[KeyedBags]:
    """Cut the keys into runs; see ``KeyedJaggedTensor.split``."""
    keys = bags.keys
    check_runs("segments", segments, keys)
    runs = list(pairwise(accumulate(segments, initial=0)))
    sizes = bags.length_per_key()
    key_by_key = segments == [1] * len(keys)
    rows = sizes if key_by_key else [sum(sizes[a:b]) for a, b in runs]
    values = _split_rows(bags.values, rows)
    weights = [None] * len(runs) if bags.weights is None else _split_rows(bags.weights, rows)
    if bags.strides_per_rank is not None:
        strides = bags.stride_per_key()
        lengths = _split_rows(bags.lengths(), [sum(strides[a:b]) for a, b in runs])
        return [
            bags.of_keys(range(a, b), v, w, n, sizes[a:b])
            for (a, b), v, w, n in zip(runs, values, weights, lengths, strict=True)
        ]
    stride = bags.stride()
    lengths = _split_rows(bags.lengths(), [stride * n for n in segments])
    # What of_keys would do, for runs of keys in half the time.
    return [
        KeyedBags(keys[a:b], v, w, n, None, None if a < b else stride, None, None, None, sizes[a:b])
        for (a, b), v, w, n in zip(runs, values, weights, lengths, strict=True)
    ]


def permute(bags: KeyedBags, order: list[int]) -> KeyedBags:
    """Take keys by position; see ``KeyedJaggedTensor.permute``."""
    # If every key is taken once, the sizes need not be known; in a graph and on meta they may not be.
    sizes = bags.length_per_key_or_none()
    if sizes is None and not is_compiling():
        each_once = bags.values.is_meta and sorted(order) == list(range(len(bags.keys)))
        sizes = None if each_once else bags.length_per_key()
    plain = bags.strides_per_rank is None
    strides = bags.stride() if plain and sizes is not None else bags.stride_per_key()
    try:
        values, weights, lengths = permute_jagged(
            bags.lengths(), bags.values, bags.weights, strides, order, sizes
        )
    except (TypeError, IndexError, RuntimeError):
        check_positions(order, bags.keys)
        raise
    taken = None if sizes is None else list(map(sizes.__getitem__, order))
    return bags.of_keys(order, values, weights, lengths, taken)


def expand_inverse(bags: KeyedBags) -> KeyedBags:
    """Gather every key to the full batch; see ``KeyedJaggedTensor.expand_inverse``."""
    names, inverse = bags.require_inverse()
    row = {name: i for i, name in enumerate(names)}
    first_bags = torch.tensor(bags.lengths_offset_per_key()[:-1], device=inverse.device)
    own = inverse[[row[key] for key in bags.keys]]
    chosen = (own + first_bags[:, None]).reshape(-1)
    lengths = bags.lengths()
    total = number_in(lengths.index_select(0, chosen).sum())
    values, taken = jagged_index_select(bags.values, lengths, chosen, total)
    weights = bags.weights
    if weights is not None:
        weights, _ = jagged_index_select(weights, lengths, chosen, total)
    stride = None if bags.keys else bags.stride()
    return KeyedBags(bags.keys, values, weights, taken, None, stride)
