"""Ids that no row stands for: refused in words, or treated as declared, and counted."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    IdPolicy,
    KeyedJaggedTensor,
)
from torchrec.errors import IdOutOfRangeError

ROWS = 10
LOWEST, HIGHEST = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max
STRAYS = [ROWS, -1, LOWEST, HIGHEST, 1 << 31, -(1 << 31), 1 << 40]


def murmur(x: int, span: int) -> int:
    """The finaliser of MurmurHash3 in plain Python."""
    mask = (1 << 64) - 1
    x &= mask
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        x = ((x ^ (x >> 33)) * factor) & mask
    return ((x ^ (x >> 33)) >> 1) % span


def expected_row(policy: str, i: int, hash_size: int = 7) -> int | None:
    if 0 <= i < ROWS:
        return i
    return {
        "hash_size": lambda: ROWS + murmur(i, hash_size),
        "hash": lambda: murmur(i, ROWS),
        "unknown": lambda: ROWS,
        "clamp": lambda: 0 if i < 0 else ROWS - 1,
        "ignore": lambda: None,
    }[policy]()


POLICIES = ["hash_size", "hash", "unknown", "clamp", "ignore"]


def options(policy: str) -> dict:
    return {"hash_size": 7} if policy == "hash_size" else {"id_policy": policy}


def pooled(policy: str, **more) -> EmbeddingBagCollection:
    config = EmbeddingBagConfig(ROWS, 3, "t", feature_names=["f"], **options(policy), **more)
    return EmbeddingBagCollection(tables=[config])


def sequence(policy: str, **more) -> EmbeddingCollection:
    config = EmbeddingConfig(ROWS, 3, "t", feature_names=["f"], **options(policy), **more)
    return EmbeddingCollection(tables=[config])


def weight(module: nn.Module) -> Tensor:
    return next(module.parameters())


@pytest.mark.parametrize("policy", POLICIES)
def test_pooled(policy: str) -> None:
    ebc = pooled(policy)
    extra = {"hash_size": 7, "unknown": 1}.get(policy, 0)
    assert weight(ebc).shape == (ROWS + extra, 3)
    bags = [[3, *STRAYS], [9, 0], [], [-1]]
    out = ebc(KeyedJaggedTensor.from_lists({"f": bags})).values()
    chosen = [[r for i in bag if (r := expected_row(policy, i)) is not None] for bag in bags]
    sums = [weight(ebc)[rows].sum(0) if rows else torch.zeros(3) for rows in chosen]
    torch.testing.assert_close(out, torch.stack(sums))
    assert ebc.out_of_range_counts() == {"t": len(STRAYS) + 1}
    out.sum().backward()
    counted = torch.zeros(ROWS + extra)
    for rows in chosen:
        for row in rows:
            counted[row] += 1
    assert weight(ebc).grad[:, 0].tolist() == counted.tolist()


@pytest.mark.parametrize("policy", POLICIES)
def test_sequence(policy: str) -> None:
    ec = sequence(policy)
    ids = [3, *STRAYS, 9]
    out = ec(KeyedJaggedTensor.from_lists({"f": [ids]}))["f"].values()
    for row, i in zip(out, ids, strict=True):
        chosen = expected_row(policy, i)
        assert torch.equal(row, torch.zeros(3) if chosen is None else weight(ec)[chosen])
    assert ec.out_of_range_counts() == {"t": len(STRAYS)}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("maker", [pooled, sequence])
def test_negative_int32_ids(maker: Callable, policy: str) -> None:
    module = maker(policy)
    lists = {"f": [[-1, -(1 << 31)], [(1 << 31) - 1, 4]]}
    narrow = module(KeyedJaggedTensor.from_lists(lists, dtype=torch.int32))
    wide = module(KeyedJaggedTensor.from_lists(lists))
    if isinstance(wide, dict):
        narrow, wide = narrow["f"], wide["f"]
    assert torch.equal(narrow.values(), wide.values())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("maker", [pooled, sequence])
def test_fused_updates_reach_the_same_rows(maker: Callable, policy: str) -> None:
    module = maker(policy, optimizer="sgd", lr=1.0, init_fn=torch.nn.init.zeros_)
    ids = [3, *STRAYS, 9, 9]
    out = module(KeyedJaggedTensor.from_lists({"f": [ids]}))
    (out["f"] if isinstance(out, dict) else out).values().sum().backward()
    expected = [0.0] * len(weight(module))
    for i in ids:
        row = expected_row(policy, i)
        if row is not None:
            expected[row] -= 1
    assert weight(module)[:, 1].tolist() == expected


def test_mean_leaves_ignored_ids_out() -> None:
    config = EmbeddingBagConfig(ROWS, 3, "t", feature_names=["f"], id_policy="ignore")
    config.pooling = type(config.pooling).MEAN
    ebc = EmbeddingBagCollection(tables=[config])
    out = ebc(KeyedJaggedTensor.from_lists({"f": [[2, 99, 4], [99]]})).values()
    torch.testing.assert_close(out, torch.stack([weight(ebc)[[2, 4]].mean(0), torch.zeros(3)]))
    out.sum().backward()
    assert weight(ebc).grad[:, 0].tolist() == [0, 0, 0.5, 0, 0.5, 0, 0, 0, 0, 0]


# ---- the error


@pytest.mark.parametrize("stray", STRAYS)
@pytest.mark.parametrize("kind", ["pooled", "sequence"])
def test_the_error_names_all(kind: str, stray: int) -> None:
    make = EmbeddingConfig if kind == "sequence" else EmbeddingBagConfig
    configs = [
        make(50, 2, "wide", feature_names=["f", "g"]),
        make(ROWS, 2, "narrow", feature_names=["g", "h"]),
    ]
    collection = EmbeddingCollection if kind == "sequence" else EmbeddingBagCollection
    module = collection(tables=configs)
    bags = [[1, 2], [], [0, stray, 3], [stray]]
    kjt = KeyedJaggedTensor.from_lists({"g": [[1]] * 4, "h": bags, "f": [[], [], [49], []]})
    before = [p.clone() for p in module.parameters()]
    with pytest.raises(IdOutOfRangeError) as caught:
        module(kjt)
    assert str(caught.value) == (
        f"Ids of feature 'h' should be in [0, {ROWS}), the rows of table 'narrow'. "
        f"Received {stray} in sample 2."
    )
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.table, error.feature, error.sample, error.id, error.rows) == (
        "narrow", "h", 2, stray, ROWS,
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


@pytest.mark.parametrize("name", ["tab\tbed", "of two\nlines", "it's", "f@t", " "])
def test_odd_names_are_refused_or_named(name: str) -> None:
    with pytest.raises(
        (ValueError, IdOutOfRangeError), match=r"(?s)should .*feature|feature.*should"
    ):
        looked_up(EmbeddingBagConfig(ROWS, 2, "t", feature_names=[name]), name)


def looked_up(config: EmbeddingBagConfig, name: str) -> None:
    EmbeddingBagCollection(tables=[config])(KeyedJaggedTensor.from_lists({name: [[10]]}))


def test_a_feature_of_two_tables_is_checked_against_each() -> None:
    configs = [
        EmbeddingBagConfig(50, 2, "wide", feature_names=["f"]),
        EmbeddingBagConfig(ROWS, 2, "narrow", feature_names=["f"]),
    ]
    ebc = EmbeddingBagCollection(tables=configs)
    with pytest.raises(IdOutOfRangeError, match=r"the rows of table 'narrow'\. Received 20"):
        ebc(KeyedJaggedTensor.from_lists({"f": [[20]]}))


def test_the_sample_of_a_batch_of_its_own_is_that_of_the_full_batch() -> None:
    ebc = EmbeddingBagCollection(tables=[EmbeddingBagConfig(ROWS, 2, "t", feature_names=["f"])])
    kjt = KeyedJaggedTensor(
        ["f", "g"], torch.tensor([1, 77]), lengths=torch.tensor([1, 1, 0]),
        stride_per_key_per_rank=[[2], [1]],
        inverse_indices=(["f", "g"], torch.tensor([[0, 0, 1], [0, 0, 0]])),
    )  # fmt: skip
    with pytest.raises(IdOutOfRangeError, match="77 in sample 2"):
        ebc(kjt)


# ---- counts


def test_counts_add_up_and_start_again() -> None:
    configs = [
        EmbeddingBagConfig(ROWS, 2, "a", feature_names=["f", "g"], id_policy="clamp"),
        EmbeddingBagConfig(5, 2, "b", feature_names=["f"], hash_size=3),
        EmbeddingBagConfig(1000, 2, "c", feature_names=["f"]),
    ]
    ebc = EmbeddingBagCollection(tables=configs)
    kjt = KeyedJaggedTensor.from_lists({"f": [[1, 7, 11]], "g": [[500, 0]]})
    for times in (1, 2):
        ebc(kjt)
        assert ebc.out_of_range_counts() == {"a": 2 * times, "b": 2 * times, "c": 0}
    with torch.no_grad():
        ebc(kjt)
    assert ebc.out_of_range_counts(reset=True) == {"a": 6, "b": 6, "c": 0}
    assert ebc.out_of_range_counts() == {"a": 0, "b": 0, "c": 0}
    assert "_out_of_range" not in ebc.state_dict()


def test_counts_wide_rows_once() -> None:
    """Rows of more than 128 columns are read in several passes; ids are counted in one of them."""
    config = EmbeddingBagConfig(ROWS, 300, "t", feature_names=["f"], id_policy="ignore")
    ebc = EmbeddingBagCollection(tables=[config])
    ebc(KeyedJaggedTensor.from_lists({"f": [[1, 70, 80], [-1]]}))
    assert ebc.out_of_range_counts() == {"t": 3}


# ---- the hash


FROZEN = {0: 0, 10: 2, -1: 2, 10_000_000_000: 6, HIGHEST: 5}


def test_hash_does_not_change() -> None:
    """Trained tables hold rows chosen by this hash: another one would mix them up."""
    assert {i: murmur(i, 7) for i in FROZEN} == FROZEN
    config = EmbeddingBagConfig(1, 1, "t", feature_names=["f"], hash_size=7)
    ebc = EmbeddingBagCollection(tables=[config])
    ebc.load_rows("t", torch.arange(8), torch.arange(-1.0, 7.0)[:, None])
    strays = [i for i in FROZEN if i != 0]
    out = ebc(KeyedJaggedTensor.from_lists({"f": [[i] for i in strays]})).values()
    assert out.flatten().tolist() == [FROZEN[i] for i in strays]
    code = (
        "import torch; from torchrec.ops.embedding import hash_ids;"
        f"print(hash_ids(torch.tensor({list(FROZEN)}), 7).tolist())"
    )
    elsewhere = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert elsewhere.strip() == str(list(FROZEN.values()))


def test_hash_is_even() -> None:
    config = EmbeddingBagConfig(1, 1, "t", feature_names=["f"], hash_size=16)
    ebc = EmbeddingBagCollection(tables=[config])
    ids = torch.arange(100, 100 + 16 * 500) * 4096  # ids in steps, as keys often are
    ebc(KeyedJaggedTensor(["f"], ids, lengths=torch.ones_like(ids))).values().sum().backward()
    counts = weight(ebc).grad[1:, 0]
    assert counts.sum() == 8000
    assert 400 < counts.min() < counts.max() < 600


def test_contradicting_policies_are_refused() -> None:
    with pytest.raises(ValueError, match="`hash_size` or `id_policy`, not both"):
        EmbeddingBagConfig(ROWS, 2, "t", hash_size=3, id_policy=IdPolicy.CLAMP)
    with pytest.raises(ValueError, match="nonsense"):
        EmbeddingBagConfig(ROWS, 2, "t", id_policy="nonsense")
    with pytest.raises(ValueError, match="`hash_size` of table 't' should be at least 1"):
        EmbeddingBagConfig(ROWS, 2, "t", hash_size=0)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["bags", "sequences"])
def test_activation_checkpointing_counts_once(kind: str, reentrant: bool) -> None:
    config = EmbeddingBagConfig if kind == "bags" else EmbeddingConfig
    collection = EmbeddingBagCollection if kind == "bags" else EmbeddingCollection
    module = collection(tables=[config(10, 4, "t", feature_names=["a"], hash_size=3)])
    kjt = KeyedJaggedTensor.from_lists({"a": [[1, 77], [-5]]})

    def run(x: torch.Tensor) -> torch.Tensor:
        out = module(kjt)
        return (out["a"].values() if kind == "sequences" else out.values()) * x

    for number in (1, 2):
        x = torch.ones(1, requires_grad=True)
        torch.utils.checkpoint.checkpoint(run, x, use_reentrant=reentrant).sum().backward()
        assert x.grad is not None
        assert module.out_of_range_counts() == {"t": 2 * number}
