"""Slot maps: the kernels against the reference, and both against dictionaries."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from torchrec.ops._library import native as library
from torchrec.ops.hash_collision import (
    Eviction,
    Probing,
    assign_slots,
    find_slots,
    hash_of,
    new_totals,
    reference,
    schema,
)

T = torch.tensor
LEAST, MOST = -(2**63), 2**63 - 1
needs_native = pytest.mark.skipif(library is None, reason="the native library is not in use")


@pytest.fixture(params=["in_use", "reference"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with the operators in use, and with the reference in their place."""
    if request.param == "reference":
        if library is None:
            pytest.skip("the reference is in use")
        monkeypatch.setattr(schema, "hash_slots_find_", reference.find_)
        monkeypatch.setattr(schema, "hash_slots_assign_", reference.assign_)


def murmur(x: int) -> int:
    """MurmurHash3_x64_128 of sixteen bytes, as its author wrote it down, in Python's integers."""
    most = 2**64 - 1

    def rotate(x: int, bits: int) -> int:
        return (x << bits | x >> (64 - bits)) & most

    def finish(x: int) -> int:
        x = (x ^ x >> 33) * 0xFF51AFD7ED558CCD & most
        x = (x ^ x >> 33) * 0xC4CEB9FE1A85EC53 & most
        return x ^ x >> 33

    first, second = 0x87C37B91114253D5, 0x4CF5AD432745937F
    h1 = h2 = 0
    h1 ^= rotate((x & most) * first & most, 31) * second & most
    h1 = (rotate(h1, 27) + h2) * 5 + 0x52DCE729 & most
    h2 ^= rotate(0 * second, 33) * first & most
    h2 = (rotate(h2, 31) + h1) * 5 + 0x38495AB5 & most
    h1, h2 = h1 ^ 16, h2 ^ 16
    h1 = h1 + h2 & most
    h2 = h2 + h1 & most
    h1, h2 = finish(h1), finish(h2)
    h1 = h1 + h2 & most
    h2 = h2 + h1 & most
    return h1 ^ h2


# What another implementation of the hash gives for these ids.
KNOWN = {
    0: 0xFFD8B21EB0D00460,
    1: 0xD6290C3E64A73F15,
    2: 0x9050AF3080E325C2,
    -1: 0x7E93CB39C93543A9,
    10**18: 0x99E7B3553E30CF6,
    MOST: 0x771C5084BA30E7D7,
    LEAST: 0x142799D94B9ECEBF,
    12345678901: 0xF2EA869FE0CD9C88,
}


def test_hash_is_the_published_one() -> None:
    assert {i: int(h) % 2**64 for i, h in zip(KNOWN, hash_of(T(list(KNOWN))), strict=True)} == KNOWN
    ids = torch.arange(-300, 300) * 10**15 + 7
    assert [h % 2**64 for h in hash_of(ids).tolist()] == [murmur(i) for i in ids.tolist()]


