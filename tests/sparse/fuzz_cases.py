"""Malformed sparse types: refused in words, or equal to what plain Python makes of them.

``test_fuzz.py`` runs this script: all cases, or the first tenth of each family by ``fuzz_cases.py 10``. To repeat one
case: ``python tests/sparse/fuzz_cases.py <family> <number>``.
"""

from __future__ import annotations

import json
import math
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from fuzz_plain import (
    INT,
    SHORT,
    Bags,
    WrongError,
    cut,
    expect,
    plain_bags,
    random_parts,
    read_jagged,
    read_keyed,
    read_padded,
    refuse_late,
    spoil_parts,
    spoil_tensor,
)

from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor
from torchrec.sparse.tensor_dict import maybe_td_to_kjt

CASES = {
    "jagged": 2500,
    "bags": 1500,
    "keyed": 3500,
    "variable": 1500,
    "operate": 3000,
    "lists": 1500,
    "dense": 1500,
}
REFUSALS = (ValueError, TypeError, IndexError, KeyError)
HERE = Path(__file__).parent


# ---- families: each case returns whether it was accepted


def jagged(rng: Random) -> bool:
    parts = random_parts(rng, rng.randrange(5))
    spoil_parts(rng, parts, rng.choice([0, 1, 1, 2]))
    expected = plain_bags(parts)
    jt = JaggedTensor(**parts)
    if expected is None:
        raise WrongError(f"accepted, and read as {jt.to_dense()}, {jt.offsets()}, {jt}")
    read_jagged(jt, *expected, "jt")
    if parts["values"].dim() == 1 and not parts["values"].is_complex():
        read_padded(jt, expected[0], rng)
    return True


def bags(rng: Random) -> bool:
    """What makes a JaggedTensor of dense tensors, and copies one."""
    first, second = (random_parts(rng, rng.randrange(4)) for _ in range(2))
    target, target_bags = JaggedTensor(**first), plain_bags(first)
    source, source_bags = JaggedTensor(**second), plain_bags(second)
    choice = rng.randrange(3)
    if choice == 0:
        given = rng.choice([source, source, source, target, None, 5, first["values"]])
        target.copy_(given)
        expected = source_bags if given is source else target_bags
        if given not in (source, target) or (expected[1] is None) != (target_bags[1] is None):
            raise WrongError(f"copy_ took {given} into {target}")
        dtype = target.values().dtype
        as_copied = [torch.tensor(bag).to(dtype).tolist() for bag in expected[0]]
        read_jagged(target, as_copied, expected[1], "copy_()")
        return True
    if choice == 1:
        rows: Any = source.to_dense()
        of_rows: Any = source.to_dense_weights()
        for dense_rows in (rows, of_rows):
            if dense_rows and rng.random() < 0.5:
                at = rng.randrange(len(dense_rows))
                dense_rows[at] = spoil_tensor(rng, dense_rows[at])
        rows = rng.choice([rows, rows, rows, rows, None, 5, "ab"])
        of_rows = rng.choice([of_rows, of_rows, of_rows, [], None, 5])
        jt = JaggedTensor.from_dense(rows, of_rows)
        if of_rows is not None and [len(w) for w in of_rows] != [len(row) for row in rows]:
            raise WrongError(f"from_dense took {rows}, {of_rows}: {jt}")
        weights = None if of_rows is None else [w.to(jt.weights().dtype).tolist() for w in of_rows]
        read_jagged(jt, [r.to(jt.values().dtype).tolist() for r in rows], weights, "from_dense()")
        return True
    batch, width = rng.randrange(4), rng.randrange(4)
    padded: Any = torch.randint(9, (batch, width))
    lengths: Any = torch.randint(width + 1, (batch,))
    weights = rng.choice([None, torch.rand(batch, width)])
    if rng.random() < 0.6:
        padded, lengths, weights = (
            spoil_tensor(rng, x) if rng.random() < 0.3 else x for x in (padded, lengths, weights)
        )
    jt = JaggedTensor.from_dense_lengths(padded, lengths, weights)
    if lengths.dtype not in (INT, SHORT) or lengths.shape != padded.shape[:1] or padded.dim() < 2:
        raise WrongError(f"from_dense_lengths took {padded}, {lengths}: {jt}")
    counts = lengths.tolist()
    if any(not 0 <= n <= padded.size(1) for n in counts):
        raise WrongError(f"from_dense_lengths took {lengths} of {tuple(padded.shape)}: {jt}")
    expected_bags = [row[:n] for row, n in zip(padded.tolist(), counts, strict=True)]
    of_bags = weights
    if weights is not None:
        of_bags = [row[:n] for row, n in zip(weights.tolist(), counts, strict=True)]
    read_jagged(jt, expected_bags, of_bags, "from_dense_lengths()")
    return True


