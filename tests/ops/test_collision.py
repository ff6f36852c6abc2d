"""Id maps: the kernels against the reference, and both against a dict."""

from __future__ import annotations

import copy
import pickle

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from torchrec.ops import collision
from torchrec.ops._library import native as library
from torchrec.ops.collision import History, IdMap, reference, schema

T = torch.tensor
LEAST, MOST = -(2**63), 2**63 - 1
EXTREMES = [LEAST, LEAST + 1, -1, 0, 1, MOST - 1, MOST]


def id_of(hashed: int) -> int:
    """Return the id of a hash: the way back through `reference.hash_of`."""
    x = hashed ^ (hashed >> 32)
    x = x * pow(0xC4CEB9FE1A85EC53, -1, 2**64) % 2**64
    x = x ^ (x >> 29) ^ (x >> 58)
    x = x * pow(0xFF51AFD7ED558CCD, -1, 2**64) % 2**64
    x = x ^ (x >> 32)
    return x - 2**64 if x >= 2**63 else x


# Of all of these a search begins at the last group of an index, so that they fill the first as well; half of them have
# the same bits in their entries, too.
CLASHING = [id_of(2**64 - 1 - (i % 2) - (i << 40)) for i in range(60)]
needs_native = pytest.mark.skipif(library is None, reason="the native library is not in use")
OPERATORS = ["find", "count_", "replace_", "insert_", "erase_", "rebuild_"]


def filled(ids: list[int], rows: list[int], size: int) -> IdMap:
    id_map = collision.new_id_map(size)
    collision.insert_ids(id_map, T(ids, dtype=torch.int64), T(rows, dtype=torch.int64))
    return id_map