class Dicts:
    """A slot map, the slow and obvious way."""

    def __init__(self, probing: Probing, slots: int) -> None:
        self.probing, self.slots = probing, slots
        self.owner: dict[int, int] = {}
        self.hour: dict[int, int] = {}
        self.totals = [0] * 5

    def place(self, i: int) -> tuple[list[int], int, int] | None:
        """Return the slots that an id may lie in, the one that it shares, and its key."""
        p, bounds = self.probing, self.probing.bounds.tolist()
        parts = divmod(i, p.ids_per_bucket) if p.ids_per_bucket else divmod(i, p.num_buckets)[::-1]
        if i < 0 and p.ids_per_bucket:
            return None
        bucket, key = parts[0] - p.first_bucket, parts[1] if p.local_ids else i
        if not 0 <= bucket < len(bounds) - 1:
            return None
        size = bounds[bucket + 1] - bounds[bucket] - p.reserved
        slots = [bounds[bucket] + (murmur(key) + n) % size for n in range(min(size, p.max_probe))]
        shared = slots[0]
        if p.reserved:
            shared = bounds[bucket] + size + murmur(key) % p.reserved
        return slots, shared if p.fallback else -1, key

    def look_up(self, i: int) -> int:
        place = self.place(i)
        if place is None:
            return -1
        slots, shared, key = place
        found = [slot for slot in slots if self.owner.get(slot) == key]
        self.totals[0 if found else 3] += 1
        return (found or [shared])[0]

    def assign(self, i: int, hour: int, admitted: bool, threshold: int, rule: str) -> list[int]:
        """Return the id's slot, and behind it the same if it was taken from another id."""
        place = self.place(i)
        if place is None:
            return [-1]
        slots, shared, key = place
        if key != -1 and (found := [s for s in slots if self.owner.get(s) == key]):
            self.totals[0] += 1
            self.hour[found[0]] = max(self.hour[found[0]], hour)
            return found
        taken = []
        if key != -1 and admitted:
            free = [slot for slot in slots if slot not in self.owner]
            limit = {"never": -(2**40), "below": threshold, "oldest": hour}[rule]
            old = sorted((s for s in slots if s not in free), key=lambda s: self.hour[s])
            taken = free[:1] or [s for s in old[:1] if self.hour[s] < limit]
            if taken:
                self.totals[1 if free else 2] += 1
                self.owner[taken[0]], self.hour[taken[0]] = key, hour
                return taken if free else taken * 2
        self.totals[4] += key != -1 and not admitted
        self.totals[3] += 1
        return [shared]


IDS = st.one_of(
    st.integers(-8, 40),
    st.sampled_from([LEAST, LEAST + 1, MOST - 1, MOST]),
    st.integers(LEAST, MOST),
)


class Case(NamedTuple):
    probing: Probing
    batches: list[list[tuple[int, int, bool]]]
    rule: str
    admits: bool


@st.composite
def cases(draw: st.DrawFn) -> Case:
    reserved = draw(st.sampled_from([0, 0, 1, 3]))
    sizes = draw(st.lists(st.integers(reserved + 1, reserved + 12), min_size=1, max_size=4))
    first, behind = draw(st.sampled_from([0, 0, 1, 2])), draw(st.sampled_from([0, 0, 1]))
    probing = Probing(
        T([0, *sizes]).cumsum(0),
        num_buckets=first + len(sizes) + behind,
        first_bucket=first,
        ids_per_bucket=draw(st.sampled_from([0, 0, 7])),
        local_ids=draw(st.booleans()),
        reserved=reserved,
        max_probe=draw(st.sampled_from([1, 2, 3, 128])),
        fallback=draw(st.booleans()),
    )
    arrivals = st.tuples(IDS, st.integers(0, 6), st.booleans())
    batches = draw(st.lists(st.lists(arrivals, max_size=80), max_size=4))
    rule = draw(st.sampled_from(["never", "below", "oldest"]))
    return Case(probing, batches, rule, draw(st.booleans()))


@given(case=cases())
def check_against_dicts(case: Case) -> None:
    size = int(case.probing.bounds[-1])
    identities, metadata = torch.full((size,), -1), torch.full((size,), -1, dtype=torch.int32)
    totals, expected = new_totals(), Dicts(case.probing, size)
    for now, batch in enumerate(case.batches):
        ids = T([i for i, _, _ in batch], dtype=torch.int64)
        hours = [now + hour for _, hour, _ in batch]
        admitted = T([admit for *_, admit in batch], dtype=torch.bool) if case.admits else None
        eviction = Eviction(metadata, T(hours, dtype=torch.int32), now + 2, case.rule == "oldest")
        found = assign_slots(
            identities,
            case.probing,
            ids,
            totals,
            None if case.rule == "never" else eviction,
            admitted,
        )
        wanted = [
            expected.assign(i, hour, admit or not case.admits, now + 2, case.rule)
            for (i, _, admit), hour in zip(batch, hours, strict=True)
        ]
        assert found.slots.tolist() == [slots[0] for slots in wanted]
        assert found.evicted.tolist() == [slots[1] for slots in wanted if len(slots) > 1]
        assert identities.tolist() == [expected.owner.get(slot, -1) for slot in range(size)]
        if case.rule != "never":
            assert metadata.tolist() == [expected.hour.get(slot, -1) for slot in range(size)]
        looked_up = find_slots(identities, case.probing, ids, totals)
        assert looked_up.tolist() == [expected.look_up(i) for i in ids.tolist()]
        assert totals.tolist() == expected.totals