def keyed(rng: Random) -> bool:
    keys: Any = [f"k{i}" for i in range(rng.randrange(1, 4))]
    batch = rng.randrange(4)
    parts = random_parts(rng, len(keys) * batch)
    more: dict[str, Any] = {}
    spoil_parts(rng, parts, rng.choice([0, 0, 1, 1, 2]))
    if rng.random() < 0.3:
        keys = rng.choice(
            [
                keys + keys[:1],
                [*keys, "z"],
                keys[:-1],
                "abc",
                None,
                tuple(keys),
                [1],
                [None],
                [*keys, 2],
                5,
            ]
        )
    if rng.random() < 0.3:
        more["stride"] = rng.choice([batch, batch + 1, -1, 0, 1.5, "x", True])
    expected = plain_bags(parts)
    kjt = KeyedJaggedTensor(keys=keys, **parts, **more)
    listed = isinstance(keys, list | tuple) and all(isinstance(key, str) for key in keys)
    if not listed or len(set(keys)) != len(keys) or expected is None:
        refuse_late(kjt)
    bags, weights = expected
    if (len(bags) % len(keys) if keys else len(bags)) != 0:
        raise WrongError(
            f"accepted with {len(bags)} bags for {len(keys)} keys, stride {kjt.stride()}"
        )
    batch = len(bags) // len(keys) if keys else 0
    if keys and more.get("stride", batch) != batch:
        raise WrongError(f"accepted stride {more['stride']} with a batch of {batch}")
    by_key = [bags[i * batch : (i + 1) * batch] for i in range(len(keys))]
    of_weights = weights and [weights[i * batch : (i + 1) * batch] for i in range(len(keys))]
    if weights == []:
        of_weights = [[] for _ in keys]
    read_keyed(kjt, list(keys), by_key, of_weights)
    return True


def variable(rng: Random) -> bool:
    keys = [f"k{i}" for i in range(rng.randrange(1, 4))]
    strides: Any = [[rng.randrange(3) for _ in range(2)] for _ in keys]
    parts = random_parts(rng, sum(map(sum, strides)))
    right = [sum(row) for row in strides]
    spoilt = rng.choice(["nothing", "nothing", "parts", "strides", "inverse"])
    if spoilt == "parts":
        spoil_parts(rng, parts, 1)
    if spoilt == "strides":
        strides = rng.choice(
            [
                [[n + 1 for n in row] for row in strides],
                [[-n for n in row] for row in strides],
                [[row[0] + 3, row[1] - 3] for row in strides],
                strides[:-1],
                [*strides, [0, 0]],
                [[0.5, 1] for _ in strides],
                strides[0],
                "ab",
                torch.tensor(strides).flatten(),
                torch.tensor(strides) + 1,
                torch.tensor(strides).float(),
                [["a"] for _ in strides],
                [[], *strides[1:]],
            ]
        )
    elif rng.random() < 0.3:
        strides = torch.tensor(strides)
    inverse: Any = None
    full = rng.randrange(4)
    if all(right) and rng.random() < 0.7:
        inverse = (
            keys,
            torch.tensor([[rng.randrange(n) for _ in range(full)] for n in right], dtype=INT),
        )
        if spoilt == "inverse":
            rows = spoil_tensor(rng, inverse[1])
            inverse = rng.choice(
                [
                    (keys, rows),
                    (keys, rows),
                    (keys[:-1], inverse[1]),
                    (["?"] * len(keys), inverse[1]),
                    keys,
                    (keys,),
                    (None, rows),
                ]
            )
    expected = plain_bags(parts)
    kjt = KeyedJaggedTensor(
        keys=keys, **parts, stride_per_key_per_rank=strides, inverse_indices=inverse
    )
    found = strides.tolist() if isinstance(strides, torch.Tensor) else strides
    plain = isinstance(found, list) and all(
        isinstance(row, list) and all(type(n) is int and n >= 0 for n in row) for row in found
    )
    if (
        expected is None
        or not plain
        or len(found) != len(keys)
        or sum(map(sum, found)) != len(expected[0])
    ):
        refuse_late(kjt)
    by_key = cut(expected[0], [sum(row) for row in found])
    of_weights = None if expected[1] is None else cut(expected[1], [sum(row) for row in found])
    read_keyed(kjt, keys, by_key, of_weights)
    if inverse is not None:
        full_batch = kjt.expand_inverse()
        rows = inverse[1].tolist() if inverse[1].dim() == 2 else None
        if (
            rows is None
            or inverse[1].dtype not in (INT, SHORT)
            or list(inverse[0]) != keys
            or len(rows) != len(keys)
        ):
            raise WrongError(f"accepted {inverse} and expanded it")
        if any(not 0 <= n < len(by_key[i]) for i in range(len(keys)) for n in rows[i]):
            raise WrongError(f"accepted {inverse} and expanded it")
        read_keyed(
            full_batch,
            keys,
            [[by_key[i][n] for n in rows[i]] for i in range(len(keys))],
            of_weights and [[of_weights[i][n] for n in rows[i]] for i in range(len(keys))],
        )
    return True


