"""Several tables, no two alike: an id's vector is the one that it trained, whatever happens around it."""

from __future__ import annotations

import contextlib
import copy
import itertools
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from tests.modules import mixed_tables
from torchrec import OptimizerType
from torchrec.modules import hash_mc_evictions
from torchrec.modules.mc_embedding_modules import evict
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
)

DIMS, FEATURES = mixed_tables.DIMS, mixed_tables.FEATURES
KEYS, ROWS = mixed_tables.KEYS, mixed_tables.ROWS
START = 100.0


class OwnDistanceLFU(DistanceLFU_EvictionPolicy):
    """Goes through the metadata contract."""


Ids = dict[str, list[list[int]]]
Owner = tuple[str, int]  # ("id", i) of a row that an id holds; ("row", r) of one that ids share


class Mirror:
    """What each table should hold, by who owns a row; all numbers of a vector are the same.

    The tables train by SGD at a rate of 1 on gradients of 1, so a vector loses 1 each time that it
    is looked up and learned from.
    """

    def __init__(self) -> None:
        self.vectors: dict[str, dict[Owner, float]] = {t: {} for t in FEATURES}
        self.waiting: dict[str, Counter[Owner]] = {t: Counter() for t in FEATURES}
        self.rows: dict[str, dict[Owner, int]] = {t: {} for t in FEATURES}

    def see(self, module) -> None:
        """Take note of who holds rows now: who is new starts anew, who lost its row is forgotten."""
        for table, mcm in module._managed_collision_collection.maps().items():
            rows, ids = mcm.held()
            pairs = zip(ids.tolist(), rows.tolist(), strict=True)
            holders: dict[Owner, int] = {("id", i): row for i, row in pairs}
            vectors, waiting = self.vectors[table], self.waiting[table]
            # One with another row than before has lost it and been given a new one, in one batch.
            for lost, row in self.rows[table].items():
                if holders.get(lost) != row:
                    vectors.pop(lost)
                    waiting.pop(lost, None)
            for new in holders.keys() - vectors.keys():
                vectors[new] = START
            self.rows[table] = holders

    def owner(self, table: str, i: int, row: int) -> Owner:
        return ("id", i) if ("id", i) in self.vectors[table] else ("row", row)

    def lookups(self, ids: Ids, rows: Ids) -> Iterator[tuple[str, str, list[list[Owner]]]]:
        """Yield each table and feature, and the owners of the rows that its bags read."""
        for table, features in FEATURES.items():
            for feature in features:
                pairs = zip(ids.get(feature, []), rows[feature], strict=False)
                yield (
                    table,
                    feature,
                    [[self.owner(table, *p) for p in zip(*bag, strict=True)] for bag in pairs],
                )

    def learn(self, ids: Ids, rows: Ids) -> None:
        """Add the gradients of a batch to those that wait."""
        for table, _, bags in self.lookups(ids, rows):
            self.waiting[table].update(owner for bag in bags for owner in bag)

    def step(self) -> None:
        """Apply the gradients that wait."""
        for table, waiting in self.waiting.items():
            for owner, times in waiting.items():
                self.vectors[table][owner] = self.vectors[table].get(owner, START) - times
            waiting.clear()

    def sums(self, ids: Ids, rows: Ids) -> dict[tuple[str, str], list[float]]:
        """Return the pooled outputs, by table and feature."""
        return {
            (table, feature): [sum(self.vectors[table].get(o, START) for o in bag) for bag in bags]
            for table, feature, bags in self.lookups(ids, rows)
        }


def make(policy, interval: int):
    return mixed_tables.make(
        policy=policy, interval=interval, remapped=True, init_fn=lambda w: w.fill_(START)
    )


def output_of(module, table: str, feature: str, output) -> torch.Tensor:
    name = f"{feature}@{table}" if feature == "f" else feature
    return output[name]


def check_output(module, mirror: Mirror, ids: Ids, output, rows) -> None:
    for (table, feature), sums in mirror.sums(ids, rows.to_lists()).items():
        found = output_of(module, table, feature, output)
        assert found.tolist() == [[number] * DIMS[table] for number in sums], (table, feature)


def check_rows(module, mirror: Mirror) -> None:
    for table, mcm in module._managed_collision_collection.maps().items():
        mcm.validate_state()
        ids, vectors = module.export_rows(table)
        expected = {
            o[1]: [v] * DIMS[table] for o, v in mirror.vectors[table].items() if o[0] == "id"
        }
        assert dict(zip(ids.tolist(), vectors.tolist(), strict=True)) == expected, table
    for table, weight in mixed_tables.weights_of(module).items():
        for (kind, row), value in mirror.vectors[table].items():
            if kind == "row":
                assert weight[row].tolist() == [value] * DIMS[table], table


