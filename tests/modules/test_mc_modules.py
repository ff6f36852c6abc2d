"""Maps from ids to rows: what they return, what they keep, what they refuse."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise

import pytest
import torch

from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    ManagedCollisionCollection,
    ManagedCollisionModule,
    MCHManagedCollisionModule,
    apply_mc_method_to_jt_dict,
    average_threshold_filter,
)
from torchrec.sparse.jagged_tensor import JaggedTensor

CPU = torch.device("cpu")
EXTREMES = [-(2**63), 2**63 - 1, -1, 0, 2**62]


class OwnLRU(LRU_EvictionPolicy):
    """A policy of the user's, as far as the module can tell."""


def make(zch_size=4, interval=1, policy=None, **options) -> MCHManagedCollisionModule:
    policy = LFU_EvictionPolicy() if policy is None else policy
    return MCHManagedCollisionModule(zch_size, CPU, policy, interval, name="t", **options)


def batch(*ids: int, dtype=torch.int64) -> dict[str, JaggedTensor]:
    values = torch.tensor(ids, dtype=dtype)
    return {"f": JaggedTensor(values, lengths=torch.tensor([len(ids)]))}


def rows(module: MCHManagedCollisionModule, *ids: int) -> list[int]:
    return module(batch(*ids))["f"].values().tolist()


def same_state(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) for key in first
    )


# Looking up.


def test_any_int64_is_an_id():
    module = make(6)
    assert rows(module, *EXTREMES) == [0, 1, 2, 3, 4]
    assert rows(module, *reversed(EXTREMES)) == [4, 3, 2, 1, 0]
    assert module.eval() is module
    assert rows(module, 5, -(2**63) + 1, 2**63 - 2) == [5, 5, 5]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8])
def test_ids_of_any_integer_type_give_int64_rows(dtype):
    out = make()(batch(7, 9, 7, dtype=dtype))["f"].values()
    assert out.dtype == torch.int64
    assert out.tolist() == [0, 1, 0]


def test_evictions_come_every_so_many_training_batches_and_before_the_look_up():
    module = make(4, interval=2)
    assert rows(module, 10, 20, 10) == [3, 3, 3]
    assert module.evict() is None
    assert module.open_slots().tolist() == [3]
    assert rows(module, 30, 10, 40) == [2, 0, 3]  # 40 came as often as 30, but later
    assert module.evict().tolist() == [0, 1, 2]
    assert module.evict() is None
    assert module.open_slots().tolist() == [0]
    rows(module, 60, 60)
    assert rows(module, 60, 70, 70) == [1, 2, 2]
    assert module.evict().tolist() == [1, 2]
    rows(module, 1)
    rows(module, 2)
    assert module.evict().tolist() == []  # an eviction, but nobody won


def test_evictions_that_were_not_asked_for_add_up():
    module = make(3)
    rows(module, 1)
    rows(module, 2, 3, 3, 3, 2)
    assert module.evict().tolist() == [0, 1]


def test_evictions_that_nobody_asks_for_take_bounded_memory():
    module = make(10, policy=LRU_EvictionPolicy())
    for first in range(0, 400, 4):
        rows(module, *range(first, first + 4))
        rows(module)
    assert sum(part.numel() for part in module._changed._parts) <= 10
    assert module.evict().tolist() == list(range(9))


def test_bags_and_weights_stay():
    features = {
        "f": JaggedTensor(
            torch.tensor([5, 6, 5]),
            weights=torch.tensor([0.1, 0.2, 0.3]),
            lengths=torch.tensor([2, 0, 1]),
        ),
        "g": JaggedTensor(torch.tensor([6], dtype=torch.int32), offsets=torch.tensor([0, 0, 1])),
        "h": JaggedTensor(torch.empty(0, dtype=torch.int64), lengths=torch.tensor([0, 0])),
    }
    out = make()(features)
    assert list(out) == ["f", "g", "h"]
    assert out["f"].values().tolist() == [0, 1, 0]
    assert out["f"].weights() is features["f"].weights()
    assert out["f"].lengths().tolist() == [2, 0, 1]
    assert out["g"].values().tolist() == [1]
    assert out["g"].offsets().tolist() == [0, 0, 1]
    assert out["h"].values().dtype == torch.int64
    assert make()({}) == {}


