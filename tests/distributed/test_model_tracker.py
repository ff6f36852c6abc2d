"""Which rows were looked up since somebody last asked: ranks together tell what one process would."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.four_tables import (
    PLANS,
    TABLES,
    Model,
    batch,
    plan_of,
    sharded,
    train,
    wholes,
)
from tests.distributed.test_state import results
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
)
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.model_tracker import (
    DeltaStoreTrec,
    DeltaTrackerConfig,
    TrackingMode,
    UniqueRows,
    UpdateMode,
)
from torchrec.distributed.model_tracker.types import ModelTrackerConfigs, Trackers
from torchrec.optim import Adam, RowWiseAdagrad, apply_optimizer_in_backward

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels


def expected_of(ranks, *steps):
    """Rows of each table in the batches of all ranks, found one by one."""
    found = {}
    for name in TABLES:
        ids = [
            batch(r, step)[f"f_{name}"].values().tolist() for r in range(ranks) for step in steps
        ]
        found[f"tables.embedding_bags.{name}"] = sorted({i for each in ids for i in each})
    return found


def union(found):
    """What all ranks tell together."""
    ranks = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, {fqn: ids.tolist() for fqn, ids in found.items()})
    names = {fqn for each in ranks for fqn in each}
    return {fqn: sorted({i for each in ranks for i in each.get(fqn, [])}) for fqn in names}


def tracked(plan, auto_compact):
    model, ranks = sharded(plan), dist.get_world_size()
    config = DeltaTrackerConfig(consumers=["one", "other"], auto_compact=auto_compact)
    tracker = model.init_torchrec_delta_tracker(config)
    assert model.get_delta_tracker() is tracker
    for step in (0, 1):
        train(model, step)
        tracker.step()
    mine = tracker.get_unique_ids("one")
    assert union(mine) == expected_of(ranks, 0, 1)
    for name, value in model.state_dict().items():
        if not hasattr(value, "local_shards"):
            continue
        here = {
            row
            for shard in value.local_shards()
            for row in range(
                shard.metadata.shard_offsets[0],
                shard.metadata.shard_offsets[0] + shard.metadata.shard_sizes[0],
            )
        }
        assert set(mine.get(name.removesuffix(".weight"), torch.empty(0)).tolist()) <= here
    assert tracker.get_unique_ids("one") == {}
    train(model, 2)
    assert union(tracker.get_unique_ids("one")) == expected_of(ranks, 2)
    assert union(tracker.get_unique_ids("other")) == expected_of(ranks, 0, 1, 2)
    if plan not in ("copies", "alone"):
        model.reshard({"tables": (0.0, plan_of(Model(), PLANS["tables"]).plan["tables"])})
    twin = copy.deepcopy(model)
    train(model, 3)
    tracker.clear("one")
    assert tracker.get_unique_ids("one") == {}
    assert union(tracker.get_unique_ids("other")) == expected_of(ranks, 3)
    train(twin, 4)
    assert tracker.get_unique_ids("other") == {}
    assert union(twin.get_delta_tracker().get_unique_ids("other")) == expected_of(ranks, 4)


def test_ranks_together_tell_all_rows_once_to_each_consumer():
    results(tracked, 2, "rows", False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "ranks"), [("columns", 2), ("copies", 2), ("many", 2), ("grid", 4), ("alone", 1)]
)
def test_so_they_do_under_other_plans(plan, ranks):
    results(tracked, ranks, plan, True)


def of_states(plan):
    """What is told with rows, against wholes before and after."""
    model, ranks = sharded(plan), dist.get_world_size()
    for step, (mode, table, state) in enumerate(
        (
            (TrackingMode.ROWWISE_ADAGRAD, "user", "/sum"),
            (TrackingMode.MOMENTUM_LAST, "item", "/exp_avg"),
            (TrackingMode.MOMENTUM_DIFF, "item", "/exp_avg"),
            (TrackingMode.EMBEDDING, "item", ""),
        )
    ):
        fqn = f"tables.embedding_bags.{table}"
        skipped = [f"tables.embedding_bags.{name}" for name in TABLES if name != table]
        config = DeltaTrackerConfig(mode, ["one", "other"], fqns_to_skip=skipped)
        tracker = model.init_torchrec_delta_tracker(config)
        train(model, 4 * step)  # what was before is not new to "one"
        tracker.get_unique("one")
        before = wholes(model)[f"{fqn}.weight{state}"]
        for number in (1, 2):
            train(model, 4 * step + number)
            tracker.step()
            tracker.compact(0, 9)  # not beyond what consumers were told of
        after = wholes(model)[f"{fqn}.weight{state}"]
        values = {TrackingMode.EMBEDDING: before, TrackingMode.MOMENTUM_LAST: after}
        values = values.get(mode, after - before)
        found = tracker.get_unique("one").get(
            fqn, UniqueRows(torch.zeros(0, dtype=torch.int64), None)
        )
        of_batches = expected_of(ranks, 4 * step + 1, 4 * step + 2)[fqn]
        assert union({fqn: found.ids}) == {fqn: of_batches}
        columns = columns_of(model.state_dict()[f"{fqn}.weight"])
        expected = values[found.ids]
        expected = expected.squeeze(1) if state == "/sum" else expected[:, columns]
        if len(found.ids):
            torch.testing.assert_close(found.states, expected, rtol=0, atol=0)
        # No states can be told of rows that have gone elsewhere.
        if plan != "copies":
            moves = {"tables": (0.0, plan_of(Model(), PLANS[plan]).plan["tables"])}
            with pytest.raises(ValueError, match=f"'other' should ask .* of table '{fqn}'"):
                model.reshard(moves)
            tracker.clear("other")
            model.reshard(moves)
    # Rows that are made as they were first are told where they are, and of a part of all, the rest another time.
    model.module.tables.reset_rows("item", torch.tensor([0, 10]))
    found = tracker.get_unique("one").get(fqn)
    assert union({} if found is None else {fqn: found.ids})[fqn] == [0, 10]
    if plan == "columns":
        with pytest.raises(ValueError, match=rf"All rows of '{fqn}' should be asked for"):
            tracker.get_unique("one", 0.5)
        return
    before = wholes(model)[f"{fqn}.weight"]
    train(model, 16, 17)
    now, told = wholes(model)[f"{fqn}.weight"], []
    changes = (now - before).norm(dim=1)
    rows = expected_of(ranks, 16, 17)[fqn]
    here = [r for r in rows if r in held(model.state_dict()[f"{fqn}.weight"])]
    here.sort(key=lambda row: -changes[row])
    while rows := tracker.get_unique("one", 0.4, sorted_by_indices=len(told) > 2).get(fqn):
        expected = here[len(told) : len(told) + math.ceil(0.4 * (len(here) - len(told)))]
        if len(told) > 2:
            expected.sort()
        assert rows.ids.tolist() == expected
        assert torch.equal(rows.states, before[expected])
        told += expected
    assert sorted(told) == sorted(here)
    assert torch.equal(
        tracker.get_latest()[fqn], now[sorted(held(model.state_dict()[f"{fqn}.weight"]))]
    )


def held(value):
    """Rows that this rank has something of."""
    if not hasattr(value, "local_shards"):
        return set(range(len(value)))
    places = [
        (s.metadata.shard_offsets[0], s.metadata.shard_sizes[0]) for s in value.local_shards()
    ]
    return {row for first, size in places for row in range(first, first + size)}


def columns_of(value):
    if not hasattr(value, "local_shards"):
        return list(range(value.shape[1]))
    places = [
        (s.metadata.shard_offsets[1], s.metadata.shard_sizes[1]) for s in value.local_shards()
    ]
    return sorted({column for first, size in places for column in range(first, first + size)})


def test_states_are_told_as_they_were_are_or_have_changed():
    results(of_states, 2, "rows")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "ranks"), [("columns", 2), ("tables", 2), ("grid", 4), ("alone", 1)]
)
def test_so_they_are_under_other_plans(plan, ranks):
    results(of_states, ranks, plan)


class Sequences(nn.Module):
    def __init__(self):
        super().__init__()
        table = EmbeddingConfig(10, 4, "t", feature_names=["f"], optimizer="sgd", lr=0.5)
        other = EmbeddingConfig(5, 4, "o", feature_names=["g"], optimizer="sgd", lr=0.5)
        self.tables = EmbeddingCollection([table, other])

    def forward(self, features):
        return self.tables(features)["f"].values().sum() + self.tables(features)["g"].values().sum()


def test_weights_are_those_before_the_first_update():
    model = DistributedModelParallel(Sequences())
    config = DeltaTrackerConfig(TrackingMode.EMBEDDING, fqns_to_skip=["tables.embeddings.o"])
    tracker = model.init_torchrec_delta_tracker(config)
    assert tracker.fqn_to_feature_names() == {"tables.embeddings.t": ["f"]}
    assert list(tracker.get_tracked_modules()) == ["tables"]
    before = model.state_dict()["tables.embeddings.t.weight"].clone()
    for ids in ([7, 2, 7], [2, 5]):
        model(KeyedJaggedTensor.from_lists({"f": [ids], "g": [[1]]})).backward()
        tracker.step()
    (found,) = tracker.get_unique().values()
    assert found.ids.tolist() == [2, 5, 7]
    assert torch.equal(found.states, before[[2, 5, 7]])
    assert not torch.equal(
        found.states, model.state_dict()["tables.embeddings.t.weight"][[2, 5, 7]]
    )


def test_states_are_the_first_or_the_last_also_of_what_was_put_together():
    for mode, expected in ((UpdateMode.FIRST, [1.0, 0.0, 4.0]), (UpdateMode.LAST, [3.0, 2.0, 4.0])):
        store = DeltaStoreTrec(mode)
        store.append(0, "t", torch.tensor([8, 3]), torch.tensor([[0.0], [1.0]]))
        store.append(1, "t", torch.tensor([8, 3]), torch.tensor([[2.0], [3.0]]))
        store.append(2, "t", torch.tensor([9]), torch.tensor([[4.0]]))
        for _ in range(2):
            found = store.get_unique()["t"]
            assert found.ids.tolist() == [3, 8, 9]
            assert found.states.flatten().tolist() == expected
            store.compact(0, 2)
        kept = store.get_indexed_lookups(0, 3)["t"]
        assert [(each.batch_idx, each.compact) for each in kept] == [(0, True), (2, False)]
        store.delete(up_to_idx=2)
        assert store.get_unique()["t"].ids.tolist() == [9]


def test_raw_ids_are_those_that_had_the_rows_last():
    """Against a dictionary that is written one by one."""
    for mode in UpdateMode:
        generator, expected = torch.Generator().manual_seed(3), {}
        store, states = DeltaStoreTrec(mode), None
        for number in range(5):
            ids = torch.randint(0, 9, (7,), generator=generator)
            raw, meta = ids + 100 * number + torch.arange(7) * 10, torch.rand(7, 2)
            if mode is not UpdateMode.NONE:
                states = torch.rand(7, 1)
            if number == 2:  # of these nobody knows
                store.append(number, "t", ids, states)
                expected.update({i: (-1, [0.0, 0.0]) for i in ids.tolist() if i not in expected})
            else:
                store.append(number, "t", ids, states, raw, meta)
                expected.update(
                    zip(ids.tolist(), zip(raw.tolist(), meta.tolist(), strict=True), strict=True)
                )
            if number == 3:
                store.compact(1, 4)
        found = store.get_unique()["t"]
        assert found.ids.tolist() == sorted(expected)
        assert found.raw_ids.tolist() == [expected[i][0] for i in sorted(expected)]
        assert found.runtime_meta.tolist() == [expected[i][1] for i in sorted(expected)]
        assert (found.states is None) == (mode is UpdateMode.NONE)


def test_a_part_of_the_rows_is_told_by_table_at_random_or_the_top():
    model, (t, o) = (
        DistributedModelParallel(Sequences()),
        ("tables.embeddings.t", "tables.embeddings.o"),
    )
    tracker = model.init_torchrec_delta_tracker(DeltaTrackerConfig(TrackingMode.EMBEDDING))
    before = model.state_dict()[f"{t}.weight"].clone()
    rows = KeyedJaggedTensor.from_lists({"f": [list(range(10))], "g": [[4, 1, 2, 3]]})
    weights = torch.cat([before, torch.zeros(4, 4)])
    tracker.record_lookup(rows, weights, raw_ids=torch.arange(14) + 50)
    with torch.no_grad():
        dict(model.named_parameters())[f"{t}.weight"][[6, 3]] += 9.0
    seen = {t: [], o: []}
    shares = {t: (0.2, "top"), o: (0.5, "random")}
    for _ in range(9):
        for fqn, found in tracker.get_unique(per_table_percentage=shares).items():
            assert found.raw_ids.tolist() == [
                50 + i if fqn == t else 60 + [4, 1, 2, 3].index(i) for i in found.ids
            ]
            seen[fqn].append(found.ids.tolist())
            if fqn == t:
                assert torch.equal(found.states, before[found.ids])
    assert seen[t][0] == [3, 6]  # those that have changed, then others
    sizes, every = {t: [2, 2, 2, 1, 1, 1, 1], o: [2, 1, 1]}, {t: [*range(10)], o: [1, 2, 3, 4]}
    for fqn, told in seen.items():
        assert [len(each) for each in told] == sizes[fqn]
        assert sorted(row for each in told for row in each) == every[fqn]
    tracker.record_lookup(rows, weights, emb_module=nn.Linear(1, 1))
    assert tracker.get_unique() == {}


def test_parts_at_random_need_no_states_and_are_all_alike():
    model, drawn = DistributedModelParallel(Sequences()), torch.zeros(10)
    tracker = model.init_torchrec_delta_tracker(DeltaTrackerConfig())
    rows = KeyedJaggedTensor.from_lists({"f": [list(range(10))]})
    for _ in range(300):
        tracker.record_lookup(rows, torch.empty(10, 4))
        (found,) = tracker.get_unique(
            per_table_percentage={"tables.embeddings.t": (0.3, "random")}
        ).values()
        drawn[found.ids] += 1
        tracker.clear()
    assert drawn.sum() == 900
    assert (drawn - 90).abs().max() < 40  # five standard deviations


def recorded(mode, record, optimizer=Adam):
    """What is told of rows 3 and 1 of a table that were recorded by hand, and what the table has of all rows."""
    tables = EmbeddingBagCollection([EmbeddingBagConfig(5, 4, "t", feature_names=["f"])])
    apply_optimizer_in_backward(optimizer, tables.parameters(), {"lr": 0.1})
    model = DistributedModelParallel(tables)
    tracker = model.init_torchrec_delta_tracker(DeltaTrackerConfig(mode))
    rows = KeyedJaggedTensor.from_lists({"f": [[3, 1], [3]]})
    model(rows).values().sum().backward()
    tracker.clear()
    before = model.state_dict()["embedding_bags.t.weight"].clone()
    record(tracker, model.module, rows, before[[3, 1, 3]])
    (found,) = tracker.get_unique().values()
    assert found.ids.tolist() == [1, 3]
    return found.states, before, tracker


def test_rows_are_recorded_by_what_is_told_of_them():
    def ids(tracker, module, rows, _):
        tracker.record_ids(rows)

    def embeddings(tracker, module, rows, weights):
        tracker.record_embeddings(rows, weights)

    def momentum(tracker, module, rows, _):
        tracker.record_momentum(module, rows)

    def state(tracker, module, rows, _):
        tracker.record_rowwise_optim_state(module, rows)

    assert recorded(TrackingMode.ID_ONLY, ids)[0] is None
    states, before, _ = recorded(TrackingMode.EMBEDDING, embeddings)
    assert torch.equal(states, before[[1, 3]])
    (states, _, tracker) = recorded(TrackingMode.MOMENTUM_LAST, momentum)
    assert states.abs().min() > 0
    assert torch.equal(states, tracker.get_latest()["embedding_bags.t"][[1, 3]])
    (states, _, tracker) = recorded(TrackingMode.ROWWISE_ADAGRAD, state, RowWiseAdagrad)
    assert states.shape == (2,)
    for record, modes in (
        (ids, "TrackingMode.ID_ONLY"),
        (momentum, "TrackingMode.MOMENTUM_LAST or TrackingMode.MOMENTUM_DIFF"),
        (state, "TrackingMode.ROWWISE_ADAGRAD"),
    ):
        with pytest.raises(ValueError, match=f"`mode` should be {modes} .* Received .*EMBEDDING"):
            recorded(TrackingMode.EMBEDDING, record)
    with pytest.raises(ValueError, match=r"`mode` should be .*EMBEDDING .* Received .*ID_ONLY"):
        recorded(TrackingMode.ID_ONLY, embeddings)


def test_what_cannot_be_tracked_is_refused():
    model = DistributedModelParallel(Sequences(), model_tracker_configs=ModelTrackerConfigs())
    former = model.init_torchrec_delta_tracker(DeltaTrackerConfig())
    for config, message in (
        (DeltaTrackerConfig(TrackingMode.MOMENTUM_LAST), r"an optimizer with momentum, .*\.SGD"),
        (DeltaTrackerConfig(TrackingMode.ROWWISE_ADAGRAD), r"by row-wise Adagrad, .*\.SGD"),
        (DeltaTrackerConfig(fqns_to_skip=["who"]), r"paths of sharded tables .* Received 'who'"),
    ):
        with pytest.raises(ValueError, match=message):
            model.init_torchrec_delta_tracker(config)
    model(KeyedJaggedTensor.from_lists({"f": [[1]], "g": [[]]}))
    assert list(former.get_unique_ids()) == ["tables.embeddings.t"]  # it has not been left
    tracker = model.init_torchrec_delta_tracker(DeltaTrackerConfig())
    with pytest.raises(ValueError, match=r"`consumer` should be one of .* Received 'who'"):
        tracker.get_unique("who")
    with pytest.raises(ValueError, match=r"All rows of 'tables.* should be asked for"):
        tracker.get_unique(top_percentage=0.5)
    with pytest.raises(ValueError, match=r"should be from 0 to 1, .* Received 50 by"):
        tracker.get_unique(top_percentage=50)
    assert tracker.get_latest() == {}
    with pytest.raises(ValueError, match="`states` should be given where the store keeps some"):
        DeltaStoreTrec().append(0, "t", torch.tensor([1]), torch.tensor([[1.0]]))
    with pytest.raises(
        ValueError, match=r"`raw_ids` should have .* 1 rows of table 't'\. Received 2"
    ):
        DeltaStoreTrec().append(0, "t", torch.tensor([1]), raw_ids=torch.tensor([1, 2]))
    f, t = KeyedJaggedTensor.from_lists({"f": [[1, 99]]}), "tables.embeddings.t"
    with pytest.raises(ValueError, match=f"`kjt` should have rows of '{t}' that rank 0"):
        tracker.record_lookup(f, torch.zeros(2, 4))
    with pytest.raises(ValueError, match="`raw_ids` should have a value for each of the 2 rows"):
        tracker.record_lookup(f, torch.zeros(2, 4), raw_ids=torch.tensor([1]))
    for shares, message in (
        ({"who": (1.0, "top")}, r"tables that are tracked, \['tables.* Received 'who'"),
        ({t: (1.5, "top")}, f"Received 1.5 by 'top' for '{t}'"),
        ({t: (0.5, "best")}, f"'top' or 'random'. Received 0.5 by 'best' for '{t}'"),
        ({t: (0.5, "top")}, f"All rows of '{t}' should be asked for"),
    ):
        with pytest.raises(ValueError, match=message):
            tracker.get_unique(per_table_percentage=shares)
    with pytest.raises(ValueError, match="`raw_id_tracker_config` should be None"):
        ModelTrackerConfigs("raw")
    assert [each.value for each in Trackers] == ["delta_tracker", "raw_id_tracker"]