@pytest.fixture(params=["in_use", "reference"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with the operators in use, and with the reference in their place."""
    if request.param == "reference":
        if library is None:
            pytest.skip("the reference is in use")
        monkeypatch.setattr(schema, "kernels", None)
        for name in OPERATORS:
            monkeypatch.setattr(schema, f"id_map_{name}", getattr(reference, name))
        monkeypatch.setattr(collision, "_exchange", collision._compose_exchange)


def held(id_map: IdMap) -> dict[int, int]:
    rows = id_map.occupied.nonzero().squeeze(1)
    return dict(zip(id_map.ids[rows].tolist(), rows.tolist(), strict=True))


def contents(history: History) -> list[list[int]]:
    n = int(history.size)
    return [history.ids[:n].tolist(), history.counts[:n].tolist(), history.last[:n].tolist()]


def assert_sound(id_map: IdMap) -> None:
    """Each held row is found by its id, and the index has an entry for each of them and no other."""
    expected = held(id_map)
    ids = T(list(expected), dtype=torch.int64)
    assert collision.find_ids(id_map, ids).tolist() == list(expected.values())
    assert int((id_map.entries != 0).sum()) == len(expected)


class Dict:
    """The map, the slow and obvious way."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.rows: dict[int, int] = {}
        self.counts = [0] * size
        self.last = [0] * size
        self.history: dict[int, list[int]] = {}
        self.totals = [0, 0, 0]

    def count(self, ids: list[int], now: int, room: int) -> list[int]:
        for i in ids:
            row = self.rows.get(i)
            self.totals[row is None] += 1
            if row is not None:
                self.counts[row] += 1
                self.last[row] = now
            elif i in self.history or len(self.history) < room:
                entry = self.history.setdefault(i, [0, 0])
                entry[0] += 1
                entry[1] = now
            else:
                self.totals[2] += 1
        return [self.rows.get(i, -1) for i in ids]

    def replace(self, scores: list[float], candidates: dict[int, float]) -> list[list[int]]:
        of_row = {row: i for i, row in self.rows.items()}
        ranked = [(-scores[row], 0, row) for row in of_row]
        ranked += [(-score, 1, k) for k, score in enumerate(candidates.values())]
        stays = {entry[1:] for entry in sorted(ranked)[: self.size]}
        lost = [row for row in sorted(of_row) if (0, row) not in stays]
        chosen = [k for k in range(len(candidates)) if (1, k) in stays]
        free = [row for row in range(self.size) if row not in of_row]
        rows = free[: len(chosen) - len(lost)] + lost
        for row in lost:
            del self.rows[of_row[row]]
        names = list(candidates)
        for row, k in zip(rows, chosen, strict=True):
            self.rows[names[k]] = row
        return [rows, chosen, [of_row[row] for row in lost]]


IDS = st.one_of(
    st.integers(0, 12),
    st.sampled_from(EXTREMES),
    st.sampled_from(CLASHING),
    st.integers(LEAST, MOST),
)


class AgainstDict(RuleBasedStateMachine):
    """Any sequence of calls on any of the backends does what a dict does."""

    @initialize(size=st.one_of(st.integers(1, 4), st.just(42)), room=st.integers(1, 50))
    def start(self, size: int, room: int) -> None:
        self.dict, self.map = Dict(size), collision.new_id_map(size)
        self.history, self.room = collision.new_history(1), room
        self.counts, self.last = (torch.zeros(size, dtype=torch.int64) for _ in range(2))
        self.totals = torch.zeros(3, dtype=torch.int64)
        self.now = 0

    @rule(ids=st.lists(IDS, max_size=50), missing=st.sampled_from([-1, 0, 5]))
    def count(self, ids: list[int], missing: int) -> None:
        self.now += 1
        self.history = collision.reserve(self.history, len(ids), self.room)
        rows = collision.count_ids(
            self.map,
            self.history,
            T(ids, dtype=torch.int64),
            self.now,
            self.totals,
            counts=self.counts,
            last=self.last,
            missing=missing,
        )
        expected = self.dict.count(ids, self.now, self.room)
        assert rows.tolist() == [missing if row < 0 else row for row in expected]

    @rule(policy=st.sampled_from(["lfu", "lru", "distance", "negative"]))
    def evict(self, policy: str) -> None:
        n = int(self.history.size)
        ids, counts, last = (tensor[:n] for tensor in self.history[:3])

        def scores(counts: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
            age = (self.now - last + 1).double()
            kinds = {"lfu": counts, "lru": last, "distance": counts / age, "negative": -counts}
            return kinds[policy]

        own, theirs = scores(self.counts, self.last), scores(counts, last)
        candidates = dict(zip(ids.tolist(), theirs.tolist(), strict=True))
        expected = self.dict.replace(own.tolist(), candidates)
        done = collision.replace_ids(self.map, own, ids, theirs)
        assert [part.tolist() for part in done] == expected
        self.counts[done.rows] = counts[done.chosen]
        self.last[done.rows] = last[done.chosen]
        for row, k in zip(*expected[:2], strict=True):
            entry = list(self.dict.history.values())[k]
            self.dict.counts[row], self.dict.last[row] = entry
        self.dict.history.clear()
        collision.clear_history(self.history)

    @rule(data=st.data(), ids=st.lists(IDS, max_size=20), missing=st.sampled_from([-1, 0, 42]))
    def exchange(self, data: st.DataObject, ids: list[int], missing: int) -> None:
        came = dict(self.dict.history)
        mask = st.lists(st.booleans(), min_size=len(came), max_size=len(came))
        admitted = data.draw(st.none() | mask)
        competing = [i for k, i in enumerate(came) if admitted is None or admitted[k]]
        batch = T([*ids, *list(came)[:9]], dtype=torch.int64)
        found = collision.find_ids(self.map, batch, missing)
        rows, chosen, lost = self.dict.replace(
            self.counts.tolist(), {i: came[i][0] for i in competing}
        )
        done = collision.exchange_ids(
            self.map,
            self.history,
            self.counts,
            collision.counted_in(self.history).counts,
            batch,
            found,
            counts=self.counts,
            last=self.last,
            admitted=None if admitted is None else T(admitted, dtype=torch.bool),
            missing=missing,
        )
        assert done.rows.tolist() == rows
        assert done.evicted == len(lost)
        assert found.tolist() == [self.dict.rows.get(i, missing) for i in batch.tolist()]
        for row, k in zip(rows, chosen, strict=True):
            self.dict.counts[row], self.dict.last[row] = came[competing[k]]
        self.dict.history.clear()

    @rule(data=st.data())
    def insert(self, data: st.DataObject) -> None:
        free = [row for row in range(self.dict.size) if not self.map.occupied[row]]
        ids = data.draw(st.lists(IDS, unique=True, max_size=len(free)))
        ids = [i for i in ids if i not in self.dict.rows and i not in self.dict.history]
        rows = data.draw(st.permutations(free))[: len(ids)]
        collision.insert_ids(self.map, T(ids, dtype=torch.int64), T(rows, dtype=torch.int64))
        self.dict.rows.update(zip(ids, rows, strict=True))

    @precondition(lambda self: self.dict.rows)
    @rule(data=st.data())
    def erase(self, data: st.DataObject) -> None:
        ids = data.draw(st.lists(st.sampled_from(sorted(self.dict.rows)), unique=True))
        rows = [self.dict.rows.pop(i) for i in ids]
        collision.erase_rows(self.map, T(rows, dtype=torch.int64))

    @rule()
    def save_and_load(self) -> None:
        self.map = IdMap(self.map.ids.clone(), self.map.occupied.clone(), self.map.entries.clone())
        self.map.entries.fill_(77)
        collision.rebuild_index(self.map)
        n = int(self.history.size)
        self.history = collision.restore_history(*(tensor[:n] for tensor in self.history[:3]))

    @rule()
    def copy(self) -> None:
        self.map = copy.deepcopy(self.map)
        self.history = pickle.loads(pickle.dumps(self.history))

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "dict"):
            return
        assert held(self.map) == self.dict.rows
        assert_sound(self.map)
        assert self.totals.tolist() == self.dict.totals
        for row in self.dict.rows.values():
            assert self.counts[row] == self.dict.counts[row]
            assert self.last[row] == self.dict.last[row]
        columns = [
            list(self.dict.history),
            *([e[k] for e in self.dict.history.values()] for k in (0, 1)),
        ]
        assert contents(self.history) == columns


@pytest.mark.hypothesis
def test_any_sequence_of_calls_does_what_a_dict_does(backend: None) -> None:
    run_state_machine_as_test(AgainstDict, settings=settings(stateful_step_count=25))


def test_hashes_are_one_to_one_and_spread():
    hashes = [2**64 - 1, 0, 1, 2**63, 12345678901234567890]
    ids = T([id_of(h) for h in hashes])
    assert [h % 2**64 for h in reference.hash_of(ids).tolist()] == hashes
    top = reference.hash_of(torch.arange(1 << 16)) >> 56
    assert top.unique().numel() == 256
    assert int(top.unique(return_counts=True)[1].max()) < 2 * 256


@pytest.mark.usefixtures("backend")
def test_clashing_ids_are_told_apart():
    ids, rows = T(CLASHING), torch.randperm(60)
    id_map = collision.new_id_map(60)
    collision.insert_ids(id_map, ids, rows)
    assert collision.find_ids(id_map, ids).tolist() == rows.tolist()
    assert collision.find_ids(
        id_map, T([CLASHING[0] + 1, id_of(2**64 - 1 - (99 << 40))])
    ).tolist() == [-1, -1]
    order = torch.randperm(60)
    for part in order.split(7):
        collision.erase_rows(id_map, rows[part])
        assert_sound(id_map)
    assert not id_map.entries.any()


@pytest.mark.usefixtures("backend")
def test_extremes_are_ids_like_others():
    id_map = filled(EXTREMES, [6, 5, 4, 3, 2, 1, 0], 7)
    assert collision.find_ids(id_map, T(EXTREMES)).tolist() == [6, 5, 4, 3, 2, 1, 0]
    empty = collision.new_id_map(7)
    assert collision.find_ids(empty, T([*EXTREMES, 0])).tolist() == [-1] * 8


@pytest.mark.usefixtures("backend")
def test_one_row_empty_batches_and_full_histories():
    id_map, history = collision.new_id_map(1), collision.new_history(1)
    counts, totals = torch.zeros(1, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    none = torch.empty(0, dtype=torch.int64)
    assert collision.count_ids(id_map, history, none, 1, totals).shape == (0,)
    assert [part.tolist() for part in collision.replace_ids(id_map, counts, none, none)] == [
        [],
        [],
        [],
    ]
    ids = T([4, 4, 4, 9, 4, 9])
    assert collision.count_ids(id_map, history, ids, 2, totals, missing=7).tolist() == [7] * 6
    assert contents(history) == [[4], [4], [2]]
    assert totals.tolist() == [0, 6, 2]
    done = collision.replace_ids(id_map, counts, history.ids, history.counts)
    assert [part.tolist() for part in done] == [[0], [0], []]
    assert collision.find_ids(id_map, ids).tolist() == [0, 0, 0, -1, 0, -1]
    assert collision.count_ids(id_map, history, T([4] * 9), 3, totals, counts=counts).sum() == 0
    assert counts.tolist() == [9]
    # A full map, and a candidate whose score is no higher.
    for score, evicted in ((9, []), (10, [4])):
        done = collision.replace_ids(id_map, counts, T([5]), T([score]))
        assert done.evicted.tolist() == evicted


@pytest.mark.usefixtures("backend")
def test_equal_scores_go_to_those_who_came_first():
    id_map = filled([10, 20, 30], [2, 0, 1], 4)
    done = collision.replace_ids(id_map, T([5, 5, 5, 99]), T([7, 8, 9]), T([5, 5, 5]))
    assert [part.tolist() for part in done] == [[3], [0], []]
    done = collision.replace_ids(id_map, T([5, 5, 5, 5]), T([1, 2, 3]), T([6, 5, 6]))
    assert [part.tolist() for part in done] == [[2, 3], [0, 2], [10, 7]]


@pytest.mark.usefixtures("backend")
def test_scores_of_any_kind():
    inf, nan = float("inf"), float("nan")
    id_map = filled([10, 20, 30], [0, 1, 2], 3)
    scores = T([0.0, -inf, nan], dtype=torch.float64)
    offered = T([-0.0, -1e300, -nan, 5e-324], dtype=torch.float64)
    done = collision.replace_ids(id_map, scores, T([1, 2, 3, 4]), offered)
    assert [part.tolist() for part in done] == [[0, 1], [2, 3], [10, 20]]
    whole = T([LEAST, MOST, 0])
    done = collision.replace_ids(id_map, whole, T([1, 2]), T([LEAST + 1, LEAST]))
    assert [part.tolist() for part in done] == [[0], [0], [3]]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.uint8], ids=str)
def test_ids_of_other_integers_and_strides(dtype):
    id_map, history = filled([5, 7], [2, 0], 4), collision.new_history(5)
    ids = T([[5, 9], [7, 9], [8, 9]], dtype=dtype)[:, 0]
    assert collision.find_ids(id_map, ids).tolist() == [2, 0, -1]
    totals = torch.zeros(3, dtype=torch.int64)
    assert collision.count_ids(id_map, history, ids, 1, totals).tolist() == [2, 0, -1]
    assert collision.find_ids(id_map, T([[5, 9], [7, 9]])).tolist() == [[2, -1], [0, -1]]


def stream(steps: int, size: int) -> list[torch.Tensor]:
    """Return skewed batches, whose ids are all over the integers."""
    ranks = [(4000 ** torch.rand(size, dtype=torch.float64)).long() for _ in range(steps)]
    return [reference.hash_of(r + 100 * step) for step, r in enumerate(ranks)]


def run(batches: list[torch.Tensor], rows: int, policy: str) -> list[object]:
    """Return all that can be seen of a map that goes through batches."""
    id_map, history = collision.new_id_map(rows), collision.new_history(1)
    counts, last = (torch.zeros(rows, dtype=torch.int64) for _ in range(2))
    totals, seen = torch.zeros(3, dtype=torch.int64), []
    for now, ids in enumerate(batches, 1):
        history = collision.reserve(history, ids.numel())
        found = collision.count_ids(id_map, history, ids, now, totals, counts=counts, last=last)
        seen.append(found.tolist())
        if now % 3 == 0:
            n = int(history.size)
            new = [tensor[:n] for tensor in history[:3]]
            scores = {"lfu": (counts, new[1]), "lru": (last, new[2])}
            scores["distance"] = counts / (now - last + 1), new[1] / (now - new[2] + 1)
            own, theirs = (
                score.double() if policy == "distance" else score for score in scores[policy]
            )
            done = collision.replace_ids(id_map, own, new[0], theirs)
            seen += [part.tolist() for part in done] + contents(history)
            counts[done.rows], last[done.rows] = new[1][done.chosen], new[2][done.chosen]
            collision.clear_history(history)
    assert_sound(id_map)
    return [*seen, held(id_map), counts.tolist(), last.tolist(), totals.tolist()]


@needs_native
@pytest.mark.parametrize("policy", ["lfu", "lru", "distance"])
def test_results_depend_neither_on_threads_nor_on_the_backend(policy, monkeypatch):
    batches = stream(9, 20_000)
    threads = torch.get_num_threads()
    found = []
    for n in (1, 2, 3, 4):
        torch.set_num_threads(n)
        found.append(run(batches, 2_000, policy))
    torch.set_num_threads(threads)
    monkeypatch.setattr(schema, "kernels", None)
    for name in OPERATORS:
        monkeypatch.setattr(schema, f"id_map_{name}", getattr(reference, name))
    expected = run(batches, 2_000, policy)
    assert all(one == expected for one in found)


@needs_native
@pytest.mark.parametrize("filtered", [False, True], ids=["all", "filtered"])
def test_an_exchange_is_its_parts_on_any_number_of_threads(filtered, monkeypatch):
    def exchanged() -> list[object]:
        id_map, history = collision.new_id_map(2_000), collision.new_history(1)
        counts, totals = torch.zeros(2_000, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
        seen: list[object] = []
        for now, ids in enumerate(stream_of_ids, 1):
            history = collision.reserve(history, ids.numel())
            found = collision.count_ids(id_map, history, ids, now, totals, counts=counts)
            came = collision.counted_in(history).counts
            kinds = {"counts": counts, "admitted": came % 2 == 1 if filtered else None}
            done = collision.exchange_ids(id_map, history, counts, came, ids, found, **kinds)
            seen += [done.rows.tolist(), done.evicted, found.tolist(), contents(history)]
        assert_sound(id_map)
        return [*seen, held(id_map), counts.tolist()]

    stream_of_ids = stream(6, 20_000)
    threads, results = torch.get_num_threads(), []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        results.append(exchanged())
    torch.set_num_threads(threads)
    monkeypatch.setattr(collision, "_exchange", collision._compose_exchange)
    expected = exchanged()
    assert any(isinstance(part, int) and part > 0 for part in expected)  # some were evicted
    assert all(result == expected for result in results)


@needs_native
def test_either_backend_reads_the_index_of_the_other():
    ids, rows = reference.hash_of(torch.arange(900)), torch.randperm(1000)[:900]
    for write, read in [(reference, schema.kernels), (schema.kernels, reference)]:
        id_map = collision.new_id_map(1000)
        write.insert_(*id_map, ids, rows)
        assert torch.equal(read.find(id_map.ids, id_map.entries, ids, -1), rows)
        read.erase_(*id_map, rows[:450])
        write.insert_(*id_map, ids[:300] + 1, rows[:300])
        assert_sound(id_map)
        assert len(held(id_map)) == 750


@pytest.mark.parametrize("rows", [1, 10, 11, 12, 43, 1000, 99_999, 100_000, 1_000_003])
def test_memory_of_a_row(rows):
    """With a count, at most 29 bytes a row, but for the smallest maps."""
    tensors = [*collision.new_id_map(rows), torch.zeros(rows, dtype=torch.int64)]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert size <= 29 * rows + (64 if rows < 11 else 0)
    entries = collision.index_size(rows)
    assert entries >= 16
    assert entries & (entries - 1) == 0
    assert 2 * entries >= 3 * rows


def test_histories_grow_with_what_they_hold():
    id_map, history = collision.new_id_map(1), collision.new_history(1)
    totals = torch.zeros(3, dtype=torch.int64)
    for step in range(50):
        history = collision.reserve(history, 100, limit=700)
        ids = torch.arange(100) % 10 + 20 * step
        collision.count_ids(id_map, history, ids, step, totals)
    assert int(history.size) == 500
    assert history.ids.numel() <= 2 * 600
    history = collision.reserve(history, 10**6, limit=700)
    assert history.ids.numel() == 700
    collision.count_ids(id_map, history, torch.arange(-1000, 0), 50, totals)
    assert int(history.size) == 700
    assert int(totals[2]) == 800


def test_state_is_written_where_autograd_sees_it():
    id_map, history = filled([5], [0], 2), collision.new_history(4)
    counts, totals = torch.zeros(2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    tensors = [*history, counts, totals]
    before = [tensor._version for tensor in tensors]
    collision.count_ids(id_map, history, T([5, 6]), 1, totals, counts=counts)
    assert all(tensor._version > old for tensor, old in zip(tensors, before, strict=True))
    found, new = T([0, -1]), collision.counted_in(history).counts
    tensors = [*id_map, history.entries, history.size, counts, found]
    before = [tensor._version for tensor in tensors]
    collision.exchange_ids(id_map, history, counts, new, T([5, 6]), found, counts=counts)
    assert all(tensor._version > old for tensor, old in zip(tensors, before, strict=True))


@needs_native
def test_a_damaged_index_leads_nowhere():
    id_map = filled([5, 6], [0, 1], 20)
    for value in (-1, 1, 77, -(2**31), 2**31 - 1):
        id_map.entries.fill_(value)
        found = collision.find_ids(id_map, T([5, 6, 7]))
        assert set(found.tolist()) <= {-1, 0, 1}


MAP = filled([5, 6], [0, 1], 3)
ONE = T([0])
SEEN = collision.restore_history(T([9]), T([1]), T([1]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: collision.find_ids(MAP, T([1.0])), TypeError, "`ids` should be integers"),
        (lambda: collision.find_ids(MAP, T([True])), TypeError, "`ids` should be integers"),
        (lambda: collision.new_id_map(0), ValueError, "`rows` should be from 1 to .* Received 0"),
        (lambda: collision.new_id_map(2**31), ValueError, "`rows` should be from 1 to"),
        (lambda: collision.new_history(0), ValueError, "`capacity` should be from 1 to"),
        (
            lambda: collision.insert_ids(MAP, T([7]), T([0])),
            ValueError,
            "`rows` should be free. Received 0",
        ),
        (
            lambda: collision.insert_ids(MAP, T([5]), T([2])),
            ValueError,
            "`ids` should have no row yet. Received 5",
        ),
        (
            lambda: collision.insert_ids(MAP, T([7, 8]), T([2, 2])),
            ValueError,
            "`rows` should be distinct. Received 2",
        ),
        (
            lambda: collision.insert_ids(MAP, T([7, 7]), T([2, 1])),
            ValueError,
            "`ids` should be distinct. Received 7",
        ),
        (
            lambda: collision.insert_ids(MAP, T([7]), T([2, 1])),
            ValueError,
            "`ids` and `rows` should be as many. Received 1 and 2",
        ),
        (
            lambda: collision.insert_ids(MAP, T([7]), T([3])),
            IndexError,
            r"`rows` should be in \[0, 3\). Received 3",
        ),
        (
            lambda: collision.erase_rows(MAP, T([2])),
            ValueError,
            "`rows` should be held. Received 2",
        ),
        (
            lambda: collision.rebuild_index(IdMap(T([5, 5]), T([True, True]), MAP.entries)),
            ValueError,
            "`ids` should be distinct. Received 5",
        ),
        (
            lambda: collision.restore_history(T([5, 5]), T([1, 1]), T([1, 1])),
            ValueError,
            "`ids` should be distinct. Received 5",
        ),
        (
            lambda: collision.restore_history(T([5]), T([1, 1]), T([1])),
            ValueError,
            "`ids`, `counts` and `last` should be as many. Received 1, 2 and 1",
        ),
        (
            lambda: collision.replace_ids(MAP, T([1, 2, 3]), ONE, T([1.0])),
            TypeError,
            "should both be int64 or both float64",
        ),
        (
            lambda: collision.replace_ids(MAP, T([1, 2]), ONE, ONE),
            ValueError,
            r"`scores` should be one a row \(3\)",
        ),
        (
            lambda: collision.replace_ids(MAP, T([1, 2, 3]), ONE, T([1, 2])),
            ValueError,
            r"`candidate_scores` should be one a candidate \(1\)",
        ),
        (
            lambda: collision.exchange_ids(
                MAP, collision.new_history(2), T([1, 2, 3]), ONE, ONE, ONE
            ),
            ValueError,
            r"`candidate_scores` should be one a candidate \(0\). Received \[1\]",
        ),
        (
            lambda: collision.exchange_ids(MAP, SEEN, T([1, 2, 3]), ONE, T([5, 6]), ONE),
            ValueError,
            r"`found` should be one an id of the batch \(2\). Received \[1\]",
        ),
        (
            lambda: collision.exchange_ids(
                MAP, SEEN, T([1, 2, 3]), ONE, ONE, ONE, admitted=T([True, False])
            ),
            ValueError,
            r"`admitted` should be one a candidate \(1\). Received \[2\]",
        ),
        (
            lambda: collision.exchange_ids(MAP, SEEN, T([1.0, 2, 3]), T([1.0]), ONE, ONE),
            TypeError,
            "should both be int64 or both float64",
        ),
    ],
)
def test_misuse_is_refused(call, error, message):
    before = held(MAP)
    with pytest.raises(error, match=message):
        call()
    assert held(MAP) == before


@needs_native
@pytest.mark.parametrize("count", [0, 1, 40])
def test_a_map_without_rows_finds_nothing(count):
    nothing, entries = T([], dtype=torch.int64), torch.zeros(collision.index_size(0)).int()
    wanted = torch.arange(count)
    assert schema.id_map_find(nothing, entries, wanted, -7).tolist() == [-7] * count
    history = collision.new_history(64)
    totals = torch.zeros(3, dtype=torch.int64)
    state = nothing, entries, None, None, *history, totals
    assert schema.id_map_count_(*state, wanted, 1, -7).tolist() == [-7] * count
    assert collision.counted_in(history).ids.tolist() == wanted.tolist()


@needs_native
def test_kernels_are_not_led_out_of_their_tensors():
    ids, occupied, entries = collision.new_id_map(4)

    def exchange(ids: torch.Tensor, history: History, scores: torch.Tensor, *batch: torch.Tensor):
        given = scores, batch[0], None, *batch[1:]
        schema.kernels.exchange(ids, occupied, entries, None, None, *history, *given, -1)

    for broken in (
        lambda: schema.id_map_find(ids, entries[:8], ONE, -1),
        lambda: schema.id_map_find(ids, entries.long(), ONE, -1),
        lambda: schema.id_map_find(ids.int(), entries, ONE, -1),
        lambda: schema.id_map_replace_(ids, occupied[:2], entries, ids, ONE, ONE),
        lambda: schema.id_map_replace_(ids, occupied, entries, ids[:2], ONE, ONE),
        lambda: schema.id_map_insert_(ids, occupied, entries, ids, ONE),
        lambda: exchange(ids, SEEN, ids[:2], ONE, ONE, ONE),
        lambda: exchange(ids, SEEN, ids, ONE, T([5, 6]), T([0, 1, 2])[::2]),
        lambda: exchange(ids, SEEN._replace(counts=ONE.int()), ids, ONE, ONE, ONE),
        lambda: exchange(ids, SEEN._replace(entries=SEEN.entries.long()), ids, ONE, ONE, ONE),
        lambda: schema.id_map_erase_(ids, occupied, entries, ONE.int()),
        lambda: schema.id_map_rebuild_(ids, T(0), entries),
        lambda: schema.id_map_insert_(ids, occupied, entries, ONE, ONE[None]),
        lambda: schema.id_map_replace_(ids, occupied, entries, ids[None], ONE, ONE),
        lambda: schema.id_map_replace_(ids, occupied, entries, ids, ONE, ONE[None]),
        lambda: exchange(ids, SEEN._replace(counts=ONE[None]), ids, ONE, ONE, ONE),
    ):
        with pytest.raises(ValueError, match=r"should be .* contiguous elements of"):
            broken()
    with pytest.raises(IndexError, match=r"`rows` should be in \[0, 4\)"):
        schema.id_map_rebuild_(ids, T([4]), entries)