@pytest.mark.parametrize("policy", [LFU_EvictionPolicy, OwnLRU])
def test_evaluation_changes_nothing(policy):
    module = make(3, interval=2, policy=policy())
    rows(module, 1, 1)
    rows(module, 1, 2)
    rows(module, 8)
    module.evict()
    before = copy.deepcopy(module.state_dict())
    module.eval()
    for _ in range(3):
        assert rows(module, 9, 1, 2, 9) == [2, 0, 1, 2]
        module.profile(batch(9, 9))
    assert module.evict() is None
    after = module.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    module.train()
    assert rows(module, 8, 8) == [1, 1]


def test_profile_and_remap_are_the_two_halves_of_forward():
    whole, halves = make(3), make(3)
    for ids in ([1, 2, 2], [3, 3, 3, 1], [2, 9]):
        expected = rows(whole, *ids)
        features = halves.profile(halves.preprocess(batch(*ids)))
        assert features["f"].values().tolist() == ids
        assert halves.remap(features)["f"].values().tolist() == expected
    assert same_state(whole, halves)
    assert whole.stats() == halves.stats()


def test_inputs_are_hashed_once():
    calls = []

    def tenfold(ids, size):
        calls.append((ids.tolist(), size))
        return ids * 10

    module = make(input_hash_func=tenfold, input_hash_size=1000)
    assert rows(module, 1, 2, 1) == [0, 1, 0]
    assert calls == [([1, 2, 1], 1000)]
    assert module.held()[1].tolist() == [10, 20]
    assert module.rows_of(torch.tensor([2, 10])).tolist() == [1, -1]
    assert module.input_size() == 1000


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_keys_of_a_batch_are_hashed_as_features_are(training):
    """All keys of a map together give the rows that each feature gives: dtypes differ, one is empty."""
    ids = {"a": [1, 2, 2], "b": [], "c": [3, 1]}
    dtypes = {"a": torch.int32, "b": torch.int64, "c": torch.int64}
    maps = [
        make(4, input_hash_func=lambda ids, size: ids * 3 % size, input_hash_size=7) for _ in "xy"
    ]
    values = {name: torch.tensor(ids[name], dtype=dtypes[name]) for name in ids}
    features = {
        name: JaggedTensor(part, lengths=torch.tensor([len(part)])) for name, part in values.items()
    }
    for module in maps:
        module(batch(1, 2, 3))
        module.train(training)
    expected = [jt.values().tolist() for jt in maps[0](features).values()]
    mapped = maps[1].map_keys(KeyedJaggedTensor.from_lists({"a": [[]]}), values)
    assert [part.tolist() for part in mapped.rows] == expected
    assert same_state(*maps)


# The residual zone.


def test_residual_zone():
    module = make(3, interval=2, mch_size=5, output_global_offset=100)
    assert module.output_size() == 8
    assert module.open_slots().tolist() == [3]  # no unknown row is needed
    first = rows(module, *range(50))
    assert set(first) <= set(range(103, 108))
    assert len(set(first)) == 5
    assert rows(module, 7, 8, 9, 7, 8, 9, 1) == [100, 101, 102, 100, 101, 102, first[1]]
    assert module.evict().tolist() == [100, 101, 102]
    module.eval()
    assert rows(module, 1, 30, 7) == [first[1], first[30], 100]


def test_residual_hash_of_ones_own():
    module = make(2, interval=9, mch_size=3, mch_hash_func=lambda ids, size: ids % size)
    assert rows(module, 4, 5, 6, -1) == [3, 4, 2, 4]
    wrong = make(2, interval=9, mch_size=3, mch_hash_func=lambda ids, size: ids)
    with pytest.raises(
        ValueError, match=r"of map 't' should return rows in \[0, 3\). Received -1 to"
    ):
        rows(wrong, 5, -1)


