"""Malformed tables and look-ups are refused in words, or right: never a crash, never a wrong number.

Run as a script, this file prints what came of every family of cases: of all by ``1``, of the first tenth by ``10``, of
one by its family and number. The tests run it in a process of its own: a crash is a failure that names its case.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchrec import (
    DataType,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    PoolingType,
)
from torchrec.ops.embedding import (
    Bags,
    Ids,
    LookupSpec,
    PoolingCode,
    SlotSpec,
    TableSpec,
    lookup_bags,
    lookup_sequences,
)

REFUSALS = (ValueError, TypeError, IndexError, RuntimeError)
COUNTS = {"configs": 3000, "tables": 1500, "features": 2200, "weights": 400, "operators": 3000}


class WrongError(Exception):
    """A case that was accepted, and whose numbers are not right."""


def close(ours: Tensor, theirs: list[list[float]]) -> None:
    expected = torch.tensor(theirs, dtype=torch.float32).reshape(ours.shape)
    if not torch.allclose(ours.detach().float(), expected, rtol=1e-2, atol=1e-2):
        raise WrongError(f"{ours.tolist()} should be {theirs}")


# ---- configurations

ANY = [
    None,
    -1,
    0,
    1,
    3,
    2.5,
    True,
    "",
    "t",
    [],
    [1],
    math.nan,
    math.inf,
    torch.tensor(3),
    object(),
]
FIELDS: dict[str, list[Any]] = {
    "num_embeddings": [1, 7, 10],
    "embedding_dim": [1, 3, 17],
    "name": ["t", "a b", "ü", "a.b", "type", "keys"],
    "data_type": [*DataType],
    "feature_names": [["f"], ["f", "g"], ["f", "f"], "f", [3], ["a\tb"], ["x\ny"]],
    "weight_init_max": [0.5, -0.5],
    "weight_init_min": [-0.5, 0.7],
    "init_fn": [torch.nn.init.ones_, lambda w: None, lambda w: torch.ones(1)],
    "pooling": [*PoolingType, "SUM"],
    "optimizer": ["sgd", "adam", "lamb", "nonsense"],
    "lr": [0.1, "0.1"],
    "weight_decay": [0.1],
    "optimizer_options": [{}, {"eps": 1e-3}, {"eps": "x"}, {"betas": (2, 3)}, {"betas": 1}],
    "enable_grad": [False],
    "sparse": [True],
    "table_size": [4],
    "hash_size": [5],
    "dtype": [torch.float16, torch.int64, torch.complex64],
    "id_policy": ["hash", "unknown", "clamp", "ignore", "error", "nonsense"],
    "use_virtual_table": [True],
}


def a_config(rng: random.Random, changes: int) -> EmbeddingBagConfig:
    arguments: dict[str, Any] = {
        "num_embeddings": 10, "embedding_dim": 3, "name": "t", "feature_names": ["f"],
    }  # fmt: skip
    for name in rng.sample(list(FIELDS), changes):
        arguments[name] = rng.choice(FIELDS[name] if rng.random() < 0.6 else ANY)
    return EmbeddingBagConfig(**arguments)


def configs(rng: random.Random) -> None:
    """A configuration that is accepted makes a collection, or says why not; and it is looked up."""
    config = a_config(rng, rng.randrange(1, 4))
    ebc = EmbeddingBagCollection(tables=[config])
    weight = ebc.embedding_bags[config.name].weight
    if weight.shape != (config.num_rows, config.embedding_dim):
        raise WrongError(f"shape {weight.shape}")
    with torch.no_grad():
        weight.fill_(1.0)
    ids = {feature: [[0], [config.num_embeddings - 1]] for feature in config.feature_names}
    out = ebc(KeyedJaggedTensor.from_lists(ids)).values()
    close(out, [[1.0] * out.shape[1]] * 2)
    if out.requires_grad:
        out.sum().backward()
        if not weight.isfinite().all():
            raise WrongError("the weights are not finite")


# ---- sets of tables


def tables(rng: random.Random) -> None:
    """Tables that fit together are looked up; others are not made."""
    pool: list[Callable[[], Any]] = [
        lambda: EmbeddingBagConfig(5, 2, rng.choice("ab"), feature_names=[rng.choice("fg")]),
        lambda: EmbeddingBagConfig(5, 2, rng.choice("cd"), feature_names=["f", "g"]),
        lambda: EmbeddingBagConfig(5, 3, rng.choice("ef"), feature_names=["g@a", "f"]),
        lambda: EmbeddingConfig(5, 2, "s", feature_names=["f"]),
        lambda: EmbeddingBagConfig(5, 2, rng.choice(["", "x.y", "pop"]), feature_names=["f"]),
        lambda: EmbeddingBagConfig(5, 2, "n"),
        lambda: rng.choice(ANY),
    ]
    weights = [8, 8, 4, 1, 1, 1, 1]
    chosen = [make() for make in rng.choices(pool, weights, k=rng.randrange(0, 4))]
    given = rng.choices([chosen, tuple(chosen), iter(chosen), None, "ab"], [12, 2, 2, 1, 1])[0]
    device = rng.choices([None, "cpu", torch.device("cpu"), "nonsense", 3.5], [9, 2, 2, 1, 1])[0]
    dtype = rng.choices([None, torch.float16, torch.int64, "float"], [9, 2, 1, 1])[0]
    ebc = EmbeddingBagCollection(tables=given, device=device, output_dtype=dtype)
    for weight in ebc.parameters():
        nn.init.ones_(weight)
    names = [n for config in chosen for n in config.feature_names]
    kjt = KeyedJaggedTensor.from_lists({"f": [[1, 2]], "g": [[4]], "g@a": [[0, 0, 3]]})
    out = ebc(kjt)
    lengths = {"f": 2, "g": 1, "g@a": 3}
    close(
        out.values(),
        [lengths[n] for c in chosen for n in c.feature_names for _ in range(c.embedding_dim)],
    )
    if len(out.keys()) != len(names) or len(set(out.keys())) != len(names):
        raise WrongError(f"keys {out.keys()}")


# ---- inputs

DTYPES = [torch.int64, torch.int32, torch.float32, torch.uint8, torch.int16, torch.bool]
EXTREME = [0, 9, 10, -1, 2**31, -(2**31), 2**40, 2**63 - 1, -(2**63)]


def features(rng: random.Random) -> None:
    """Input of any shape, dtype and content is refused, or gives what plain Python gives."""
    pooled = rng.random() < 0.6
    make = EmbeddingBagConfig if pooled else EmbeddingConfig
    policy = rng.choice(["error", "clamp", "ignore"])
    config = make(10, 2, "t", feature_names=["f", "g"], id_policy=policy)
    weighted = pooled and rng.random() < 0.3
    module: Any
    if pooled:
        module = EmbeddingBagCollection(tables=[config], is_weighted=weighted)
    else:
        module = EmbeddingCollection(tables=[config])
    table = [[float(row), row + 0.5] for row in range(10)]
    module.load_rows("t", torch.arange(10), torch.tensor(table))

    bags = rng.randrange(0, 4)
    lengths = [rng.randrange(0, 4) for _ in range(2 * bags)]
    count = max(0, sum(lengths) + rng.choice([0] * 9 + [1, -1]))
    if rng.random() < 0.2 and lengths:
        lengths[rng.randrange(len(lengths))] += rng.choice([-1, 1, -5, 100, 2**31])
    if rng.random() < 0.1:
        lengths = lengths[1:]
    ids = [rng.choice(EXTREME) if rng.random() < 0.08 else rng.randrange(10) for _ in range(count)]
    dtype = rng.choices(DTYPES, [12, 6, 1, 1, 1, 1])[0]
    values = torch.tensor(ids).to(dtype)
    if rng.random() < 0.15:
        values = rng.choice([
            lambda: torch.stack([values, values], 1)[:, 0], lambda: values[None], lambda: values.to("meta")
        ])()  # fmt: skip
    factors = None
    if weighted or rng.random() < 0.1:
        factors = torch.full((max(0, count + rng.choice([0] * 9 + [-1])),), 2.0)
        if rng.random() < 0.1:
            factors = rng.choice([factors.double(), factors.half(), factors.long(), factors[None]])
    sizes = torch.tensor(
        lengths, dtype=rng.choices([torch.int64, torch.int32, torch.float32], [6, 5, 1])[0]
    )
    keys = rng.choices([["f", "g"], ["g", "f"], ["f"], ["f", "f"]], [10, 5, 1, 1])[0]
    arguments: dict[str, Any] = {"lengths": sizes}
    if rng.random() < 0.3:
        ends = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        arguments = {"offsets": ends if rng.random() < 0.9 else ends + 1}
    kjt = KeyedJaggedTensor(keys, values, factors, **arguments)
    out = module(kjt)

    taken = [int(x) for x in kjt.values().tolist()]  # as the input was understood
    bounds = [int(x) for x in kjt.offsets().tolist()]
    scale = 2.0 if weighted else 1.0

    def row(i: int) -> list[float] | None:
        if 0 <= i < 10:
            return table[i]
        if policy == "clamp":
            return table[0 if i < 0 else 9]
        if policy == "ignore":
            return None
        raise WrongError(f"the id {i} was not refused")

    stride = kjt.stride()
    samples: list[list[float]] = [[] for _ in range(stride)]
    for key in ("f", "g"):
        at, rows = keys.index(key) * stride, []
        for b in range(stride):
            found = [row(i) for i in taken[bounds[at + b] : bounds[at + b + 1]]]
            samples[b] += [scale * sum(r[c] for r in found if r is not None) for c in range(2)]
            rows += [[0.0, 0.0] if r is None else r for r in found]
        if not pooled:
            close(out[key].values(), rows)
    if pooled:
        close(out.values(), samples)
        out.values().sum().backward()
        grad = [0.0] * 10
        for i in (i for i in taken if row(i) is not None):
            grad[min(max(i, 0), 9)] += scale
        if bounds[-1] == len(taken):
            close(module.embedding_bags["t"].weight.grad[:, 0], grad)


# ---- weights that somebody has put there


def weights(rng: random.Random) -> None:
    """A weight that does not fit is refused in the look-up and its backward pass."""
    options = rng.choice(
        [{}, {"optimizer": "adam", "lr": 0.1}, {"sparse": True}, {"enable_grad": False}]
    )
    ebc = EmbeddingBagCollection(
        tables=[EmbeddingBagConfig(10, 3, "t", feature_names=["f"], **options)]
    )
    bag = ebc.embedding_bags["t"]
    shape = rng.choice(
        [(10, 3), (10, 3), (10, 3), (3, 10), (10, 4), (9, 3), (30, 1), (30,), (0,), ()]
    )
    new: Any = torch.arange(float(math.prod(shape))).reshape(shape)
    right = torch.arange(30.0).reshape(10, 3)
    new = rng.choice([
        lambda: new, lambda: new, lambda: new.half(), lambda: new.double(), lambda: new.bfloat16(),
        lambda: new.long(), lambda: new.to("meta"), lambda: new.bool(), lambda: new.to(torch.complex64),
        lambda: right.t().contiguous().t(), lambda: torch.stack([right, -right], 2)[..., 0],
        lambda: right.to_sparse(),
        lambda: torch.quantize_per_tensor(right, 0.1, 0, torch.quint8),
    ])()  # fmt: skip
    floating = new.dtype.is_floating_point or new.dtype.is_complex
    if rng.random() < 0.5:
        bag.weight = nn.Parameter(new, requires_grad=floating)
    else:
        bag.weight.data = new
    out = ebc(KeyedJaggedTensor.from_lists({"f": [[1, 9], [3]]})).values()
    if new.shape != (10, 3):
        raise WrongError(f"the shape {tuple(new.shape)} was not refused")
    rows = (new.dequantize() if new.is_quantized else new).float()
    close(out, [(rows[1] + rows[9]).tolist(), rows[3].tolist()])
    if out.requires_grad:
        before = bag.weight.detach().clone().float()
        out.sum().backward()
        if options.get("optimizer"):
            moved = (bag.weight.detach().float() != before).any(1).nonzero().flatten().tolist()
            if moved != [1, 3, 9]:
                raise WrongError(f"rows {moved} moved")
        elif not options.get("sparse"):
            close(bag.weight.grad[:, 0], [0, 1, 0, 1, 0, 0, 0, 0, 0, 1])


# ---- the operators themselves


def operators(rng: random.Random) -> None:
    """Offsets, starts and counts that lead outside the ids are refused by the operators too."""
    weight = torch.arange(20.0).reshape(10, 2)
    count = rng.randrange(0, 8)
    ids = [rng.randrange(10) for _ in range(count)]
    values = torch.tensor(ids, dtype=rng.choice([torch.int64, torch.int32]))
    spec = LookupSpec(
        [TableSpec("t", 2, 10, 10)],
        [SlotSpec("f", 0, 0, PoolingCode.SUM, 0), SlotSpec("g", 0, 1, PoolingCode.SUM, 2)],
        2, 4,
    )  # fmt: skip
    far = [-1, count + 1, 1000, -(2**31), 2**31, 2**40, 2**62]
    if rng.random() < 0.5:
        ends = sorted(rng.randrange(count + 1) for _ in range(2 * rng.randrange(0, 4)))
        offsets = [0, *ends]
        if rng.random() < 0.5:
            offsets[rng.randrange(len(offsets))] = rng.choice([*far, rng.randrange(count + 1)])
        if rng.random() < 0.1:
            offsets = offsets[1:]
        wide = max(map(abs, offsets), default=0) >= 2**31 or rng.random() < 0.5
        factors = (
            torch.ones(max(0, count + rng.choice([0, 0, 0, -1, -3])))
            if rng.random() < 0.3
            else None
        )
        bags = Bags(
            values, torch.tensor(offsets, dtype=torch.int64 if wide else torch.int32), factors
        )
        out, _ = lookup_bags([weight], spec, bags, torch.float32, [])
        stride = (len(offsets) - 1) // 2
        expected = []
        for b in range(stride):
            for at in (b, stride + b):
                if not 0 <= offsets[at] <= offsets[at + 1] <= count:
                    raise WrongError(f"offsets {offsets} of {count} ids were not refused")
                rows = [ids[i] for i in range(offsets[at], offsets[at + 1])]
                expected.append([sum(2.0 * r for r in rows), sum(2.0 * r + 1 for r in rows)])
        close(out, expected)
        if factors is not None and len(factors) != count:
            raise WrongError(f"{len(factors)} weights of {count} ids were not refused")
        return
    starts = [rng.randrange(count + 1) for _ in range(2)]
    sizes = [rng.randrange(count - s + 1) for s in starts]
    if rng.random() < 0.5:
        rng.choice([starts, sizes])[rng.randrange(2)] = rng.choice(
            [-1, count + 1, 1000, 2**31, -(2**40)]
        )
    if rng.random() < 0.1:
        starts = starts[:1]
    outputs, _ = lookup_sequences([weight], spec, Ids(values, starts, sizes), torch.float32, [])
    for out, start, size in zip(outputs, starts, sizes, strict=True):
        if not 0 <= start <= start + size <= count:
            raise WrongError(f"{size} ids from {start} on, of {count}, were not refused")
        close(out, [[2.0 * i, 2.0 * i + 1] for i in ids[start : start + size]])


FAMILIES: dict[str, Callable[[random.Random], None]] = {
    "configs": configs, "tables": tables, "features": features, "weights": weights, "operators": operators,
}  # fmt: skip


def run(family: str, cases: Iterable[int]) -> dict[str, Any]:
    """Run cases of a family: how many were accepted and refused, and which went wrong."""
    outcome: dict[str, Any] = {"accepted": 0, "refused": 0, "wrong": []}
    for case in cases:
        torch.manual_seed(case)
        print(f"{family} {case}", file=sys.stderr)
        try:
            FAMILIES[family](random.Random(f"{family} {case}"))
        except REFUSALS as error:
            clear = len(str(error)) > 15 and type(error).__module__ in (
                "builtins",
                "torchrec.errors",
            )
            outcome["refused"] += clear
            if not clear:
                outcome["wrong"].append(f"{case}: {type(error).__name__}: {error}")
        except Exception as error:
            outcome["wrong"].append(f"{case}: {type(error).__name__}: {error}")
        else:
            outcome["accepted"] += 1
    return outcome


@pytest.mark.parametrize(
    ("share", "backend"),
    [
        pytest.param(10, {}, id="some"),
        pytest.param(1, {}, id="all", marks=pytest.mark.slow),
        pytest.param(
            1, {"ROWWISE_BACKEND": "reference"}, id="all-reference", marks=pytest.mark.slow
        ),
    ],
)
def test_malformed_is_refused_or_right(share: int, backend: dict[str, str]) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | backend
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, str(share)],
        capture_output=True,
        text=True,
        env=environment,
    )
    last = done.stderr.splitlines()[-1:]
    assert done.returncode == 0, f"{done.returncode} in {last}"
    outcomes = json.loads(done.stdout)
    assert outcomes.keys() == COUNTS.keys()
    for family, outcome in outcomes.items():
        assert outcome["wrong"] == []
        assert min(outcome["accepted"], outcome["refused"]) > COUNTS[family] / share / 20


def test_there_are_enough_cases() -> None:
    assert sum(COUNTS.values()) >= 10_000


if __name__ == "__main__":
    torch.set_num_threads(1)  # cases are tiny: waking threads would cost more than all else
    if len(sys.argv) == 3:
        print(json.dumps(run(sys.argv[1], [int(sys.argv[2])])))
    else:
        share = int(sys.argv[1])
        print(json.dumps({name: run(name, range(COUNTS[name] // share)) for name in FAMILIES}))
