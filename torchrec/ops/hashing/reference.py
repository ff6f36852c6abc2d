"""The hashes in plain PyTorch: the specification, right on every device. Of strings it is XXH64, of all at a time.

PyTorch has no arithmetic on uint64, but that of int64 wraps to the same bits; only shifts to the right need care.
Steps and constants of XXH64 are those of the public description of the algorithm:
https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number


P1 = _signed(0x9E3779B185EBCA87)
P2 = _signed(0xC2B2AE3D27D4EB4F)
P3 = _signed(0x165667B19E3779F9)
P4 = _signed(0x85EBCA77C2B2AE63)
P5 = _signed(0x27D4EB2F165667C5)
# Multipliers of the mix of ids.
_FIRST, _SECOND = _signed(0xFF51AFD7ED558CCD), _signed(0xC4CEB9FE1A85EC53)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift to the right, zeros coming in."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _rotate(x: Tensor, bits: int) -> Tensor:
    return (x << bits) | _shift(x, 64 - bits)


def _round(lane: Tensor | int, word: Tensor) -> Tensor:
    return _rotate(lane + word * P2, 31) * P1


def _read(data: Tensor, at: Tensor, count: int) -> Tensor:
    """Read little-endian integers of ``count`` bytes at these positions."""
    word = torch.zeros_like(at)
    for i in range(count):
        word |= data[at + i].to(torch.int64) << (8 * i)
    return word


def _hash_stripes(data: Tensor, start: Tensor, length: Tensor, seed: int) -> Tensor:
    """Hash the whole stripes of 32 bytes of strings that have at least one."""
    first = [seed + P1 + P2, seed + P2, seed, seed - P1]
    lanes = torch.stack([torch.full_like(start, _signed(x % (1 << 64))) for x in first])
    stripes = length // 32
    for stripe in range(int(stripes.max())):
        rows = (stripes > stripe).nonzero().flatten()
        at = start[rows] + 32 * stripe
        for lane in range(4):
            lanes[lane, rows] = _round(lanes[lane, rows], _read(data, at + 8 * lane, 8))
    turns = (1, 7, 12, 18)
    hashes = sum((_rotate(lanes[i], turns[i]) for i in range(4)), torch.zeros_like(start))
    for lane in range(4):
        hashes = (hashes ^ _round(0, lanes[lane])) * P1 + P4
    return hashes


def hash_strings(data: Tensor, offsets: Tensor, seed: int) -> Tensor:
    """Hash the strings ``data[offsets[i]:offsets[i + 1]]``."""
    ends = offsets.to(torch.int64)
    start, length = ends[:-1].clone(), ends[1:] - ends[:-1]
    bad = (length < 0) | (start < 0) | (ends[1:] > data.size(0))
    if bool(bad.any()):
        raise_bad_string(data, offsets, int(bad.nonzero()[0]))
    hashes = torch.full_like(start, _signed((seed + P5) % (1 << 64)))
    rows = (length >= 32).nonzero().flatten()
    if rows.numel():
        hashes[rows] = _hash_stripes(data, start[rows], length[rows], seed)
    hashes += length
    start += length // 32 * 32
    left = length % 32
    for _ in range(3):
        rows = (left >= 8).nonzero().flatten()
        word = _round(0, _read(data, start[rows], 8))
        hashes[rows] = _rotate(hashes[rows] ^ word, 27) * P1 + P4
        start[rows] += 8
        left[rows] -= 8
    rows = (left >= 4).nonzero().flatten()
    hashes[rows] = _rotate(hashes[rows] ^ (_read(data, start[rows], 4) * P1), 23) * P2 + P3
    start[rows] += 4
    left[rows] -= 4
    for byte in range(3):
        rows = (left > byte).nonzero().flatten()
        hashes[rows] = _rotate(hashes[rows] ^ (_read(data, start[rows] + byte, 1) * P5), 11) * P1
    hashes = (hashes ^ _shift(hashes, 33)) * P2
    hashes = (hashes ^ _shift(hashes, 29)) * P3
    return hashes ^ _shift(hashes, 32)


def hash_ids(ids: Tensor, span: int | Tensor) -> Tensor:
    """Mix the bits of ids, and divide by ``span``; see ``torchrec.ops.hashing.hash_ids``."""
    x = ids.long()
    x = (x ^ _shift(x, 33)) * _FIRST
    x = (x ^ _shift(x, 33)) * _SECOND
    x = x ^ _shift(x, 33)
    return _shift(x, 1) % span


def raise_bad_string(data: Tensor, offsets: Tensor, index: int) -> None:
    """Say that string ``index`` does not lie in the data."""
    first, last = offsets[index : index + 2].tolist()
    raise ValueError(
        f"`offsets` should rise from 0 to the bytes of `data` ({data.size(0)}). "
        f"Received {first}, {last} for string {index}."
    )