def bags(most: int) -> st.SearchStrategy[list[list[int]]]:
    return st.lists(st.lists(st.integers(-most, most), max_size=3), min_size=2, max_size=2)


BATCH = st.fixed_dictionaries(
    {key: bags(6) for key in KEYS if key != "m"}
    | {"m": st.lists(st.lists(st.integers(0, ROWS["e"] - 1), max_size=2), min_size=2, max_size=2)}
)
ACTIONS = st.one_of(
    st.tuples(st.sampled_from(["train", "checkpoint", "accumulate", "evaluate"]), BATCH),
    st.tuples(st.just("reload"), st.none()),
    st.tuples(
        st.sampled_from(["load", "evict"]), st.tuples(st.sampled_from("abcd"), st.integers(-6, 6))
    ),
)


def train(module, mirror: Mirror, optimizers, action: str, ids: Ids) -> None:
    features = mixed_tables.batch(ids)
    x = torch.ones(1, requires_grad=True)

    def region(x):
        output, rows = module(features)
        return output.values() * x, output, rows

    run = partial(checkpoint, use_reentrant=False) if action == "checkpoint" else lambda f, x: f(x)
    values, output, rows = run(region, x)
    mirror.see(module)
    check_output(module, mirror, ids, output, rows)
    mirror.learn(ids, rows.to_lists())
    fused = module._embedding_module.fused_optimizer
    waits = fused.accumulate() if action == "accumulate" else contextlib.nullcontext()
    with waits:
        values.sum().backward()
    if action == "accumulate":
        return
    mirror.step()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def by_hand(module, mirror: Mirror, action: str, table: str, i: int) -> None:
    """Write the row of an id, or start it anew."""
    mcm = module._managed_collision_collection.maps()[table]
    row = mcm.rows_of(torch.tensor([i]))
    if action == "load":
        if int(row) >= 0 or int(mcm.open_slots()):
            with contextlib.suppress(ValueError):
                module.load_rows(table, torch.tensor([i]), torch.full((1, DIMS[table]), 55.0))
            row = mcm.rows_of(torch.tensor([i]))
            if int(row) < 0:  # none is free among those that a hash map may give it
                return
            mirror.see(module)
            mirror.vectors[table]["id", i] = 55.0
    elif int(row) >= 0:
        evict({table: row}, module._embedding_module)
        mirror.vectors[table]["id", i] = START
        mirror.waiting[table].pop(("id", i), None)


@pytest.mark.parametrize("policy", [LFU_EvictionPolicy, LRU_EvictionPolicy, OwnDistanceLFU])
@given(interval=st.integers(1, 3), actions=st.lists(ACTIONS, max_size=10))
def test_the_vector_of_an_id_is_the_one_that_it_trained(policy, interval, actions):
    act(partial(make, policy, interval), actions)


@given(actions=st.lists(ACTIONS, max_size=12), seed=st.integers(0, 9))
def test_it_is_for_maps_by_hashing_too(actions, seed):
    torch.manual_seed(seed)
    hours = itertools.count(500_000, 1 / 8)  # eight questions an hour
    clock = SimpleNamespace(time=lambda: next(hours) * 3600)

    def new():
        return mixed_tables.make(hashed=True, remapped=True, init_fn=lambda w: w.fill_(START))

    with mock.patch.object(hash_mc_evictions, "time", clock):
        act(new, actions)


def act(new, actions) -> None:
    """Do what is asked with a new module and what should be in it, and compare the two."""
    module, mirror = new(), Mirror()
    optimizers = mixed_tables.outer_optimizers(module)
    for action, argument in actions:
        if action == "evaluate":
            module.eval()
            output, rows = module(mixed_tables.batch(argument))
            check_output(module, mirror, argument, output, rows)
            module.train()
        elif action == "reload":
            saved = copy.deepcopy(module.state_dict())
            module = new()
            module.load_state_dict(saved)
            optimizers = mixed_tables.outer_optimizers(module)
            mirror.waiting = {t: Counter() for t in FEATURES}
        elif action in ("load", "evict"):
            by_hand(module, mirror, action, *argument)
        else:
            train(module, mirror, optimizers, action, argument)
        check_rows(module, mirror)