def test_against_dictionaries(backend: None) -> None:
    check_against_dicts()


@needs_native
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("rule", ["never", "below", "oldest"])
@pytest.mark.parametrize("buckets", [1, 3, 40])
def test_large_batches_like_the_reference(threads: int, rule: str, buckets: int) -> None:
    generator = torch.Generator().manual_seed(buckets)
    bounds = T([0, *torch.randint(50, 400, (buckets,), generator=generator).tolist()]).cumsum(0)
    probing = Probing(bounds, buckets, max_probe=24, reserved=5)
    size = int(bounds[-1])
    state: list[Any] = [torch.full((size,), -1), torch.full((size,), -1, dtype=torch.int32), None]
    states = [copy.deepcopy(state), copy.deepcopy(state)]
    for each in states:
        each[2] = new_totals()

    def arguments(each: list[Any]) -> tuple[Any, ...]:
        return each[0], None if rule == "never" else each[1], bounds, each[2]

    reference_assign: Any = reference.assign_
    num_evicted = 0
    for now in range(3):
        ids = torch.randint(-size, size, (9000,), generator=generator) * (10**14 + 7)
        scores = torch.randint(now, now + 4, (9000,), generator=generator).int()
        admitted = torch.rand(9000, generator=generator) < 0.7
        rest = (*probing[2:3], *probing[1:2], *probing[3:])
        given = (ids, scores, admitted, *rest, now + 1, rule == "oldest")
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            fast = schema.hash_slots_assign_(*arguments(states[0]), *given)
            found = find_slots(states[0][0], probing, ids, new_totals())
        finally:
            torch.set_num_threads(before)
        slow = reference_assign(*arguments(states[1]), *given)
        for a, b in zip([*fast, *states[0]], [*slow, *states[1]], strict=True):
            assert torch.equal(a, b)
        num_evicted += slow[1].numel()
        assert torch.equal(found, reference.find_(states[1][0], bounds, new_totals(), ids, *rest))
    assert (num_evicted > 0) == (rule != "never")


def test_search_passes_the_end_of_its_bucket(backend: None) -> None:
    bounds = T([0, 5, 10])
    home = [i for i in range(0, 400, 2) if murmur(i) % 5 == 4][:3]
    identities = torch.full((10,), -1)
    probing = Probing(bounds, 2, max_probe=3)
    slots = assign_slots(identities, probing, T(home), new_totals()).slots
    assert slots.tolist() == [4, 0, 1]
    assert identities.tolist() == [home[1], home[2], -1, -1, home[0], -1, -1, -1, -1, -1]
    assert find_slots(identities, probing, T(home), new_totals()).tolist() == [4, 0, 1]


def test_parts_of_a_map_give_the_slots_of_the_whole(backend: None) -> None:
    sizes = [7, 12, 5, 9]
    bounds = T([0, *sizes]).cumsum(0)
    whole = torch.full((33,), -1)
    ids = torch.randint(-1000, 1000, (60,), generator=torch.Generator().manual_seed(0))
    slots = assign_slots(whole, Probing(bounds, 4), ids, new_totals()).slots
    for first, end in ((0, 1), (1, 3), (3, 4)):
        start = int(bounds[first])
        part = torch.full((int(bounds[end]) - start,), -1)
        probing = Probing(bounds[first : end + 1] - start, 4, first_bucket=first)
        mine = (ids % 4 >= first) & (ids % 4 < end)
        found = assign_slots(part, probing, ids, new_totals()).slots
        assert torch.equal(found, torch.where(mine, slots - start, -1))
        assert torch.equal(part, whole[start : int(bounds[end])])


@pytest.mark.parametrize("shape", [(0,), (2, 3), ()])
def test_slots_have_the_shape_of_the_ids(backend: None, shape: tuple[int, ...]) -> None:
    probing = Probing(T([0, 9]), 1)
    ids = torch.ones(shape, dtype=torch.int64)
    identities = torch.full((9,), -1)
    assert assign_slots(identities, probing, ids, new_totals()).slots.shape == shape
    assert find_slots(identities, probing, ids.expand(shape), new_totals()).shape == shape