# What is seen from outside.


@pytest.mark.parametrize("policy", [LRU_EvictionPolicy, OwnLRU])
def test_stats(policy):
    module = make(3, interval=1, policy=policy(threshold_filtering_func=average_threshold_filter))
    rows(module, 1, 1, 2, 3, 3)
    stats = module.stats()
    assert (stats.rows, stats.occupied, stats.occupancy) == (2, 2, 1.0)
    assert (stats.ids, stats.hits, stats.collided, stats.hit_rate) == (5, 0, 5, 0.0)
    assert (stats.inserted, stats.evicted) == (2, 0)
    assert (stats.admitted, stats.rejected) == (2, 1)
    rows(module, 1, 1, 2, 2, 2, 9)
    module.eval()
    rows(module, 1, 1, 9)
    stats = module.stats(reset=False)
    assert (stats.ids, stats.hits) == (9, 4)  # 1, in both batches
    assert (stats.inserted, stats.evicted, stats.admitted, stats.rejected) == (1, 1, 1, 1)
    assert module.stats() == stats
    assert module.stats().ids == 0
    assert str(module.stats()).startswith("2 of 2 rows held, nan % of 0 ids")


def test_memory_of_a_row():
    """At most 32 bytes a row with the counts of LFU: 9 of the map, 6 to 12 of its index, 8."""
    for size in (1000, 65_536, 100_000, 131_072):
        module = make(size + 1)
        used = sum(buffer.nbytes for buffer in module.buffers())
        assert used / size <= 30


# State.


@pytest.mark.parametrize(
    "policy",
    [LFU_EvictionPolicy, LRU_EvictionPolicy, DistanceLFU_EvictionPolicy, OwnLRU],
)
@pytest.mark.parametrize("filtered", [None, average_threshold_filter], ids=["all", "average"])
@pytest.mark.parametrize("way", ["state_dict", "deepcopy", "pickle"])
def test_a_copy_goes_on_as_the_original(policy, filtered, way):
    ids = torch.randint(0, 30, (12, 15), generator=torch.Generator().manual_seed(0)).tolist()
    module = make(8, interval=5, policy=policy(threshold_filtering_func=filtered))
    for number, part in enumerate(ids):
        rows(module, *part)
        if number == 7:  # between two evictions
            other = make(8, interval=5, policy=policy(threshold_filtering_func=filtered))
            if way == "state_dict":
                other.load_state_dict(copy.deepcopy(module.state_dict()))
            else:
                other = (
                    copy.deepcopy(module)
                    if way == "deepcopy"
                    else pickle.loads(pickle.dumps(module))
                )
            assert same_state(module, other)
        elif number > 7:
            assert rows(other, *part) == module.remap(batch(*part))["f"].values().tolist()
    assert same_state(module, other)
    assert other.load_report is None


@pytest.mark.parametrize(
    "policy", [LFU_EvictionPolicy, DistanceLFU_EvictionPolicy, OwnLRU], ids=["lfu", "dlfu", "own"]
)
def test_maps_without_memory_yet(policy):
    def shape():
        return MCHManagedCollisionModule(4, torch.device("meta"), policy(), 2, name="t")

    empty = shape().to_empty(device=CPU)
    assert (empty.device, int(empty.open_slots())) == (CPU, 3)
    assert rows(empty, 7, 7) == [3, 3]
    assert rows(empty, 8) == [1]
    assert (empty.stats().ids, empty.stats().occupied) == (3, 2)
    for other in (shape(), shape().to_empty(device=CPU)):
        assert other.state_dict().keys() == empty.state_dict().keys()
        other.load_state_dict(copy.deepcopy(empty.state_dict()), assign=True)
        assert same_state(other, empty)
        assert rows(other, 8, 7, 9) == [1, 0, 3]
        assert other.stats().ids == 3