def build(
    rng: Random, keys: list[str], batch: int, weighted: bool
) -> tuple[KeyedJaggedTensor, list[Bags], list[Bags] | None]:
    """A right one, with its bags."""
    parts = random_parts(rng, len(keys) * batch, weighted)
    if parts["values"].dtype.is_floating_point:
        parts["values"] = parts["values"].nan_to_num(7)
    kjt = KeyedJaggedTensor(keys=keys, **parts)
    if rng.random() < 0.5:
        kjt.sync()
        kjt.offsets()
    bags, weights = plain_bags(parts)
    sizes = [batch] * len(keys)
    return kjt, cut(bags, sizes), None if weights is None else cut(weights, sizes)


def positions(rng: Random, length: int) -> Any:
    """Numbers such as split and permute take, right or wrong."""
    right = [rng.randrange(length + 1) for _ in range(rng.randrange(4))]
    return rng.choice(
        [
            right,
            right,
            right,
            right,
            [-1],
            [length],
            [0.5],
            ["a"],
            None,
            3,
            "01",
            [True],
            [2**70],
            [None],
            [[0]],
            (0,),
            torch.tensor([0]),
            {0: 0},
        ]
    )


def operate(rng: Random) -> bool:
    keys = [f"k{i}" for i in range(rng.randrange(1, 4))]
    batch, weighted = rng.randrange(4), rng.random() < 0.4
    kjt, bags, weights = build(rng, keys, batch, weighted)
    operation = rng.choice([_split, _permute, _concat, _copy, _from_dict, _index])
    operation(rng, kjt, keys, bags, weights)
    return True


def _split(
    rng: Random, kjt: Any, keys: list[str], bags: list[Bags], weights: list[Bags] | None
) -> None:
    segments = positions(rng, len(keys))
    parts = kjt.split(segments)
    sizes = [int(n) for n in segments]
    if (
        min(sizes, default=0) < 0
        or sum(sizes) > len(keys)
        or any(n != m for n, m in zip(sizes, segments, strict=True))
    ):
        raise WrongError(f"split({segments}) of {len(keys)} keys: {[p.keys() for p in parts]}")
    start = 0
    expect(len(parts), len(sizes), "parts")
    for part, size in zip(parts, sizes, strict=True):
        run = slice(start, start + size)
        read_keyed(part, keys[run], bags[run], weights and weights[run])
        start += size


def _permute(
    rng: Random, kjt: Any, keys: list[str], bags: list[Bags], weights: list[Bags] | None
) -> None:
    order = positions(rng, len(keys))
    taken = kjt.permute(order)
    order = list(order)
    if any(not isinstance(n, int | torch.Tensor) or not -len(keys) <= n < len(keys) for n in order):
        raise WrongError(f"permute({order}) of {len(keys)} keys: {taken.keys()}")
    order = [int(n) for n in order]
    read_keyed(
        taken,
        [keys[n] for n in order],
        [bags[n] for n in order],
        weights and [weights[n] for n in order],
    )


