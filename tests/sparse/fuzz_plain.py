"""For ``fuzz_cases.py``: random parts of sparse types, ways to spoil them, and what is right."""

from __future__ import annotations

import math
from itertools import pairwise
from random import Random
from typing import Any, NoReturn

import torch

from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor
from torchrec.sparse.jagged_tensor_validator import validate_keyed_jagged_tensor

Bags = list[list[float]]
INT, SHORT = torch.int64, torch.int32


class WrongError(Exception):
    """What was neither refused nor right."""


def expect(found: object, expected: object, what: str) -> None:
    if repr(found) != repr(expected):  # repr, so that NaN equals NaN and 1 is not True
        raise WrongError(f"{what}: {found!r}, not {expected!r}")


# ---- what plain Python makes of the parts


def entries_of(x: Any) -> list[Any] | None:
    """The entries of a tensor along its first dimension."""
    return x.tolist() if isinstance(x, torch.Tensor) and x.dim() else None


def counts_of(lengths: Any, offsets: Any, total: int) -> list[int] | None:
    """The number of values of each bag, if lengths and offsets agree on one."""
    found = []
    for given, is_offsets in ((lengths, False), (offsets, True)):
        if given is None:
            continue
        if not isinstance(given, torch.Tensor):
            return None
        is_empty = given.numel() == 0 == total
        if is_empty and (given.is_floating_point() or given.dtype in (INT, SHORT)):
            found.append([])  # however it is written, there are no bags
            continue
        if given.dtype not in (INT, SHORT):
            return None
        flat = given.reshape(-1).tolist()
        if is_offsets:
            if not flat or flat[0] != 0:
                return None
            flat = [b - a for a, b in pairwise(flat)]
        if min(flat, default=0) < 0 or sum(flat) != total:
            return None
        found.append(flat)
    return found[0] if found and found[0] == found[-1] else None


def cut(entries: list[Any], counts: list[int]) -> list[list[Any]]:
    starts = [sum(counts[:i]) for i in range(len(counts) + 1)]
    return [entries[a:b] for a, b in pairwise(starts)]


# ---- random parts, and ways to spoil them


def pick_dtype(rng: Random) -> torch.dtype:
    return rng.choice([INT, INT, SHORT, torch.float32, torch.float64])


