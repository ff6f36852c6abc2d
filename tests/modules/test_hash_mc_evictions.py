"""Lifetimes of ids in maps by multi-probe hashing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from torchrec import JaggedTensor
from torchrec.modules import hash_mc_evictions
from torchrec.modules.hash_mc_evictions import (
    HashZchEvictionConfig,
    HashZchEvictionModule,
    HashZchEvictionPolicyName,
    HashZchEvictionScorer,
    HashZchOptEvictionModule,
    HashZchPerFeatureTtlScorer,
    HashZchSingleTtlScorer,
    HashZchThresholdEvictionModule,
    get_eviction_module,
    get_eviction_scorer,
    get_kernel_from_policy,
)

CPU, T = torch.device("cpu"), torch.tensor
SINGLE = HashZchEvictionPolicyName.SINGLE_TTL_EVICTION
PER_FEATURE = HashZchEvictionPolicyName.PER_FEATURE_TTL_EVICTION
LRU = HashZchEvictionPolicyName.LRU_EVICTION


@pytest.fixture(autouse=True)
def at_hour_500(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        hash_mc_evictions, "time", SimpleNamespace(time=lambda: 500 * 3600 + 3599.9)
    )


def ids_of(*features: int | None) -> JaggedTensor:
    ids = torch.arange(len(features))
    weights = None if None in features else T(features)
    return JaggedTensor(ids, weights, T([len(features)]))


@pytest.mark.parametrize(
    ("policy", "config", "features", "scores"),
    [
        (SINGLE, HashZchEvictionConfig(["f"], single_ttl=7), (None, None), [507, 507]),
        (SINGLE, HashZchEvictionConfig([], single_ttl=0), (None,), [500]),
        (LRU, HashZchEvictionConfig(["f"], single_ttl=2), (None,), [502]),
        (LRU, HashZchEvictionConfig(["f"]), (None, None), [500, 500]),
        (PER_FEATURE, HashZchEvictionConfig(["f", "g"], None, [3, 9]), (1, 0, 1), [509, 503, 509]),
    ],
    ids=["single", "single-0", "lru-ttl", "lru", "per-feature"],
)
def test_scores_and_threshold(policy, config, features, scores) -> None:
    jt = ids_of(*features)
    for found in (
        HashZchEvictionModule(policy, CPU, config)(jt),
        HashZchThresholdEvictionModule(policy, config)(jt, CPU),
        get_eviction_module(policy, config)(jt, CPU),
    ):
        assert found[0].dtype is torch.int32
        assert found[0].tolist() == scores
        assert found[1] == 500
    scorer = get_eviction_scorer(policy, config)
    assert scorer.gen_score(jt, CPU).tolist() == scores
    assert scorer.gen_threshold() == 500


def test_lru_needs_no_lifetimes() -> None:
    assert HashZchEvictionModule(LRU, CPU, None)(ids_of(None))[0].tolist() == [500]


def test_what_keeps_no_hours() -> None:
    scorer = HashZchEvictionScorer(HashZchEvictionConfig(["f"], single_ttl=3))
    assert scorer.gen_score(ids_of(None), CPU).numel() == 0
    assert scorer.gen_threshold() == -1
    assert HashZchOptEvictionModule(LRU)(ids_of(None), CPU) == (None, -1)


def test_numbers_of_policies() -> None:
    assert [get_kernel_from_policy(p) for p in (None, SINGLE, PER_FEATURE, LRU)] == [0, 0, 0, 1]
    assert {p.value for p in HashZchEvictionPolicyName} == {
        p.name for p in (SINGLE, PER_FEATURE, LRU)
    }


@pytest.mark.parametrize(
    ("policy", "config", "error", "message"),
    [
        (SINGLE, HashZchEvictionConfig(["f"]), ValueError, "`single_ttl` of SINGLE_TTL_EVICTION"),
        (SINGLE, HashZchEvictionConfig(["f"], -1), ValueError, "`single_ttl` should be at least 0"),
        (SINGLE, HashZchEvictionConfig(["f"], 2**31), ValueError, "`single_ttl` should be"),
        (SINGLE, HashZchEvictionConfig(["f"], 1.5), TypeError, "`single_ttl` should be an integer"),
        (SINGLE, None, TypeError, "should be a HashZchEvictionConfig. Received None"),
        (PER_FEATURE, HashZchEvictionConfig(["f"]), ValueError, "`per_feature_ttl` should have"),
        (PER_FEATURE, HashZchEvictionConfig(["f"], None, [1, 2]), ValueError, r"Received \[1, 2\]"),
        (PER_FEATURE, HashZchEvictionConfig(["f"], None, [-2]), ValueError, "of feature 'f'"),
        ("LRU_EVICTION", HashZchEvictionConfig(["f"]), TypeError, "`policy_name` should be"),
    ],
    ids=lambda value: "",
)
def test_what_is_refused(policy, config, error, message) -> None:
    with pytest.raises(error, match=message):
        HashZchEvictionModule(policy, CPU, config)


def test_features_have_to_be_told_apart() -> None:
    scorer = HashZchPerFeatureTtlScorer(HashZchEvictionConfig(["f", "g"], None, [3, 9]))
    with pytest.raises(ValueError, match=r"`feature` should have weights.*\['f', 'g'\]"):
        scorer.gen_score(ids_of(None), CPU)


@pytest.mark.parametrize("number", [-1, 2])
def test_numbers_that_no_feature_has(number) -> None:
    scorer = HashZchPerFeatureTtlScorer(HashZchEvictionConfig(["f", "g"], None, [3, 9]))
    ids = JaggedTensor(torch.tensor([7, 8]), torch.tensor([1, number]), torch.tensor([2]))
    with pytest.raises(IndexError, match=rf"weights in \[0, 2\).*\['f', 'g'\].*Received {number}"):
        scorer.gen_score(ids, CPU)


def test_scorers_by_name() -> None:
    config = HashZchEvictionConfig(["f"], 1, [1])
    kinds = [type(get_eviction_scorer(policy, config)) for policy in (SINGLE, PER_FEATURE, LRU)]
    assert kinds == [HashZchSingleTtlScorer, HashZchPerFeatureTtlScorer, HashZchSingleTtlScorer]