# To the last bit.


def run(module, optimizers, batches) -> None:
    for features in batches:
        output, _ = module(features)
        if isinstance(output, dict):
            outputs = [jt.values() for jt in output.values()]
        else:
            outputs = [output[key] for key in output.keys()]  # noqa: SIM118 - no mapping
        sum(values.pow(2).sum() for values in outputs).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def random_batches(number: int = 12, seed: int = 3):
    generator = torch.Generator().manual_seed(seed)
    return [mixed_tables.random_batch(generator) for _ in range(number)]


each_kind = pytest.mark.parametrize("pooled", [True, False], ids=["pooled", "sequence"])
each_policy = pytest.mark.parametrize("policy", [LRU_EvictionPolicy, OwnDistanceLFU])


def trained(pooled, policy, batches, seed=0, **options):
    torch.manual_seed(seed)
    module = mixed_tables.make(pooled, policy, 2, OptimizerType.ADAGRAD, lr=0.1, **options)
    optimizers = mixed_tables.outer_optimizers(module, 0.1, torch.optim.Adagrad)
    run(module, optimizers, batches)
    return module, optimizers


@each_kind
@each_policy
def test_each_table_is_as_if_it_were_alone(pooled, policy):
    batches, start = random_batches(), {"init_fn": torch.nn.init.ones_}
    together, _ = trained(pooled, policy, batches, **start)
    found, stats = mixed_tables.weights_of(together), together.stats()
    for only in ("ac", "b", "d", "e"):
        alone, _ = trained(pooled, policy, batches, only=only, **start)
        for name, weight in mixed_tables.weights_of(alone).items():
            assert torch.equal(found[name], weight), name
        for name, counts in alone.stats().items():
            assert stats[name] == counts
            assert counts.evicted > 0
        for name, state in alone._embedding_module.fused_optimizer.state_dict()["state"].items():
            other = together._embedding_module.fused_optimizer.state_dict()["state"][name]
            assert all(torch.equal(other[key], value) for key, value in state.items()), name


@each_kind
@each_policy
def test_a_resumed_run_is_the_same(pooled, policy):
    batches = random_batches(14)
    whole, optimizers = trained(pooled, policy, batches[:7])
    fused = whole._embedding_module.fused_optimizer
    saved = copy.deepcopy([m.state_dict() for m in (whole, fused, *optimizers)])
    run(whole, optimizers, batches[7:])
    resumed, others = trained(pooled, policy, [], seed=1)
    for each, state in zip(
        (resumed, resumed._embedding_module.fused_optimizer, *others), saved, strict=True
    ):
        each.load_state_dict(state)
    run(resumed, others, batches[7:])
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