def _concat(
    rng: Random, kjt: Any, keys: list[str], bags: list[Bags], weights: list[Bags] | None
) -> None:
    batch = len(bags[0])
    other_keys = rng.choice([["x", "y"], ["x"], keys])
    other_batch = rng.choice([batch, batch, batch + 1])
    other, more, of_more = build(
        rng,
        other_keys,
        other_batch,
        rng.choice([weights is not None, weights is not None, rng.random() < 0.5]),
    )
    several = rng.choice(
        [
            [kjt, other],
            [kjt, other],
            [kjt, other],
            [other, kjt, 5],
            [],
            [kjt, None],
            kjt,
            [kjt, kjt["k0"]],
        ]
    )
    joined = KeyedJaggedTensor.concat(several)
    if len(several) != 2 or several[1] is not other or (weights is None) != (of_more is None):
        raise WrongError(f"concat joined {several}: {joined}")
    expected = bags + more
    if joined.values().dtype.is_floating_point:
        expected = [[[float(n) for n in bag] for bag in of_key] for of_key in expected]
    if set(other_keys) & set(keys):
        raise WrongError(f"concat joined two of a key: {joined.keys()}")
    read_keyed(joined, keys + other_keys, expected, weights and weights + of_more)


def _copy(
    rng: Random, kjt: Any, keys: list[str], bags: list[Bags], weights: list[Bags] | None
) -> None:
    other_keys = rng.choice([keys, keys, keys, [*keys, "x"], keys[::-1]])
    other, more, of_more = build(
        rng,
        other_keys,
        rng.choice([len(bags[0]), len(bags[0]), 1, 2]),
        rng.choice([weights is not None, weights is None]),
    )
    dtype = kjt.values().dtype
    source = rng.choice(
        [other, other, other, other, kjt, None, other["k0"] if "k0" in other_keys else 5]
    )
    kjt.copy_(source)
    if source is kjt:
        read_keyed(kjt, keys, bags, weights)
        return
    if source is not other or other_keys != keys or (weights is None) != (of_more is None):
        raise WrongError(f"copy_ took {source} into {kjt}")
    expected = [[torch.tensor(bag).to(dtype).tolist() for bag in of_key] for of_key in more]
    read_keyed(kjt, keys, expected, of_more)


def _from_dict(
    rng: Random, kjt: Any, keys: list[str], bags: list[Bags], weights: list[Bags] | None
) -> None:
    by_key: Any = kjt.to_dict()
    other, more, of_more = build(
        rng,
        ["x"],
        rng.choice([len(bags[0]), len(bags[0]) + 1]),
        rng.choice([weights is not None, weights is None]),
    )
    by_key["x"] = rng.choice(
        [other["x"], other["x"], other["x"], other, torch.tensor([1]), None, [1]]
    )
    by_key = rng.choice([by_key, by_key, by_key, by_key, list(by_key), None, {}, {1: other["x"]}])
    joined = KeyedJaggedTensor.from_jt_dict(by_key)
    if (
        not isinstance(by_key, dict)
        or set(by_key) != {*keys, "x"}
        or (weights is None) != (of_more is None)
    ):
        raise WrongError(f"from_jt_dict took {by_key}: {joined}")
    expected = bags + more
    if joined.values().dtype.is_floating_point:
        expected = [[[float(n) for n in bag] for bag in of_key] for of_key in expected]
    read_keyed(joined, [*keys, "x"], expected, weights and weights + of_more)


def _index(
    rng: Random, kjt: Any, keys: list[str], bags: list[Bags], weights: list[Bags] | None
) -> None:
    if rng.random() < 0.5:
        kjt.to_dict()
    key = rng.choice([keys[0], keys[-1], "?", 0, None, "", [], slice(1), kjt])
    jt = kjt[key]
    at = keys.index(key)
    read_jagged(jt, bags[at], weights and weights[at], f"[{key!r}]")


JUNK: list[Callable[[], Any]] = [
    lambda: "x", lambda: 1.5, lambda: None, lambda: True, lambda: 2**63, lambda: -(2**63) - 1,
    lambda: [1], lambda: {}, lambda: math.nan, lambda: torch.tensor([1, 2]), lambda: (1, 2),
    lambda: torch.tensor(1.5), lambda: b"1", lambda: object(), lambda: 2**40,
]  # fmt: skip


