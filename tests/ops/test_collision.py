"""Id maps: the kernels against the reference, and both against a dict."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from torchrec.ops import collision
from torchrec.ops._library import native as library
from torchrec.ops.collision import History, IdMap, reference, schema

T = torch.tensor
LEAST, MOST = -(2**63), 2**63 - 1
EXTREMES = [LEAST, LEAST + 1, -1, 0, 1, MOST - 1, MOST]
needs_native = pytest.mark.skipif(library is None, reason="the native library is not in use")
OPERATORS = ["find", "count_", "replace_", "insert_", "erase_", "rebuild_"]


def filled(ids: list[int], rows: list[int], size: int) -> IdMap:
    id_map = collision.new_id_map(size)
    collision.insert_ids(id_map, T(ids, dtype=torch.int64), T(rows, dtype=torch.int64))
    return id_map


def sample_count(metadata: bool) -> tuple[object, ...]:
    id_map, history = filled([5, MOST], [2, 0], 4), collision.new_history(8)
    own = [torch.zeros(4, dtype=torch.int64) for _ in range(2)] if metadata else [None, None]
    totals = torch.zeros(3, dtype=torch.int64)
    return id_map.ids, id_map.entries, *own, *history, totals, T([5, 7, -1, 7, 5]), 3, -1


def sample_replace(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    scores = T([3, 0, 1, 0]).to(dtype)
    return *filled([5, MOST], [2, 0], 4), scores, T([7, -1, 9]), T([1, 2, 0]).to(dtype)


OPCHECK_SAMPLES = [
    ("id_map_find", (*filled([5, MOST], [2, 0], 4)[::2], T([5, 7, -1]), -1)),
    ("id_map_find", (*filled([], [], 4)[::2], T([], dtype=torch.int64), 9)),
    ("id_map_count_", sample_count(True)),
    ("id_map_count_", sample_count(False)),
    ("id_map_replace_", sample_replace(torch.int64)),
    ("id_map_replace_", sample_replace(torch.float64)),
    ("id_map_insert_", (*filled([5], [2], 4), T([7, -1]), T([0, 3]))),
    ("id_map_erase_", (*filled([5, 7], [2, 0], 4), T([2]))),
    ("id_map_rebuild_", (T([5, 7, 9]), T([2, 0]), torch.ones(8, dtype=torch.int32))),
]


@pytest.fixture(params=["in_use", "reference"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run a test with the operators in use, and with the reference in their place."""
    if request.param == "reference":
        if library is None:
            pytest.skip("the reference is in use")
        monkeypatch.setattr(schema, "kernels", None)
        for name in OPERATORS:
            monkeypatch.setattr(schema, f"id_map_{name}", getattr(reference, name))
    yield


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


IDS = st.one_of(st.integers(0, 12), st.sampled_from(EXTREMES), st.integers(LEAST, MOST))


class AgainstDict(RuleBasedStateMachine):
    """Any sequence of calls on any of the backends does what a dict does."""

    @initialize(size=st.integers(1, 9), room=st.integers(1, 20))
    def start(self, size: int, room: int) -> None:
        self.dict, self.map = Dict(size), collision.new_id_map(size)
        self.history, self.room = collision.new_history(1), room
        self.counts, self.last = (torch.zeros(size, dtype=torch.int64) for _ in range(2))
        self.totals = torch.zeros(3, dtype=torch.int64)
        self.now = 0

    @rule(ids=st.lists(IDS, max_size=20), missing=st.sampled_from([-1, 0, 5]))
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


def test_any_sequence_of_calls_does_what_a_dict_does(backend: None) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        AgainstDict, settings=settings(max_examples=40, stateful_step_count=25)
    )