@each_kind
@pytest.mark.parametrize("more_rows", [-1, 2])
def test_vectors_and_state_move_with_their_ids(pooled, more_rows):
    module, _ = trained(pooled, LRU_EvictionPolicy, random_batches())
    fused = module._embedding_module.fused_optimizer
    saved, state = copy.deepcopy((module.state_dict(), fused.state_dict()))
    other, _ = trained(pooled, LRU_EvictionPolicy, [], seed=1, more_rows=more_rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other.load_state_dict(saved)
    other._embedding_module.fused_optimizer.load_state_dict(other.fit_optimizer_state(state))
    assert set(other.load_reports) == {"a", "b", "c", "d"}
    for table in "abcd":
        before = by_id(module, table)
        after = by_id(other, table)
        assert len(after) == min(len(before), len(before) + more_rows)
        assert after.items() <= before.items()


def by_id(module, table: str) -> dict[int, tuple[str, str]]:
    """Return the vector of each id that holds a row, and its state if the table trains itself."""
    rows, ids = module._managed_collision_collection.maps()[table].held()
    weight = mixed_tables.weights_of(module)[table]
    fused = module._embedding_module.fused_optimizer.state.get(weight, {})
    sums = fused["sum"][rows] if "sum" in fused else torch.zeros(len(rows))
    pairs = zip(weight[rows].tolist(), sums.tolist(), strict=True)
    return {
        i: (str(vector), str(total)) for i, (vector, total) in zip(ids.tolist(), pairs, strict=True)
    }


@pytest.mark.filterwarnings(  # torch's own tracing warns about its own insides
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
def test_a_compiled_run_is_the_same():
    torch._dynamo.reset()
    batches = random_batches(6)
    plain, _ = trained(True, LRU_EvictionPolicy, batches)
    module, optimizers = trained(True, LRU_EvictionPolicy, [])
    compiled = torch.compile(module, backend="eager")
    run(compiled, optimizers, batches)
    for key, value in plain.state_dict().items():
        assert torch.equal(module.state_dict()[key], value), key
    torch._dynamo.reset()


@each_kind
@each_policy
def test_another_default_device_changes_nothing(pooled, policy):
    batches = random_batches(8)
    states = []
    for device in ("cpu", "meta"):
        module, optimizers = trained(pooled, policy, [])
        run(module, optimizers, batches[:4])
        with torch.device(device):
            run(module, optimizers, batches[4:])
            states.append(copy.deepcopy(module.state_dict()))
            module.load_state_dict(states[-1])
    for key, value in states[0].items():
        assert torch.equal(states[1][key], value), key


@each_kind
@each_policy
@pytest.mark.parametrize("assign", [True, False], ids=["assign", "to_empty"])
def test_made_without_memory_and_loaded(pooled, policy, assign):
    batches = random_batches(10)
    module, optimizers = trained(pooled, policy, batches[:5])
    saved = copy.deepcopy(module.state_dict())
    fused = copy.deepcopy(module._embedding_module.fused_optimizer.state_dict())
    other, _ = trained(pooled, policy, [], device="meta")
    if not assign:
        other.to_empty(device="cpu")
    other.load_state_dict(saved, assign=assign)
    other._embedding_module.fused_optimizer.load_state_dict(fused)
    others = mixed_tables.outer_optimizers(other, 0.1, torch.optim.Adagrad)
    for mine, theirs in zip(others, optimizers, strict=True):
        mine.load_state_dict(copy.deepcopy(theirs.state_dict()))
    run(module, optimizers, batches[5:])
    run(other, others, batches[5:])
    for key, value in module.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # by Adagrad of sparse gradients
@each_kind
def test_steps_with_a_closure_are_the_same(pooled):
    """Rows are evicted within the closure, after the step has begun; their state is reset all the same."""
    states = []
    for closure in (False, True):
        module, _ = trained(pooled, LRU_EvictionPolicy, [])
        weights = mixed_tables.weights_of(module)
        optimizer = torch.optim.Adagrad([weights[name] for name in "bcd"], lr=0.1)
        for features in random_batches():

            def once(features=features, optimizer=optimizer, module=module):
                optimizer.zero_grad()
                loss = mixed_tables.output_sum(module, features)
                loss.backward()
                return loss

            if closure:
                optimizer.step(once)
            else:
                once()
                optimizer.step()
        states.append([module.state_dict(), optimizer.state_dict()["state"]])
    assert all(stats.evicted > 0 for stats in module.stats().values())
    for key, value in states[0][0].items():
        assert torch.equal(states[1][0][key], value), key
    for number, state in states[0][1].items():
        assert torch.equal(states[1][1][number]["sum"], state["sum"]), number


def test_new_rows_start_as_rows_of_the_whole_table():
    shapes = Counter()

    def init(weight: torch.Tensor) -> torch.Tensor:
        shapes[tuple(weight.shape)] += 1
        row = torch.arange(len(weight), dtype=weight.dtype)
        return weight.copy_(row[:, None].expand_as(weight))

    module = mixed_tables.make(policy=LRU_EvictionPolicy, init_fn=init)
    for weight in module.parameters():
        torch.nn.init.constant_(weight, -1)
    module(mixed_tables.batch({"f": [[5], [6]], "h": [[7], [8, 9]], "k": [[1], []]}))
    assert set(shapes) == {(ROWS[name], DIMS[name]) for name in FEATURES}
    weights = mixed_tables.weights_of(module)
    for table, changed in {"a": 2, "b": 3, "c": 2, "d": 1, "e": 0}.items():
        expected = [*range(changed), *[-1] * (ROWS[table] - changed)]
        assert weights[table][:, 0].tolist() == expected, table


def test_a_missing_feature_is_refused_before_any_map_learns():
    module = mixed_tables.make()
    features = mixed_tables.batch({"f": [[5]], "h": [[6]], "g": [[7]], "k": [[8]]})
    present = [key for key in KEYS if key != "k"]
    lacking = features.permute([KEYS.index(key) for key in present])
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(
        ValueError, match=r"should have the key 'k' of table 'd'. Received keys \['m"
    ):
        module(lacking)
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert module.stats()["a"].ids == 0