def plain_list(column: Any, dtype: torch.dtype) -> list[list[int]] | None:
    """Bags of integers that fit, or None."""
    if isinstance(column, torch.Tensor):
        column = column.tolist()
    if not isinstance(column, list | tuple):
        return None
    bags = []
    limit = 2**63 if dtype == INT else 2**31
    for bag in column:
        if isinstance(bag, torch.Tensor):
            bag = bag.tolist()
        bag = [] if bag is None else list(bag) if isinstance(bag, list | tuple) else [bag]
        bag = [entry.tolist() if isinstance(entry, torch.Tensor) else entry for entry in bag]
        if any(type(entry) is not int or not -limit <= entry < limit for entry in bag):
            return None
        bags.append(bag)
    return bags


def lists(rng: Random) -> bool:
    batch = rng.randrange(4)
    data: Any = {
        f"k{i}": [[rng.randrange(100) for _ in range(rng.randrange(3))] for _ in range(batch)]
        for i in range(rng.randrange(3))
    }
    dtype = rng.choice([INT, INT, INT, SHORT])
    for _ in range(rng.choice([0, 1, 1, 2])):
        key = rng.choice([*data, "new"])
        junk = rng.choice(JUNK)()
        place = rng.randrange(4)
        if place == 0 or not isinstance(data.get(key), list) or not data[key]:
            data[key] = junk
        elif place == 1:
            data[key][rng.randrange(len(data[key]))] = junk
        elif place == 2:
            data[key].append(junk)
        else:
            bag = data[key][rng.randrange(len(data[key]))]
            if isinstance(bag, list):
                bag.append(junk)
    if rng.random() < 0.05:
        data = rng.choice([None, [], "x", 3, {1: [[1]]}, {None: [[1]]}])
    kjt = KeyedJaggedTensor.from_lists(data, dtype=dtype)
    expected = {key: plain_list(column, dtype) for key, column in data.items()}
    batches = {len(bags) for bags in expected.values() if bags is not None}
    if None in expected.values() or len(batches) > 1 or not all(isinstance(k, str) for k in data):
        raise WrongError(f"from_lists took {data}: {kjt}")
    read_keyed(kjt, list(data), list(expected.values()), None)
    return True