def test_ids_on_another_device_are_refused():
    elsewhere = {
        "f": JaggedTensor(torch.arange(2).to("meta"), lengths=torch.tensor([2]).to("meta"))
    }
    with pytest.raises(ValueError, match=r"'f' of table 't' should be on .* map, cpu. Received me"):
        make()(elsewhere)
    module = MCHManagedCollisionModule(4, torch.device("meta"), LFU_EvictionPolicy(), 1)
    with pytest.raises(ValueError, match=r"should be on the device of the map, meta. Received cpu"):
        module.eval()(batch(1))


def test_workers_of_a_loader_look_up_what_their_parent_knows():
    module = make(20_000)
    rows(module, *range(19_999))  # in threads
    module.eval()

    def collate(ids: list[int]) -> list[int]:
        return rows(module, *ids)

    loader = torch.utils.data.DataLoader(
        range(10_000), 5_000, collate_fn=collate, num_workers=2, multiprocessing_context="fork"
    )
    assert [part for found in loader for part in found] == list(range(10_000))


def test_names_in_the_state():
    assert list(make(3).state_dict()) == [
        "current_iter",
        "sizes",
        "_rows.ids",
        "_rows.occupied",
        "_rows.counts",
        "_rows.history_ids",
        "_rows.history_counts",
        "_rows.history_last_access_iter",
    ]


def test_state_sorted_by_id_is_understood():
    """As TorchRec saves it: ids ascending, the row of each, a last entry for all other ids."""
    none = 2**63 - 1
    state = {
        "_output_segments_tensor": torch.full((1025,), -1),
        "_current_iter_tensor": torch.tensor([8]),
        "_mch_sorted_raw_ids": torch.tensor([-7, 10, none, none]),
        "_mch_remapped_ids_mapping": torch.tensor([2, 0, 1, 3]),
        "_mch_counts": torch.tensor([4, 2, 0, none]),
    }
    module = make(4)
    module.load_state_dict(state)
    assert module.rows_of(torch.tensor([-7, 10, none])).tolist() == [2, 0, -1]
    assert module._rows.metadata["counts"].tolist() == [2, 0, 4]
    assert module._current_iter == 8
    assert rows(module, 5, 5, none) == [1, 1, 3]


def test_state_sorted_by_id_is_written():
    module = make(4, output_global_offset=100)
    rows(module, 10, -7, 10)
    rows(module, 10)
    state = dict(module.state_dict())
    module.sort_saved(state, "")
    none = 2**63 - 1
    held = module.rows_of(torch.tensor([-7, 10])).tolist()
    free = ({100, 101, 102} - set(held)).pop()
    assert state.pop("_output_segments_tensor")[:3].tolist() == [100, 104, -1]
    assert {name: values.tolist() for name, values in state.items()} == {
        "_current_iter_tensor": [2],
        "_mch_sorted_raw_ids": [-7, 10, none, none],
        "_mch_remapped_ids_mapping": [*held, free, 103],
        "_mch_counts": [1, 3, 0, none],
    }
    other = make(4, output_global_offset=100)
    other.load_state_dict(state)
    assert [t.tolist() for t in other.held()] == [t.tolist() for t in module.held()]


@pytest.mark.parametrize("policy", [LFU_EvictionPolicy, OwnLRU])
def test_a_smaller_map_keeps_the_best_ids(policy):
    module = make(6, policy=policy())
    for ids in ([1, 2, 3, 4, 5], [2, 3, 5], [3, 5], [5]):
        rows(module, *ids)
    smaller = make(4, policy=policy())
    with pytest.warns(UserWarning, match="Map 't' has another size now: 3 ids kept, 2 dropped"):
        smaller.load_state_dict(module.state_dict())
    # Ids keep their rows where these exist; 5 held row 4, and takes the one that 1 held.
    assert dict(zip(*[t.tolist() for t in reversed(smaller.held())], strict=True)) == {
        2: 1,
        3: 2,
        5: 0,
    }
    report = smaller.load_report
    assert report.dropped.tolist() == [1, 4]
    assert (report.kept, report.shared_rows_kept) == (3, True)
    assert report.old_rows.tolist() == [1, 2, 4, 5]
    assert report.new_rows.tolist() == [1, 2, 0, 3]
    moved = report.move(torch.arange(6.0), torch.zeros(4))
    assert moved.tolist() == [4, 1, 2, 5]
    assert rows(smaller, 5, 3, 2, 77) == [0, 2, 1, 3]