def tensor_of(entries: list[float], dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(entries, dtype=dtype)


def random_counts(rng: Random, bags: int) -> list[int]:
    return [rng.choice([0, 1, 1, 2, 3]) for _ in range(bags)]


def spoil_tensor(rng: Random, x: Any) -> Any:
    """Something else in place of ``x``, of another dtype, shape, size or content."""
    if not isinstance(x, torch.Tensor):
        return rng.choice([torch.tensor([1]), 3, "x"])
    if x.is_complex():
        return None
    other_dtype = rng.choice(
        [torch.float32, torch.bool, torch.int16, torch.uint8, INT, SHORT, torch.complex64]
    )
    changed = x.clone()
    if changed.numel():
        at = rng.randrange(changed.numel())
        changed.view(-1)[at] = rng.choice([-1, -2, 1, 2, 5, 100, 2**31 - 1])
    swapped = x.flip(0) if x.dim() else x
    return rng.choice(
        [
            x.to(other_dtype),
            changed,
            changed,
            swapped,
            x[1:] if x.dim() else x,
            x[:-1] if x.dim() else x,
            torch.cat([x.reshape(-1), x.new_ones(1)]),
            x.reshape(-1, 1),
            x.reshape(1, -1),
            x.sum(),
            x.repeat(2) if x.dim() == 1 else x,
            x.tolist(),
            None,
            x.new_empty(0),
            "abc",
        ]
    )


def random_parts(rng: Random, bags: int, weighted: bool | None = None) -> dict[str, Any]:
    counts = random_counts(rng, bags)
    dtype = pick_dtype(rng)
    entries = [
        rng.choice([rng.randrange(10), rng.randrange(-(2**24), 2**24)]) for _ in range(sum(counts))
    ]
    if dtype.is_floating_point and entries and rng.random() < 0.2:
        entries[0] = math.nan
    index_dtype = rng.choice([INT, SHORT])
    weighted = rng.random() < 0.4 if weighted is None else weighted
    how = rng.choice(["lengths", "lengths", "offsets", "both"])
    starts = [sum(counts[:i]) for i in range(bags + 1)]
    return {
        "values": tensor_of(entries, dtype),
        "weights": tensor_of([rng.randrange(8) / 4 for _ in entries], torch.float32)
        if weighted
        else None,
        "lengths": None if how == "offsets" else tensor_of(counts, index_dtype),
        "offsets": None if how == "lengths" else tensor_of(starts, index_dtype),
    }


def spoil_parts(rng: Random, parts: dict[str, Any], times: int) -> None:
    for _ in range(times):
        name = rng.choice(["values", "weights", "lengths", "offsets"])
        parts[name] = spoil_tensor(rng, parts[name])


def plain_bags(parts: dict[str, Any]) -> tuple[Bags, Bags | None] | None:
    """The bags of values and weights, or None if the parts do not tell them."""
    values, weights = parts["values"], parts["weights"]
    entries = entries_of(values)
    if entries is None:
        return None
    counts = counts_of(parts["lengths"], parts["offsets"], len(entries))
    if counts is None:
        return None
    if weights is None:
        return cut(entries, counts), None
    of_entries = entries_of(weights)
    if of_entries is None or len(of_entries) != len(entries):
        return None
    return cut(entries, counts), cut(of_entries, counts)


# ---- reading what was built


def read_jagged(jt: JaggedTensor, bags: Bags, weights: Bags | None, what: str) -> None:
    expect([bag.tolist() for bag in jt.to_dense()], bags, f"{what}.to_dense()")
    expect(jt.lengths().tolist(), [len(bag) for bag in bags], f"{what}.lengths()")
    starts = [sum(len(bag) for bag in bags[:i]) for i in range(len(bags) + 1)]
    expect(jt.offsets().tolist(), starts, f"{what}.offsets()")
    of_weights = jt.to_dense_weights()
    expect(of_weights and [w.tolist() for w in of_weights], weights, f"{what}.to_dense_weights()")
    body = f"    {bags}" if weights is None else f'    "values": {bags},\n    "weights": {weights}'
    expect(str(jt).rstrip("\n"), f"JaggedTensor({{\n{body}\n}})", f"str({what})")


def read_keyed(
    kjt: KeyedJaggedTensor, keys: list[str], bags: list[Bags], weights: list[Bags] | None
) -> None:
    expect(kjt.keys(), keys, "keys()")
    expect(kjt.length_per_key(), [sum(map(len, b)) for b in bags], "length_per_key()")
    expect(kjt.stride_per_key(), [len(b) for b in bags], "stride_per_key()")
    flat = [bag for of_key in bags for bag in of_key]
    expect(kjt.lengths().tolist(), [len(bag) for bag in flat], "lengths()")
    expect(kjt.values().tolist(), [entry for bag in flat for entry in bag], "values()")
    starts = [sum(len(bag) for bag in flat[:i]) for i in range(len(flat) + 1)]
    expect(kjt.offsets().tolist(), starts, "offsets()")
    if len(set(keys)) < len(keys):
        return
    by_key = kjt.to_dict()
    for i, key in enumerate(keys):
        read_jagged(by_key[key], bags[i], weights and weights[i], f"to_dict()[{key!r}]")
        read_jagged(kjt[key], bags[i], weights and weights[i], f"[{key!r}]")
    expect(kjt.to_lists(), dict(zip(keys, bags, strict=True)), "to_lists()")
    expect(validate_keyed_jagged_tensor(kjt), True, "validate_keyed_jagged_tensor()")


def read_padded(jt: JaggedTensor, bags: Bags, rng: Random) -> None:
    width = rng.choice([None, None, 0, 1, 3, -1, 1.5, "x"])
    padding = rng.choice([0, 0.0, -1, 2.5, math.nan, math.inf, 2.0**70, None, "x"])
    padded = jt.to_padded_dense(width, padding)
    if width is not None and (not isinstance(width, int) or width < 0):
        raise WrongError(f"to_padded_dense({width!r}) gave {padded}")
    longest = max(map(len, bags), default=0) if width is None else width
    fill: list[Any] = []
    if any(len(bag) < longest for bag in bags):
        if not padded.dtype.is_floating_point:
            low, high = (0, 1)
            if padded.dtype != torch.bool:
                low, high = torch.iinfo(padded.dtype).min, torch.iinfo(padded.dtype).max
            if padding != padding // 1 or not low <= padding <= high:
                raise WrongError(f"padding {padding} became {padded.tolist()}")
        fill = [float(padding) if padded.dtype.is_floating_point else int(padding)] * longest
    expect(padded.tolist(), [(bag + fill)[:longest] for bag in bags], "to_padded_dense()")


def refuse_late(kjt: KeyedJaggedTensor) -> NoReturn:
    """Complain of a malformed one, unless reading it is refused."""
    read = kjt.sync().length_per_key(), kjt.to_dict(), kjt.to_lists(), kjt.offsets(), str(kjt)
    validate_keyed_jagged_tensor(kjt)
    raise WrongError(f"accepted, and read as {read}")