def test_inputs_may_be_columns_of_a_table(backend: None) -> None:
    columns = T([[5, 0], [8, 6], [5, 13], [2, 7]])
    scores, admitted = columns.int(), columns > 5
    for take in (lambda x: x[:, 0], lambda x: x[:, 0].contiguous()):
        identities, hours = torch.full((13,), -1), torch.zeros(13, dtype=torch.int32)
        probing = Probing(T([[0, -9], [6, -9], [13, -9]])[:, 0], 2)
        eviction, totals = Eviction(hours, take(scores), 0), new_totals()
        slots, _ = assign_slots(
            identities, probing, take(columns), totals, eviction, take(admitted)
        )
        assert (identities != -1).nonzero().flatten().tolist() == [slots[1]]  # 8 alone is admitted
        assert hours[slots[1]] == 8
        assert totals.tolist() == [0, 1, 0, 3, 3]
        assert torch.equal(find_slots(identities, probing, take(columns), totals), slots)


@needs_native
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bounds": T([0, 11])}, "of the 10 slots"),
        ({"bounds": T([-1, 10])}, "of the 10 slots"),
        ({"bounds": T([5, 5])}, "of the 10 slots"),
        ({"bounds": T([5, -(2**63)])}, "of the 10 slots"),
        ({"bounds": T([0])}, "of the 10 slots"),
        ({"bounds": T([0, 10], dtype=torch.int32)}, "`bounds` should be 2 contiguous"),
        ({"reserved": 10}, "more than are `reserved`"),
        ({"reserved": -1}, "more than are `reserved`"),
        ({"max_probe": 0}, "`max_probe` should be at least 1"),
        ({"num_buckets": 0}, "`num_buckets`"),
        ({"first_bucket": 2**62}, "`num_buckets`"),
        ({"first_bucket": -1}, "`num_buckets`"),
        ({"num_buckets": 2**63}, "`num_buckets`"),
        ({"ids_per_bucket": -5}, "`num_buckets`"),
    ],
    ids=lambda value: "-".join(f"{k}" for k in value) if isinstance(value, dict) else "",
)
def test_numbers_that_do_not_fit_reach_no_kernel(changed: dict[str, Any], message: str) -> None:
    probing = Probing(T([0, 10]), 1)._replace(**changed)
    identities, ids = torch.full((10,), -1), T([1, 2])
    with pytest.raises(ValueError, match=message):
        find_slots(identities, probing, ids, new_totals())
    with pytest.raises(ValueError, match=message):
        assign_slots(identities, probing, ids, new_totals())
    assert identities.tolist() == [-1] * 10


@needs_native
@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("metadata", torch.zeros(9, dtype=torch.int32)),
        ("metadata", torch.zeros(10)),
        ("scores", torch.zeros(3, dtype=torch.int32)),
        ("scores", torch.zeros(2, dtype=torch.int64)),
        ("admitted", torch.zeros(1, dtype=torch.bool)),
        ("totals", torch.zeros(4, dtype=torch.int64)),
        ("ids", torch.zeros(2)),
        ("identities", torch.zeros(20, dtype=torch.int64)[::2]),
    ],
    ids=lambda value: value if isinstance(value, str) else str(tuple(value.shape)),
)
def test_tensors_that_do_not_fit_reach_no_kernel(name: str, tensor: Tensor) -> None:
    given = {
        "identities": torch.full((10,), -1),
        "metadata": torch.zeros(10, dtype=torch.int32),
        "ids": T([1, 2]),
        "scores": torch.zeros(2, dtype=torch.int32),
        "admitted": torch.ones(2, dtype=torch.bool),
        "totals": new_totals(),
        name: tensor,
    }
    eviction = Eviction(given["metadata"], given["scores"], 0)
    with pytest.raises(ValueError, match=f"`{name}` should be .* contiguous elements"):
        assign_slots(
            given["identities"],
            Probing(T([0, 10]), 1),
            given["ids"],
            given["totals"],
            eviction,
            given["admitted"],
        )