def test_a_larger_map_keeps_every_row():
    module = make(3)
    rows(module, 1, 2)
    larger = make(7)
    larger.load_state_dict(module.state_dict())
    assert larger.held()[1].tolist() == [1, 2]
    assert larger.load_report.dropped.tolist() == []
    assert larger.load_report.new_rows.tolist() == [0, 1, 6]
    assert rows(larger, 2, 1, 3, 4, 5, 6, 7) == [1, 0, 2, 3, 4, 5, 6]


def test_a_residual_zone_of_another_size_starts_anew():
    module = make(3, mch_size=4)
    rows(module, 1, 2, 3)
    other = make(3, mch_size=5)
    with pytest.warns(UserWarning, match="3 ids kept, 0 dropped, rows shared by other ids start"):
        other.load_state_dict(module.state_dict())
    assert not other.load_report.shared_rows_kept
    assert other.held()[1].tolist() == [1, 2, 3]


def test_state_that_does_not_fit_is_refused():
    state = make(4).state_dict()
    with pytest.raises(RuntimeError, match=r"Missing key.*_rows.last_access_iter"):
        make(4, policy=DistanceLFU_EvictionPolicy()).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Missing key.*current_iter"):
        make(4).load_state_dict({k: v for k, v in state.items() if k.startswith("_rows")})
    lru = make(4, policy=LRU_EvictionPolicy()).state_dict()
    with pytest.raises(RuntimeError, match=r"history should hold .*'last_access.*another policy"):
        make(4, policy=OwnLRU()).load_state_dict(lru)
    with pytest.raises(
        RuntimeError, match=r"Missing key.*_rows.counts(.|\n)*size mismatch for _rows.ids"
    ):
        make(3).load_state_dict(lru)
    twice = copy.deepcopy(state)
    twice["_rows.occupied"][:2] = True
    with pytest.raises(RuntimeError, match=r"`ids` should be distinct. Received 0"):
        make(4).load_state_dict(twice)


def test_validate_state_finds_what_cannot_be():
    module = make(4)
    rows(module, 1, 2)
    module.validate_state()
    module._rows.ids[1] = 1
    with pytest.raises(ValueError, match=r"of map 't' should be held by different ids. Received 1"):
        module.validate_state()


# Parts of a map.


def test_any_range_of_rows_can_be_a_map():
    module = make(10, interval=3)
    starts = [0, 3, 4 + 2, 10]
    parts = [module.rebuild_with_output_id_range((a, b), starts) for a, b in pairwise(starts)]
    assert [part.output_size() for part in parts] == [3, 3, 4]
    assert [part.output_offset for part in parts] == [0, 3, 6]
    for part in parts:
        for _ in range(3):
            out = rows(part, 1, 2, 3, 4, 5)
        first = part.output_offset
        assert set(out) == set(range(first, first + part.output_size()))
        assert part.evict().min() == first
    older_form = module.rebuild_with_output_id_range((2, 5), CPU)
    assert (older_form.output_offset, older_form.device) == (2, CPU)
    with_zone = make(10, mch_size=10).rebuild_with_output_id_range((0, 7), [0, 7, 20])
    assert with_zone.output_size() == 7
    assert with_zone.sizes() == (4, 3)


def test_inference_mode():
    module = make(3)
    module.reset_inference_mode()
    assert rows(module, 1) == [2]
    assert module.buckets() == 1
    assert module.readable_suffix == "_readonly"


