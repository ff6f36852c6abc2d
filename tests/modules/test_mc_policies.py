"""Built-in policies: on operators, through the metadata contract, and against dictionaries."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    MCHEvictionPolicy,
    MCHEvictionPolicyMetadataInfo,
    MCHManagedCollisionModule,
    average_threshold_filter,
    dynamic_threshold_filter,
    probabilistic_threshold_filter,
)
from torchrec.sparse.jagged_tensor import JaggedTensor

FIRST, LAST = -(2**63), 2**63 - 1


# The same policies as classes of a user's: these go through the metadata contract.
class OwnLFU(LFU_EvictionPolicy):
    pass


class OwnLRU(LRU_EvictionPolicy):
    pass


class OwnDistanceLFU(DistanceLFU_EvictionPolicy):
    pass


POLICIES = {
    "lfu": (LFU_EvictionPolicy, OwnLFU, lambda count, last, now: count),
    "lru": (LRU_EvictionPolicy, OwnLRU, lambda count, last, now: last),
    "distance": (
        DistanceLFU_EvictionPolicy,
        OwnDistanceLFU,
        lambda count, last, now: count / (now - last + 1),
    ),
}
FILTERS = {
    "all": None,
    "average": average_threshold_filter,
    "twice": lambda counts: (counts > 1, 1),
}


class Dictionaries:
    """The rules, one id at a time."""

    def __init__(self, rows: int, interval: int, score, admits) -> None:
        self.interval, self.score, self.admits = interval, score, admits
        self.held: dict[int, list[int]] = {}  # id -> row, count, last batch
        self.free = list(range(rows))
        self.rows, self.now = rows, 0
        self.came: dict[int, list[int]] = {}  # id -> count, last batch: since the last eviction
        self.changed: list[int] | None = None

    def step(self, ids: list[int]) -> list[int]:
        self.now += 1
        self.changed = None
        for i in ids:
            self.came[i] = [self.came.get(i, [0])[0] + 1, self.now]
        if self.now % self.interval == 0:
            self.evict()
        return [self.held[i][0] if i in self.held else self.rows for i in ids]

    def evict(self) -> None:
        for i, (count, last) in self.came.items():
            if i in self.held:
                self.held[i][1] += count
                self.held[i][2] = last
        admitted = self.came
        if self.admits is not None:
            # In the order in which the filter is to see them: by row, then by appearance.
            known = sorted((i for i in self.came if i in self.held), key=lambda i: self.held[i][0])
            order = known + [i for i in self.came if i not in self.held]
            mask, _ = self.admits(torch.tensor([self.came[i][0] for i in order], dtype=torch.int64))
            admitted = {i: self.came[i] for i, ok in zip(order, mask.tolist(), strict=True) if ok}
        candidates = [(i, *v) for i, v in admitted.items() if i not in self.held]
        ranked = [
            (-self.score(count, last, self.now), 0, row, i)
            for i, (row, count, last) in self.held.items()
        ] + [
            (-self.score(count, last, self.now), 1, place, i)
            for place, (i, count, last) in enumerate(candidates)
        ]
        stay = {entry[3] for entry in sorted(ranked)[: self.rows]}
        lost = sorted(self.held.pop(i)[0] for i in list(self.held) if i not in stay)
        winners = [c for c in candidates if c[0] in stay]
        free = sorted(self.free)[: len(winners) - len(lost)]
        self.free = [row for row in self.free if row not in free]
        self.changed = free + lost
        for (i, count, last), row in zip(winners, self.changed, strict=True):
            self.held[i] = [row, count, last]
        self.came = {}


def batch_of(ids: list[int]) -> dict[str, JaggedTensor]:
    values = torch.tensor(ids, dtype=torch.int64)
    return {"f": JaggedTensor(values, lengths=torch.tensor([len(ids)]))}


IDS = st.integers(-3, 8) | st.sampled_from([FIRST, LAST, FIRST + 1, LAST - 1, 10**12])


@pytest.mark.parametrize("filtered", FILTERS)
@pytest.mark.parametrize("policy", POLICIES)
@given(
    rows=st.integers(1, 7),
    interval=st.integers(1, 3),
    batches=st.lists(st.lists(IDS, max_size=12), max_size=12),
)
def test_built_in_policies_agree_with_dictionaries(policy, filtered, rows, interval, batches):
    built_in, own, score = POLICIES[policy]
    admits = FILTERS[filtered]
    quick, contract = [
        MCHManagedCollisionModule(
            rows + 1, "cpu", cls(threshold_filtering_func=admits), interval, name="t"
        )
        for cls in (built_in, own)
    ]
    slow = Dictionaries(rows, interval, score, admits)
    until_an_eviction = [[]] * (-len(batches) % interval)
    for ids in batches + until_an_eviction:
        expected = slow.step(ids)
        for module in (quick, contract):
            assert module(batch_of(ids))["f"].values().tolist() == expected
            changed = module.evict()
            assert (None if changed is None else changed.tolist()) == slow.changed
            assert int(module.open_slots()) == rows - len(slow.held)
            module.validate_state()
        assert quick.stats() == contract.stats()
    held = {i: row for i, (row, _, _) in slow.held.items()}
    for module in (quick, contract):
        found_rows, found_ids = module.held()
        assert dict(zip(found_ids.tolist(), found_rows.tolist(), strict=True)) == held
        for name, place in (("counts", 1), ("last_access_iter", 2)):
            if name in module._rows.metadata:
                kept = module._rows.metadata[name].tolist()
                assert [kept[row] for row in found_rows.tolist()] == [
                    slow.held[i][place] for i in found_ids.tolist()
                ]


@pytest.mark.parametrize("policy", POLICIES)
def test_chance_is_drawn_alike_on_both_ways(policy):
    built_in, own, _ = POLICIES[policy]

    def admits(counts):
        return probabilistic_threshold_filter(counts, 0.3)

    results = []
    for cls in (built_in, own):
        torch.manual_seed(3)
        module = MCHManagedCollisionModule(9, "cpu", cls(threshold_filtering_func=admits), 2)
        ids = torch.randint(0, 40, (30, 25), generator=torch.Generator().manual_seed(1))
        results.append([module(batch_of(row.tolist()))["f"].values().tolist() for row in ids])
    assert results[0] == results[1]


def test_filters_are_what_their_formulas_say():
    counts = torch.tensor([1, 5, 10, 100])
    mask, threshold = average_threshold_filter(counts)
    assert (mask.tolist(), float(threshold)) == ([False, False, False, True], 29.0)
    mask, threshold = dynamic_threshold_filter(counts)
    assert (mask.tolist(), float(threshold)) == ([False] * 4, 290.0)
    mask, threshold = dynamic_threshold_filter(counts, 0.25)
    assert (mask.tolist(), float(threshold)) == ([False, False, True, True], 7.25)
    # Strictly greater: ids that all came as often are not admitted.
    assert not average_threshold_filter(torch.tensor([2, 2]))[0].any()
    nothing = torch.empty(0, dtype=torch.int64)
    for function in (
        average_threshold_filter,
        dynamic_threshold_filter,
        probabilistic_threshold_filter,
    ):
        assert function(nothing)[0].shape == (0,)


def test_probabilistic_filter_admits_as_often_as_it_says():
    counts = torch.tensor([1, 10, 100]).repeat_interleave(20_000)
    mask, _ = probabilistic_threshold_filter(counts, 0.01)
    expected = 1 - 0.99 ** torch.tensor([1.0, 10, 100])
    assert torch.allclose(mask.view(3, -1).double().mean(1).float(), expected, atol=0.01)


def test_an_id_that_holds_a_row_need_not_pass_the_filter():
    policy = LFU_EvictionPolicy(threshold_filtering_func=lambda counts: (counts > 2, 2))
    module = MCHManagedCollisionModule(3, "cpu", policy, 1)
    module(batch_of([5, 5, 5]))
    module(batch_of([5]))  # counted, though once is not enough to be given a row
    assert module._rows.metadata["counts"].tolist() == [4, 0]


class Newest(MCHEvictionPolicy):
    """Written from scratch against the contract: the ids of the last batch hold the rows."""

    def __init__(self, answer=None) -> None:
        super().__init__(self.metadata_info)
        self.answer = answer
        self.calls: Counter[str] = Counter()

    @property
    def metadata_info(self):
        return [MCHEvictionPolicyMetadataInfo("born", True, True)]

    def record_history_metadata(self, current_iter, incoming_ids, history_metadata):
        self.calls["record"] += 1
        assert history_metadata["born"].tolist() == [0] * incoming_ids.numel()
        history_metadata["born"].copy_(torch.full_like(incoming_ids, current_iter))

    def coalesce_history_metadata(
        self,
        current_iter,
        history_metadata,
        unique_ids_counts,
        unique_inverse_mapping,
        additional_ids=None,
        threshold_mask=None,
    ):
        assert int(unique_ids_counts.sum()) == unique_inverse_mapping.numel()
        born = torch.zeros_like(unique_ids_counts)
        born.scatter_reduce_(
            0, unique_inverse_mapping, history_metadata["born"], "amin", include_self=False
        )
        return {"born": born}

    def update_metadata_and_generate_eviction_scores(
        self,
        current_iter,
        mch_size,
        coalesced_history_argsort_mapping,
        coalesced_history_sorted_unique_ids_counts,
        coalesced_history_mch_matching_elements_mask,
        coalesced_history_mch_matching_indices,
        mch_metadata,
        coalesced_history_metadata,
    ):
        counts = coalesced_history_sorted_unique_ids_counts
        assert counts.tolist() == sorted(counts.tolist(), reverse=True)
        assert mch_metadata["born"].shape == (mch_size,)
        if self.answer is not None:
            return self.answer
        born = coalesced_history_metadata["born"][coalesced_history_argsort_mapping]
        new = born[~coalesced_history_mch_matching_elements_mask]
        taken = min(mch_size - 1, new.numel())
        rows = mch_metadata["born"][: mch_size - 1].argsort(stable=True)[:taken]
        chosen = torch.arange(taken)
        mch_metadata["born"][rows] = new[chosen]
        return rows, chosen


def test_a_policy_of_ones_own_chooses():
    module = MCHManagedCollisionModule(3, "cpu", Newest(), 1, name="t")
    assert module(batch_of([1, 2, 2]))["f"].values().tolist() == [1, 0, 0]  # 2 came more often
    assert module(batch_of([3]))["f"].values().tolist() == [0]
    assert module(batch_of([1, 2, 3]))["f"].values().tolist() == [2, 1, 0]
    assert module.evict().tolist() == [0, 1]
    assert module._rows.metadata["born"].tolist() == [2, 3]
    module.validate_state()


def long(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((long(2), long(0)), r"map 't' should return .* Received 2 among rows to evict"),
        ((long(0), long(5)), r"Received 5 among ids to give rows to, of which there are 2"),
        ((long(0, 0), long(0, 1)), r"Received rows to evict of which some come twice"),
        ((long(0, 1), long(0)), r"Received 2 rows and 1 ids"),
        ((torch.tensor([0.0]), long(0)), r"Received rows to evict of dtype torch.float32"),
    ],
)
def test_a_policy_that_does_not_fit_is_named(answer, message):
    module = MCHManagedCollisionModule(3, "cpu", Newest(answer), 1, name="t")
    with pytest.raises(ValueError, match=message):
        module(batch_of([1, 2]))


def test_a_filter_that_returns_no_mask_is_refused():
    for cls in (LFU_EvictionPolicy, OwnLFU):
        policy = cls(threshold_filtering_func=lambda counts: (counts, 0))
        module = MCHManagedCollisionModule(3, "cpu", policy, 1, name="t")
        with pytest.raises(
            ValueError, match=r"of map 't' should return a bool mask of shape \(2,\)"
        ):
            module(batch_of([1, 2]))


def test_constructors_check():
    with pytest.raises(TypeError, match="`threshold_filtering_func` should be a function"):
        LFU_EvictionPolicy(threshold_filtering_func=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`decay_exponent` should be a number. Received 'x'"):
        DistanceLFU_EvictionPolicy(decay_exponent="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`decay_exponent` should be a number. Received nan"):
        DistanceLFU_EvictionPolicy(decay_exponent=float("nan"))

    class Taken(OwnLFU):
        @property
        def metadata_info(self):
            return [MCHEvictionPolicyMetadataInfo("ids", True, False)]

    with pytest.raises(ValueError, match="of map 't' should be another: 'ids' is taken"):
        MCHManagedCollisionModule(3, "cpu", Taken(), 1, name="t")