def dense(rng: Random) -> bool:
    """KeyedTensor, and dicts of tensors."""
    keys: Any = [f"k{i}" for i in range(rng.randrange(1, 4))]
    batch = rng.randrange(4)
    dims: Any = [rng.randrange(3) for _ in keys]
    tensors: Any = [torch.randint(9, (batch, dim)).float() for dim in dims]
    rows = [t.tolist() for t in tensors]
    joined: Any = torch.cat(tensors, 1)
    choice = rng.randrange(5)
    if choice == 0:
        joined = rng.choice([joined, spoil_tensor(rng, joined)])
        dims = rng.choice(
            [
                dims,
                [d + 1 for d in dims],
                dims[:-1],
                [*dims, 1],
                [-d for d in dims],
                None,
                "ab",
                [0.5] * len(dims),
            ]
        )
        keys = rng.choice([keys, keys, [*keys[:-1], keys[0]], "ab", None, [1] * len(keys)])
        kt = KeyedTensor(keys, dims, joined)
        found = [t.tolist() for t in kt.to_dict().values()]
        right = (
            isinstance(joined, torch.Tensor)
            and joined.dim() == 2
            and all(type(d) is int and d >= 0 for d in dims)
        )
        right = right and len(keys) == len(dims) == len(set(keys)) and sum(dims) == joined.size(1)
        if not right or not all(isinstance(key, str) for key in keys) or isinstance(keys, str):
            raise WrongError(f"KeyedTensor took {keys}, {dims}, {joined}: {found}")
        starts = [sum(dims[:i]) for i in range(len(dims))]
        expected = [
            [row[a : a + d] for row in joined.tolist()] for a, d in zip(starts, dims, strict=True)
        ]
        expect(found, expected, "to_dict()")
        return True
    if choice == 1:
        at = rng.randrange(len(tensors))
        tensors[at] = rng.choice([tensors[at], spoil_tensor(rng, tensors[at])])
        named = rng.choice([keys, [*keys, "z"], keys[:-1]])
        kt = KeyedTensor.from_tensor_list(named, tensors)
        if any(not isinstance(t, torch.Tensor) or t.dim() != 2 for t in tensors) or len(
            named
        ) != len(tensors):
            raise WrongError(f"from_tensor_list took {named}, {tensors}")
        expect(
            [t.tolist() for t in kt.to_dict().values()],
            [t.to(kt.values().dtype).tolist() for t in tensors],
            "to_dict()",
        )
        return True
    kt = KeyedTensor(keys, dims, joined)
    if choice == 2:
        other_batch = rng.choice([batch, batch + 1])
        other = KeyedTensor(["x"], [1], torch.zeros(other_batch, 1))
        kts: Any = rng.choice([[kt], [kt], [kt, other], [kt, 5], [], None, [kt, kt]])
        groups: Any = rng.choice(
            [
                [keys],
                [keys[::-1], keys[:1]],
                [["?"]],
                [[1]],
                ["k0"],
                None,
                [[]],
                [],
                [["x", keys[0]]],
            ]
        )
        found = [t.tolist() for t in KeyedTensor.regroup(kts, groups)]
        by_key = dict(zip(keys, rows, strict=True)) | {"x": [[0.0]] * other_batch}
        held = {key for k in kts if isinstance(k, KeyedTensor) for key in k.to_dict()}
        used = {key for group in groups for key in group}
        if (
            any(not isinstance(k, KeyedTensor) for k in kts)
            or any(isinstance(group, str) for group in groups)
            or not used <= held
            or ("x" in used and batch != other_batch)
        ):
            raise WrongError(f"regroup took {groups} of {kts}: {found}")
        expected = [
            [[n for key in group for n in by_key[key][i]] for i in range(batch)] for group in groups
        ]
        expect(found, expected, "regroup()")
        return True
    if choice == 3:
        key = rng.choice([keys[0], "?", 0, None, []])
        expect(kt[key].tolist(), rows[keys.index(key)], f"[{key!r}]")
        return True
    features: Any = {key: t.long() for key, t in zip(keys, tensors, strict=True)}
    features[keys[0]] = rng.choice([features[keys[0]], spoil_tensor(rng, features[keys[0]])])
    wanted = rng.choice([None, keys, [*keys, "?"], [1], "k0"])
    kjt = maybe_td_to_kjt(features, wanted)
    chosen = list(features) if wanted is None else wanted
    if not set(chosen) <= set(features) or any(
        not isinstance(features[k], torch.Tensor) for k in chosen
    ):
        raise WrongError(f"maybe_td_to_kjt took {features}, {wanted}: {kjt}")
    dtype = kjt.values().dtype
    columns = [features[key].to(dtype).tolist() for key in chosen]
    expected = [[row if isinstance(row, list) else [row] for row in column] for column in columns]
    read_keyed(kjt, chosen, expected, None)
    return True


FAMILIES = {f.__name__: f for f in (jagged, bags, keyed, variable, operate, lists, dense)}


def run_case(family: str, number: int) -> bool | str:
    """Say whether a case was accepted, or what was wrong about it."""
    rng = Random(f"{family} {number}")
    torch.manual_seed(number)
    try:
        return FAMILIES[family](rng)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        if isinstance(error, REFUSALS) and Path(where.filename).parent != HERE:
            return (
                False if str(error).strip("'\" ") else f"{type(error).__name__} without a message"
            )
        file = where.filename.rpartition("/")[2]
        return f"{type(error).__name__} ({file}:{where.lineno}): {error}"


def main() -> None:
    """Print what became of the cases: of one, or of all."""
    # Memory that nobody wrote holds NaN or the largest integer, so that it shows when it is read.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    if len(sys.argv) == 3:
        print(run_case(sys.argv[1], int(sys.argv[2])))
        return
    share = int(sys.argv[1]) if len(sys.argv) == 2 else 1
    for family, cases in CASES.items():
        results: dict[str, Any] = {"accepted": 0, "refused": 0, "wrong": []}
        for number in range(cases // share):
            print(json.dumps([family, number]), flush=number % 100 == 0)
            result = run_case(family, number)
            if isinstance(result, str):
                results["wrong"].append(f"{family} {number}: {result[:300]}")
            else:
                results["accepted" if result else "refused"] += 1
        print(json.dumps({family: results}), flush=True)


if __name__ == "__main__":
    main()
