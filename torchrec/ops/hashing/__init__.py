"""Hashes that are the same everywhere and for ever: of strings, which turns text into ids, and of ids."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrec.ops.hashing import schema

__all__ = ["hash_ids", "hash_strings"]


def hash_strings(data: Tensor, offsets: Tensor, seed: int = 0) -> Tensor:
    """Hash strings to 64 bits, straight from the buffers of an Arrow column: XXH64.

    Any string becomes an int64 id, the same on every machine and in every version, so that a model can be
    trained here and served there. Among n distinct strings, about n² / 2⁶⁵ pairs share a hash: for ten million
    strings the chance that any do is 3 in a million.

    Args:
        data: uint8, the bytes (UTF-8) of all strings one after another.
        offsets: ``[N + 1]`` int32 or int64. String i is ``data[offsets[i]:offsets[i + 1]]``.
        seed: chooses another hash function. Default 0.

    Returns:
        ``[N]`` int64: the bits of the unsigned hash.

    Raises:
        TypeError: wrong dtypes or numbers of dimensions.
        ValueError: offsets that fall, or leave the data.

    Example:
        >>> data = torch.tensor(list(b"tomatocress"), dtype=torch.uint8)
        >>> hash_strings(data, torch.tensor([0, 6, 11])).tolist()
        [-804764055807948472, 879890731800662810]

    See the description of XXH64, https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md.
    """
    if data.dtype is not torch.uint8 or data.dim() != 1:
        raise TypeError(
            f"`data` should be a one-dimensional uint8 tensor. "
            f"Received {data.dim()} dimensions of {data.dtype}."
        )
    if offsets.dtype not in (torch.int32, torch.int64) or offsets.dim() != 1:
        raise TypeError(
            f"`offsets` should be a one-dimensional int32 or int64 tensor. "
            f"Received {offsets.dim()} dimensions of {offsets.dtype}."
        )
    if offsets.size(0) == 0:
        raise ValueError("`offsets` should be one more than the strings. Received none.")
    if not -(1 << 63) <= seed < 1 << 63:
        raise ValueError(f"`seed` should be an int64. Received {seed}.")
    hashes: Tensor = schema.hash_strings(data, offsets, seed)
    return hashes


def hash_ids(ids: Tensor, span: int) -> Tensor:
    """Map any int64 to ``[0, span)``, evenly, and the same in every process and on every platform.

    A bijective mix of all 64 bits (the finaliser of MurmurHash3, Appleby 2011), modulo ``span``.

    Args:
        ids: int32 or int64, any shape.
        span: at least 1.

    Returns:
        int64, the shape of ``ids``.

    Raises:
        ValueError: ``span`` is less than 1.

    Example:
        >>> hash_ids(torch.tensor([0, 1, -1, 10_000_000_000]), 100).tolist()
        [0, 2, 44, 13]
    """
    if span < 1:
        raise ValueError(f"`span` should be at least 1. Received {span}.")
    hashes: Tensor = schema.hash_ids(ids, span)
    return hashes