# What is refused.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"zch_size": 1}, ValueError, "`zch_size` of map 't' should be at least 2. Received 1."),
        ({"zch_size": 0, "mch_size": 3}, ValueError, "should be at least 1. Received 0."),
        ({"zch_size": 2**31}, ValueError, "`zch_size` of map 't' should be at most 2147483646."),
        ({"zch_size": 4.0}, TypeError, "`zch_size` of map 't' should be an integer. Received 4.0"),
        ({"interval": 0}, ValueError, "`eviction_interval` of map 't' should be at least 1."),
        ({"mch_size": 0}, ValueError, "`mch_size` of map 't' should be at least 1. Received 0."),
        ({"mch_hash_func": torch.remainder}, ValueError, "should come with `mch_size`"),
        ({"policy": "lfu"}, TypeError, "of map 't' should be an MCHEvictionPolicy. Received 'lfu'"),
    ],
)
def test_arguments_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        make(**options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_ids_that_are_no_integers_are_refused(dtype):
    message = f"Ids of feature 'f' of table 't' should be integers. Received {dtype}."
    with pytest.raises(TypeError, match=message):
        make()(batch(1, 0, dtype=dtype))


def test_other_mistakes():
    with pytest.raises(ValueError, match="`write_weights` of map 't' should be None"):
        make().remap(batch(1), write_weights=torch.ones(1))
    with pytest.raises(ValueError, match=r"`input_hash_func` of map 't' should return one id for"):
        rows(make(input_hash_func=lambda ids, size: ids[:1]), 1, 2)
    with pytest.raises(TypeError, match="abstract"):
        ManagedCollisionModule(CPU, [0, 1])


# Collections.


def config(name: str, *features: str, num_embeddings=4) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(num_embeddings, 2, name, feature_names=list(features))


IDS = {"a": [[10, 20], [30]], "b": [[30], []], "c": [[9], [9]]}


def test_each_table_has_its_map():
    tables = [config("t", "a", "b"), config("u", "c")]
    mcc = ManagedCollisionCollection({"t": make(), "u": make()}, tables)
    out = mcc(KeyedJaggedTensor.from_lists(IDS))
    assert out.to_lists() == {"a": [[0, 1], [2]], "b": [[2], []], "c": [[0], [0]]}
    assert out.keys() == ["a", "b", "c"]
    assert {t: r.tolist() for t, r in mcc.evict().items()} == {"t": [0, 1, 2], "u": [0]}
    assert {t: int(n) for t, n in mcc.open_slots().items()} == {"t": 0, "u": 2}
    assert mcc.table_to_number_buckets() == {"t": 1, "u": 1}
    assert mcc.embedding_configs() == tables
    assert mcc.stats()["t"].inserted == 3


def test_the_order_of_keys_does_not_matter_and_others_stay():
    tables = [config("t", "a", "b"), config("u", "c")]
    plain = ManagedCollisionCollection({"t": make(), "u": make()}, tables)
    other = ManagedCollisionCollection({"t": make(), "u": make()}, tables)
    expected = plain(KeyedJaggedTensor.from_lists(IDS)).to_lists()
    mixed = {"c": IDS["c"], "x": [[77], [-7, 5]], "b": IDS["b"], "a": IDS["a"]}
    features = KeyedJaggedTensor.from_lists(mixed)
    out = other(features)
    assert out.to_lists() == {**expected, "x": [[77], [-7, 5]]}
    assert out.keys() == ["c", "x", "b", "a"]
    assert features.to_lists() == mixed  # as it was


def test_tables_may_share_a_map_and_a_feature():
    shared = make()
    tables = [config("t", "a", "b"), config("wide", "a"), config("u", "c")]
    mcc = ManagedCollisionCollection({"t": shared, "wide": shared, "u": None}, tables)
    features = KeyedJaggedTensor.from_lists({**IDS, "c": [[2], [1]]})
    out = mcc(features)
    assert out.to_lists()["c"] == [[2], [1]]
    assert shared._current_iter == 1  # each batch counts once
    evicted = mcc.evict()
    assert evicted["t"].tolist() == evicted["wide"].tolist() == [0, 1, 2]
    assert "u" not in evicted
    stats = mcc.stats()
    assert stats["t"] == stats["wide"]
    assert stats["t"].ids == 4


def test_variable_batches_and_weights_pass_through():
    features = KeyedJaggedTensor(
        ["a", "b"],
        torch.tensor([50, 60, 50]),
        weights=torch.tensor([1.0, 2.0, 3.0]),
        lengths=torch.tensor([1, 1, 1]),
        stride_per_key_per_rank=[[2], [1]],
        inverse_indices=(["a", "b"], torch.tensor([[0, 1, 0], [0, 0, 0]])),
    )
    out = ManagedCollisionCollection({"t": make()}, [config("t", "a", "b")])(features)
    assert out.values().tolist() == [0, 1, 0]
    assert out.weights().tolist() == [1, 2, 3]
    assert out.stride_per_key() == [2, 1]
    assert out.expand_inverse().to_lists() == {"a": [[0], [1], [0]], "b": [[0], [0], [0]]}


def test_remap_learns_nothing():
    mcc = ManagedCollisionCollection(
        {"t": make(), "u": make()}, [config("t", "a", "b"), config("u", "c")]
    )
    features = KeyedJaggedTensor.from_lists(IDS)
    mcc(features)
    before = mcc.state_dict()
    expected = mcc.remap(features).to_lists()
    assert mcc.remap(features).to_lists() == expected
    assert all(torch.equal(value, mcc.state_dict()[key]) for key, value in before.items())


def test_apply_method_in_both_forms():
    module, other = make(), make()
    features = {"x": batch(1)["f"], "f": batch(70, 80, 70)["f"]}
    out = apply_mc_method_to_jt_dict(module, "forward", {"f": features["f"]})
    assert out["f"].values().tolist() == [0, 1, 0]
    out = apply_mc_method_to_jt_dict(
        "forward",
        features,
        {"t": ["f"]},
        torch.nn.ModuleDict({"t": other}),
    )
    assert list(out) == ["x", "f"]
    assert out["f"].values().tolist() == [0, 1, 0]
    assert out["x"].values().tolist() == [1]
    named = apply_mc_method_to_jt_dict(
        method="remap", features_dict={"f": features["f"]}, mc_module=module
    )
    assert named["f"].values().tolist() == [0, 1, 0]


def test_collections_check_their_tables():
    tables = [config("t", "a"), config("u", "b")]
    with pytest.raises(ValueError, match=r"should have a map for table 'u' \(None if its ids are"):
        ManagedCollisionCollection({"t": make()}, tables)
    with pytest.raises(TypeError, match="The map of table 'u' should be a ManagedCollisionModule"):
        ManagedCollisionCollection({"t": make(), "u": "map"}, tables)  # type: ignore[dict-item]
    with pytest.raises(
        ValueError,
        match=r"`num_embeddings` of table 'u' should be at least 7, the rows of its map. Received 4.",
    ):
        ManagedCollisionCollection({"t": make(), "u": make(4, mch_size=3)}, tables)
    with pytest.raises(ValueError, match="table 't' should be at least 6"):
        ManagedCollisionCollection({"t": make(4, output_global_offset=2), "u": make()}, tables)
    roomy = ManagedCollisionCollection({"t": make(3), "u": make()}, tables)
    with pytest.raises(ValueError, match="`features` should have the key 'b' of table 'u'"):
        roomy(KeyedJaggedTensor.from_lists({"a": [[1]]}))
    with pytest.raises(TypeError, match="Ids of feature 'a' of table 't' should be integers"):
        roomy(KeyedJaggedTensor(["a", "b"], torch.ones(2), lengths=torch.ones(2).long()))
    with pytest.raises(ValueError, match=r"Received those of tables \['t', 'u'\], which keep none"):
        roomy.lookup_custom_runtime_meta(KeyedJaggedTensor.from_lists({"a": [[1]]}))


def test_sequence_configurations_will_do():
    table = EmbeddingConfig(4, 2, "t", feature_names=["a"])
    mcc = ManagedCollisionCollection({"t": make()}, [table], need_preprocess=False)
    assert mcc(KeyedJaggedTensor.from_lists({"a": [[5], [6, 5]]})).to_lists() == {
        "a": [[0], [1, 0]]
    }
